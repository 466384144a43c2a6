"""An empty Milvus Lite for each test, and a small lake whose stages up to the vectors have run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.reconcile.small_lake import Lake


@pytest.fixture(scope="session")
def shared_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    client = connect(directory)
    yield client
    client.close()
    close_directory(directory)


@pytest.fixture
def client(shared_client) -> Iterator:
    """The client, and an empty Milvus after the test."""
    yield shared_client
    for name in shared_client.list_collections():
        for alias in shared_client.list_aliases(name)["aliases"]:
            shared_client.drop_alias(alias)
        shared_client.drop_collection(name)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Five texts in the source "one", cut and embedded."""
    lake = Lake(tmp_path)
    for number in range(5):
        lake.write(f"n{number}", number)
    lake.run()
    return lake
