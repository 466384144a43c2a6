"""Rows that come through files: on a real server, which reads them from its own storage."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus import bulk_import
from embedding_platform.milvus.bulk_import import count_rows, import_rows, settle_imports
from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.sync import compare_partition, read_rows, sync_partition

from .making import DIMENSION, desired, make_row, new_collection, no_rows, row_id, rows_for, vector

KILLED = """
import os, sys
from embedding_platform.milvus import bulk_import
from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.partitions import Partition
from embedding_platform_tests.milvus.making import desired, rows_for

uri, token, collection, root = sys.argv[1:]
bulk_import.FILE_ROWS = 500
begin = bulk_import._begin
begun = []

def die_at_the_third(*arguments):
    if len(begun) == 2:
        os.kill(os.getpid(), 9)
    begun.append(begin(*arguments))
    return begun[-1]

bulk_import._begin = die_at_the_third
wanted = desired(range(2000))
batches = rows_for(wanted, size=250)(wanted.index)
bulk_import.import_rows(connect(uri, token), Partition(collection, "photos"), batches, root)
"""


@pytest.fixture(scope="module")
def root(milvus_server):
    """A folder that the server reads."""
    if not milvus_server.folder:
        pytest.skip("the storage of a server that runs elsewhere is not known here")
    return milvus_server.storage


def files_below(root):
    return [name for _, _, names in os.walk(root) for name in names]


@pytest.mark.server
@pytest.mark.parametrize("layout", [pytest.param("named", marks=pytest.mark.long), "keyed"])
def test_imported_rows_are_bitwise_those_that_were_given(server, root, layout, monkeypatch):
    monkeypatch.setattr(bulk_import, "FILE_ROWS", 500)
    partition = Partition(new_collection(server, layout=layout), "photos", layout)
    others = desired(range(3), of="scans")
    scans = Partition(partition.collection, "scans", layout)
    import_rows(server, scans, rows_for(others, "scans")(others.index), root)
    wanted = desired(range(1200))
    done = []
    report = import_rows(server, partition, rows_for(wanted, size=200)(wanted.index), root, progress=done.append)
    assert (report.files, report.rows) == (3, 1200)
    assert done == [400, 800, 1200]
    assert count_rows(server, partition) == 1200
    assert files_below(root) == []
    assert sync_partition(server, partition, wanted, no_rows).batches == 0
    assert len(read_rows(server, scans)) == 3
    for stored in get_rows(server, partition.collection, list(wanted.index[::40])):
        given = make_row(stored["id"], "1")
        assert np.array_equal(np.asarray(stored.pop("vector"), np.float32), given.pop("vector"))
        assert stored == given


@pytest.mark.long
@pytest.mark.server
def test_what_was_killed_goes_on_without_a_row_twice(server, milvus_server, root):
    partition = Partition(new_collection(server), "photos")
    command = [sys.executable, "-c", KILLED, milvus_server.uri, milvus_server.token, partition.collection, root]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(files_below(root)) == 3
    wanted = desired(range(2000))

    assert settle_imports(server, partition, root) == 3
    assert files_below(root) == []
    missing = compare_partition(server, partition, wanted).increment.new
    assert len(missing) == 1000
    assert import_rows(server, partition, rows_for(wanted)(missing), root).rows == 1000
    assert count_rows(server, partition) == 2000
    assert sync_partition(server, partition, wanted, no_rows).batches == 0
    assert settle_imports(server, partition, root) == 0


@pytest.mark.long
@pytest.mark.server
def test_a_server_that_was_killed_takes_no_row_twice_and_loses_none(mortal_server, monkeypatch):
    """It gives up the job that it was at work on after a minute here, but looks for such every five."""
    mortal_server.stop()
    mortal_server.variables = {"ROOTCOORD_IMPORTTASKEXPIRATION": "60"}
    mortal_server.start()
    client = connect(mortal_server.uri, mortal_server.token)
    partition, root = Partition(new_collection(client), "photos"), mortal_server.storage
    begin, begun = bulk_import._begin, []

    def kill_after_the_third(*arguments):
        begun.append(begin(*arguments))
        if len(begun) == 3:
            mortal_server.kill()
            raise KeyboardInterrupt
        return begun[-1]

    wanted = desired(range(8000))
    monkeypatch.setattr(bulk_import, "FILE_ROWS", 2000)
    monkeypatch.setattr(bulk_import, "_begin", kill_after_the_third)
    with pytest.raises(KeyboardInterrupt):
        import_rows(client, partition, rows_for(wanted, size=500)(wanted.index), root)
    monkeypatch.setattr(bulk_import, "_begin", begin)
    mortal_server.start()
    client = connect(mortal_server.uri, mortal_server.token)
    with pytest.raises(PlatformError, match=r"imports to source photos .* that a former run began do not end"):
        settle_imports(client, partition, root, seconds=1)

    assert settle_imports(client, partition, root) == 3
    missing = compare_partition(client, partition, wanted).increment.new
    assert import_rows(client, partition, rows_for(wanted)(missing), root).rows == len(missing) > 0
    assert count_rows(client, partition) == 8000
    assert sync_partition(client, partition, wanted, no_rows).batches == 0


@pytest.mark.server
def test_a_file_that_milvus_refuses_is_named_and_the_next_run_does_the_rest(server, root):
    partition = Partition(new_collection(server), "photos")
    wanted = desired(range(10))
    crooked = [{**make_row(row_id(0), "1"), "vector": vector(0, DIMENSION + 1)}]
    with pytest.raises(PlatformError, match=rf"could not import {root}.*parquet: float vector.*run again") as failure:
        import_rows(server, partition, [crooked], root)
    assert "\n" not in str(failure.value)
    assert settle_imports(server, partition, root) == 1
    assert len(read_rows(server, partition)) == 0
    assert import_rows(server, partition, rows_for(wanted)(wanted.index), root).rows == 10


@pytest.mark.server
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: os.unlink(file), "could not import .*no such file.*milvus.import_root"),
        (lambda file: os.truncate(file, os.path.getsize(file) // 2), "could not import .*parquet"),
        (lambda file: pq.write_table(pq.read_table(file).slice(2), file), "imported 8 of the 10 rows"),
    ],
    ids=["gone", "cut short", "rows lost"],
)
def test_what_happens_to_a_file_on_its_way_is_found_out(server, root, monkeypatch, damage, message):
    partition = Partition(new_collection(server), "photos")
    wanted = desired(range(10))
    begin = bulk_import._begin

    def damaged(client, into, file, rows):
        damage(file)
        return begin(client, into, file, rows)

    monkeypatch.setattr(bulk_import, "_begin", damaged)
    with pytest.raises(PlatformError, match=message):
        import_rows(server, partition, rows_for(wanted)(wanted.index), root)
    monkeypatch.setattr(bulk_import, "_begin", begin)
    settle_imports(server, partition, root)
    shutil.rmtree(root, ignore_errors=True)
    found = compare_partition(server, partition, wanted).increment
    assert len(found.new) + len(found.unchanged) == 10
    assert sync_partition(server, partition, wanted, rows_for(wanted)).upserted == len(found.new)


@pytest.mark.server
def test_a_job_that_does_not_end_in_time_is_named(server, root):
    partition = Partition(new_collection(server), "photos")
    wanted = desired(range(10))
    with pytest.raises(PlatformError, match=r"has not imported .*\.parquet after 0 s"):
        import_rows(server, partition, rows_for(wanted)(wanted.index), root, job_seconds=0)
    assert settle_imports(server, partition, root) == 1
    assert count_rows(server, partition) == 10


@pytest.mark.server
def test_keys_that_were_there_already_are_found_out(server, root, monkeypatch):
    partition = Partition(new_collection(server), "photos")
    wanted = desired(range(10))
    import_rows(server, partition, rows_for(wanted)(wanted.index), root)
    assert import_rows(server, partition, [], root).files == 0
    honest = bulk_import.count_rows
    monkeypatch.setattr(bulk_import, "count_rows", lambda *arguments: honest(*arguments) % 11)
    with pytest.raises(PlatformError, match="holds 9 rows after 10 were imported to 10"):
        import_rows(server, partition, rows_for(wanted)(wanted.index), root)
    settle_imports(server, partition, root)
    assert honest(server, partition) == 20
    sync_partition(server, partition, desired(range(10), version="2"), rows_for(desired(range(10), version="2")))
    assert honest(server, partition) == 10


def test_milvus_lite_takes_upserts(lite, tmp_path):
    with pytest.raises(PlatformError, match=r"Milvus Lite imports no files; leave milvus\.import_root empty"):
        import_rows(lite, Partition("any", "photos"), [], str(tmp_path))


def test_milvus_knows_a_file_by_its_path_or_by_its_key_without_the_bucket(monkeypatch):
    assert bulk_import._path_in_storage("/storage/a/b.parquet") == "/storage/a/b.parquet"
    # As s3fs, gcsfs and adlfs name it.
    monkeypatch.setattr(bulk_import, "file_system", lambda url: (object(), "bucket/a/b.parquet"))
    assert bulk_import._path_in_storage("s3://bucket/a/b.parquet") == "a/b.parquet"
