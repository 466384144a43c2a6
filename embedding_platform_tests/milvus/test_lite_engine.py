"""What a kill or a full disk leaves of a collection; refused writes are in `faults/test_full_disk.py`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.index import ensure_index
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import read_rows, sync_partition

from .making import HNSW, desired, new_collection, rows_for


def keep_only(*names: str) -> Callable[[Path], None]:
    def mutilate(collection: Path) -> None:
        for path in collection.iterdir():
            if path.name in names:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    return mutilate


def begin_schema(collection: Path) -> None:
    keep_only()(collection)
    (collection / "schema.json.tmp").write_text('{"collection_name": ')


MUTILATIONS = {
    "made without a schema": keep_only(),
    "made with half a schema": begin_schema,
    "dropped but for its rows": keep_only("partitions", "wal"),
    "dropped but for its schema": keep_only("schema.json"),
    "dropped but for schema and rows": keep_only("schema.json", "partitions", "wal"),
    "dropped but for schema and list of rows": keep_only("schema.json", "manifest.json", "manifest.json.prev"),
}


@pytest.mark.parametrize("mutilate", MUTILATIONS.values(), ids=MUTILATIONS)
def test_a_collection_that_was_left_half_made_or_half_dropped_is_filled_again(tmp_path, mutilate):
    directory = str(tmp_path / "milvus")
    wanted = desired(range(10))
    names = set()
    for cut_off in (mutilate, lambda collection: None):
        client = connect(directory)
        partition = Partition(new_collection(client, HNSW, fingerprint="f" * 64), "photos")
        sync_partition(client, partition, wanted, rows_for(wanted))
        ensure_index(client, partition.collection, HNSW, "COSINE")
        names.add(partition.collection)
        close_directory(directory)
        assert not cut_off(tmp_path / "milvus" / "collections" / partition.collection)
    assert set(read_rows(connect(directory), partition).index) == set(wanted.index)
    assert connect(directory).list_collections() == list(names)
    close_directory(directory)
