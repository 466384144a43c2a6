import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_platform import storage
from embedding_platform.errors import PlatformError

SCHEMA = pa.schema([("id", pa.string()), ("number", pa.int64())])


def table(*numbers: int) -> pa.Table:
    return pa.table({"id": [str(number) for number in numbers], "number": list(numbers)}, schema=SCHEMA)


def numbers_in(found: pa.Table) -> list[int]:
    return sorted(found["number"].to_pylist())


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    """A folder to store in, local and on another file system of fsspec."""
    return str(tmp_path) if request.param == "local" else f"memory://{uuid4().hex}"


@pytest.fixture
def read_only_folder():
    """A folder that this process may not write to; root gives up its privilege for it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        yield folder
        if was_root:
            os.seteuid(0)
        os.chmod(folder, 0o755)


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [
        ("foo://place/a", None, "no file system for foo://: Protocol not known: foo; correct the URL"),
        ("s3://bucket/a", "s3fs", r"no file system for s3://: .*; pip install 'embedding-platform\[s3\]'"),
        ("gs://bucket/a", "gcsfs", r"no file system for gs://: .*; pip install 'embedding-platform\[gcs\]'"),
        ("az://container/a", "adlfs", r"no file system for az://: .*; pip install 'embedding-platform\[azure\]'"),
        ("simplecache::s3://bucket/a", "s3fs", r"s3://: .*; pip install 'embedding-platform\[s3\]'"),
        ("ssh://me:s3cr3t@host/a", "paramiko", "no file system for ssh://: .*paramiko.*; install what it names"),
    ],
)
def test_a_protocol_that_nothing_serves_is_the_users_mistake(monkeypatch, url, module, message):
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)
    calls = [
        lambda: storage.write_bytes(url, b""),
        lambda: storage.read_table(url, SCHEMA),
        lambda: storage.change_mark(url),
        lambda: storage.table_names(url),
        lambda: list(storage.iterate_shards(url, SCHEMA)),
        lambda: storage.remove_shards(url, []),
        lambda: storage.compact_shards(url, SCHEMA, lambda table: table, 1),
        lambda: storage.subfolders(url),
        lambda: storage.remove_sibling_folders(url, {}),
        lambda: storage.shard_marks(url),
    ]
    for call in calls:
        with pytest.raises(PlatformError, match=message) as refusal:
            call()
        assert "s3cr3t" not in str(refusal.value)


def test_a_local_name_may_hold_two_colons(tmp_path):
    folder = storage.join(str(tmp_path), "a::b", "now")
    storage.append_shard(folder, table(1))
    storage.append_shard(storage.join(str(tmp_path), "a::b", "before"), table(2))
    storage.remove_sibling_folders(folder, storage.sibling_folders(folder))
    assert storage.subfolders(str(tmp_path / "a::b")) == ["now"]
    assert numbers_in(storage.read_shards(folder, SCHEMA)) == [1]


def test_a_table_is_replaced_as_a_whole(root):
    url = storage.join(root, "deep", "a.parquet")
    assert storage.read_table(url, SCHEMA).equals(SCHEMA.empty_table())
    storage.write_table(url, table(1, 2))
    storage.write_table(url, table(3))
    assert storage.read_table(url, SCHEMA).equals(table(3))
    assert storage.table_names(storage.join(root, "deep")) == ["a.parquet"]


def test_rows_of_a_table_are_counted_without_reading_them(root):
    url = storage.join(root, "a.parquet")
    assert storage.row_count(url) == 0
    storage.write_table(url, table(*range(5)))
    assert storage.row_count(url) == 5


def test_a_mark_of_a_shard_changes_when_other_bytes_take_its_name(root):
    first, second = (storage.append_shard(root, table(number)) for number in range(2))
    marks = storage.shard_marks(root)
    assert sorted(marks) == sorted([first, second])
    assert storage.shard_marks(root) == marks
    storage.write_table(storage.join(root, first), table(7, 8, 9))
    changed = storage.shard_marks(root)
    assert changed[second] == marks[second]
    assert changed[first] != marks[first]


def test_a_mark_changes_with_every_replacement(root):
    url = storage.join(root, "a.parquet")
    marks = [storage.change_mark(url)]
    for number in range(3):
        storage.write_table(url, table(number))
        marks.append(storage.change_mark(url))
        assert storage.change_mark(url) == marks[-1]
    assert marks[0] == ""
    assert len(set(marks)) == 4


def test_the_time_of_a_replacement_is_told_and_none_of_what_is_absent(root):
    url = storage.join(root, "a.parquet")
    assert storage.modified_at(url) == 0
    storage.write_table(url, table(1))
    assert abs(storage.modified_at(url) - time.time()) < 3600


def test_shards_are_named_by_their_content(root):
    folder = storage.join(root, "shards")
    assert storage.append_shard(folder, table(1)) == storage.append_shard(folder, table(1))
    storage.append_shard(folder, table(2))
    assert len(storage.table_names(folder)) == 2
    assert numbers_in(storage.read_shards(folder, SCHEMA)) == [1, 2]


def test_shards_are_read_one_by_one_by_column_and_by_name(root):
    folder = storage.join(root, "shards")
    names = [storage.append_shard(folder, table(number)) for number in range(3)]
    assert storage.read_shards(folder, SCHEMA, ["number", "id"]).column_names == ["number", "id"]
    assert storage.read_shards(folder, SCHEMA, ["id"]).column_names == ["id"]
    (only,) = storage.iterate_shards(folder, SCHEMA, names=[names[1]])
    assert numbers_in(only) == [1]


def test_an_absent_folder_is_an_empty_one(root):
    folder = storage.join(root, "none")
    assert storage.table_names(folder) == storage.subfolders(folder) == []
    assert storage.read_shards(folder, SCHEMA).equals(SCHEMA.empty_table())
    assert storage.shard_marks(folder) == storage.sibling_folders(storage.join(folder, "v1")) == {}
    storage.remove_sibling_folders(storage.join(folder, "v1"), {})


def test_a_removed_shard_is_gone_and_may_be_removed_again(root):
    folder = storage.join(root, "shards")
    first, second = (storage.append_shard(folder, table(number)) for number in range(2))
    storage.remove_shards(folder, [first])
    storage.remove_shards(folder, [first])
    assert storage.table_names(folder) == [second]


def test_sibling_folders_go_and_the_folder_itself_and_those_at_work_stay(root):
    for version in ("v1", "v2", "v3", "v4"):
        storage.append_shard(storage.join(root, "source", version), table(1))
    storage.append_shard(storage.join(root, "other", "v1"), table(1))
    older = storage.sibling_folders(storage.join(root, "source", "v2"))
    assert sorted(older) == ["v1", "v3", "v4"]
    storage.append_shard(storage.join(root, "source", "v4"), table(2))
    storage.append_shard(storage.join(root, "source", "v5"), table(1))
    storage.remove_sibling_folders(storage.join(root, "source", "v2"), older)
    assert storage.subfolders(storage.join(root, "source")) == ["v2", "v4", "v5"]
    assert storage.subfolders(root) == ["other", "source"]


def test_a_reader_that_a_compaction_overtakes_misses_no_row(root):
    folder = storage.join(root, "shards")
    names = [storage.append_shard(folder, table(number)) for number in range(4)]
    shards = storage.iterate_shards(folder, SCHEMA)
    met = numbers_in(next(shards))
    storage.append_shard(folder, table(0, 1, 2, 3))
    storage.remove_shards(folder, names)
    for shard in shards:
        met += numbers_in(shard)
    assert set(met) == {0, 1, 2, 3}


@pytest.mark.parametrize("rows", [[0], [2, 3, 4], [0, 9], [1, 2, 5, 6, 9], list(range(10))])
def test_some_rows_of_a_shard_are_read_by_their_numbers(root, monkeypatch, rows):
    monkeypatch.setattr(storage, "ROWS_PER_GROUP", 3)
    folder = storage.join(root, "shards")
    names = [storage.append_shard(folder, table(*range(first, first + 10))) for first in (0, 100)]
    chosen = {names[1]: np.array(rows), names[0]: np.array([4])}
    first, second = storage.iterate_rows(folder, SCHEMA, ["number"], lambda: chosen)
    assert first["number"].to_pylist() == [100 + row for row in rows]
    assert second["number"].to_pylist() == [4]


def test_a_table_that_is_replaced_while_it_is_read_is_one_of_both(root):
    url = storage.join(root, "a.parquet")
    tables = [table(*range(size)) for size in (10, 1000)]
    storage.write_table(url, tables[0])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [storage.write_table(url, tables[turn % 2]) for turn in range(300)])
        while not writing.done():
            found = storage.read_table(url, SCHEMA)
            assert found.equals(tables[0]) or found.equals(tables[1])


def test_a_table_is_read_by_columns_and_in_pieces(root, monkeypatch):
    monkeypatch.setattr(storage, "ROWS_PER_GROUP", 4)
    url = storage.join(root, "a.parquet")
    assert list(storage.iterate_table(url, SCHEMA)) == []
    assert storage.read_table(url, SCHEMA, ["id"]).column_names == ["id"]
    storage.write_table(url, table(*range(10)))
    assert storage.read_table(url, SCHEMA, ["number"]).equals(table(*range(10)).select(["number"]))
    pieces = list(storage.iterate_table(url, SCHEMA))
    assert [piece.num_rows for piece in pieces] == [4, 4, 2]
    assert pa.concat_tables(pieces).equals(table(*range(10)))


def test_a_named_shard_that_is_gone_is_an_error(root):
    folder = storage.join(root, "shards")
    storage.append_shard(folder, table(1))
    with pytest.raises(FileNotFoundError):
        list(storage.iterate_shards(folder, SCHEMA, names=["gone.parquet"]))


def test_compactions_at_once_lose_no_row(root):
    folder = storage.join(root, "shards")
    for number in range(60):
        storage.append_shard(folder, table(number))
    with ThreadPoolExecutor(3) as pool:
        compactions = [pool.submit(storage.compact_shards, folder, SCHEMA, lambda found: found, 50) for _ in range(3)]
        for number in range(60, 80):
            storage.append_shard(folder, table(number))
        for compaction in compactions:
            compaction.result()
    assert set(numbers_in(storage.read_shards(folder, SCHEMA))) == set(range(80))
    assert len(storage.table_names(folder)) < 60


def test_files_that_were_being_written_are_no_tables(tmp_path):
    storage.append_shard(str(tmp_path), table(1))
    (tmp_path / ".writing-abc").write_bytes(b"half")
    (tmp_path / ".writing-abc.parquet").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"not a table")
    assert numbers_in(storage.read_shards(str(tmp_path), SCHEMA)) == [1]


def test_what_killed_writers_left_goes_after_a_day(tmp_path):
    shards = tmp_path / "source" / "shards"
    storage.append_shard(str(shards), table(1))
    for name, hours in {".writing-old": 25, ".writing-young": 23, ".writing-ahead": -48, "notes.txt": 100}.items():
        (shards / name).write_bytes(b"half")
        os.utime(shards / name, (time.time() - 3600 * hours,) * 2)
    assert storage.leftovers(str(tmp_path)) == [str(shards / ".writing-old")]
    storage.remove_leftovers(str(tmp_path))
    assert storage.leftovers(str(tmp_path)) == []
    assert len(list(shards.iterdir())) == 4
    assert numbers_in(storage.read_shards(str(shards), SCHEMA)) == [1]
    assert storage.leftovers(str(tmp_path / "absent")) == []


def damaged(path: Path) -> None:
    path.write_bytes(b"this is no Parquet file")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def scrambled(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[4:60] = bytes(255 - byte for byte in payload[4:60])
    path.write_bytes(payload)


def of_other_columns(path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"]}), path)


def of_other_types(path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "number": [{"a": 1}]}), path)


def of_no_numbers(path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "number": ["one"]}), path)


@pytest.mark.parametrize(
    "harm", [damaged, emptied, cut_short, scrambled, of_other_columns, of_other_types, of_no_numbers]
)
def test_an_unreadable_file_is_named_with_the_mend(tmp_path, harm):
    path = tmp_path / storage.append_shard(str(tmp_path), table(*range(100)))
    harm(path)
    for read in (
        lambda: storage.read_shards(str(tmp_path), SCHEMA),
        lambda: storage.read_table(str(path), SCHEMA),
    ):
        with pytest.raises(PlatformError) as caught:
            read()
        message = str(caught.value)
        assert str(path) in message
        assert "remove this file and run again" in message
        assert "\n" not in message


def test_a_folder_that_may_not_be_written_is_named_with_the_mend(read_only_folder):
    url = storage.join(read_only_folder, "a.parquet")
    with pytest.raises(PlatformError, match=r"a\.parquet: Permission denied; .*permit writing"):
        storage.write_table(url, table(1))
    with pytest.raises(PlatformError, match="Permission denied"):
        storage.write_table(storage.join(read_only_folder, "deeper", "a.parquet"), table(1))


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(PlatformError, match="store"):
        storage.write_table(str(tmp_path / "store" / "a.parquet"), table(1))


def test_a_full_disk_leaves_the_old_table_and_nothing_beside_it(tmp_path):
    url = str(tmp_path / "a.parquet")
    storage.write_table(url, table(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PlatformError, match="free space"):
            storage.write_bytes(url, os.urandom(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert numbers_in(storage.read_table(url, SCHEMA)) == [1]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_in_the_middle_leaves_the_old_table(tmp_path, moment):
    url = str(tmp_path / "a.parquet")
    storage.write_table(url, table(1))
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from embedding_platform import storage

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        os.{moment} = die
        storage.write_bytes(sys.argv[1], b"half")
        """
    )
    killed = subprocess.run([sys.executable, "-c", script, url], check=False)
    assert killed.returncode == -9
    assert sorted(os.listdir(tmp_path))[0].startswith(".writing-")
    assert storage.table_names(str(tmp_path)) == ["a.parquet"]
    assert numbers_in(storage.read_table(url, SCHEMA)) == [1]
    storage.write_table(url, table(2))
    assert numbers_in(storage.read_table(url, SCHEMA)) == [2]
