"""One Milvus Lite directory for the whole folder; with MILVUS_TEST_URI, a server."""

import os

import pytest

from embedding_platform.milvus.connection import close_directory, connect

SERVER_VARIABLE = "MILVUS_TEST_URI"
TOKEN_VARIABLE = "MILVUS_TEST_TOKEN"


@pytest.fixture(scope="session")
def lite(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    client = connect(directory)
    yield client
    client.close()
    close_directory(directory)


@pytest.fixture(scope="session")
def server():
    uri = os.environ.get(SERVER_VARIABLE)
    if not uri:
        pytest.skip(f"{SERVER_VARIABLE} names no Milvus server")
    client = connect(uri, os.environ.get(TOKEN_VARIABLE, ""))
    yield client
    client.close()


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.server)])
def client(request):
    """The same tests on both; a fixture `client` parametrised by where Milvus runs."""
    return request.getfixturevalue(request.param)
