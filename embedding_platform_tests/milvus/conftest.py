"""One Milvus Lite directory for the whole folder, and clients of the session's Milvus server."""

import pytest

from embedding_platform.milvus.connection import close_directory, connect


@pytest.fixture(scope="session")
def lite(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    client = connect(directory)
    yield client
    client.close()
    close_directory(directory)


@pytest.fixture(scope="session")
def server(milvus_server):
    client = connect(milvus_server.uri, milvus_server.token)
    yield client
    client.close()


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.server)])
def client(request):
    """The same tests on both; a fixture `client` parametrised by where Milvus runs."""
    return request.getfixturevalue(request.param)
