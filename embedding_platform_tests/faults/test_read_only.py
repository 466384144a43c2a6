"""Folders that may not be written, or are no folders: one line, nothing lost, and the next run goes on."""

from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect, serve
from embedding_platform_tests.faults.conftest import SmallDisk
from embedding_platform_tests.faults.indexing import assert_true_to_media, edit, index, one_line, published_texts
from embedding_platform_tests.reconcile.small_lake import Lake


def test_a_store_that_turns_read_only_is_told_and_taken_up_again(small_disk: SmallDisk, tmp_path: Path) -> None:
    lake = Lake(small_disk.path, media_name=str(tmp_path / "media"))
    directory = str(tmp_path / "milvus")
    for number in range(5):
        lake.write(f"n{number}", number)
    client = connect(directory)
    index(client, lake)
    before = published_texts(client, lake)
    edit(lake)
    small_disk.remount("ro")
    with pytest.raises(PlatformError, match=r"cannot write .*: Read-only file system; free space or permit") as failure:
        index(client, lake)
    one_line(failure)
    assert published_texts(client, lake) == before
    small_disk.remount("rw")
    index(client, lake)
    assert_true_to_media(client, lake)
    close_directory(directory)


def test_a_milvus_folder_that_turns_read_only_is_told_and_taken_up_again(
    small_disk: SmallDisk, lake: Lake, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = str(small_disk.path / "milvus")
    index(connect(directory), lake)
    close_directory(directory)
    small_disk.remount("ro")
    for open_it in (lambda: connect(directory, timeout_seconds=1), lambda: serve(directory).__enter__()):
        with pytest.raises(PlatformError, match=r"cannot (open|serve) .*Read-only file system; .* may be written"):
            open_it()
    small_disk.remount("rw")
    client = connect(directory)
    edit(lake)
    index(client, lake)
    assert_true_to_media(client, lake)
    close_directory(directory)
    assert "Traceback" not in capfd.readouterr().err


def test_a_store_root_that_is_a_file_is_told(lake: Lake) -> None:
    Path(lake.store).write_bytes(b"")
    with pytest.raises(PlatformError, match="store") as failure:
        lake.run()
    one_line(failure)
    Path(lake.store).unlink()
    assert lake.run()[2].embedded == 5


def test_a_stale_note_of_a_server_on_a_read_only_disk_is_no_stack_trace(small_disk: SmallDisk) -> None:
    directory = small_disk.path / "milvus"
    (small_disk.path / "milvus.server.json").write_text("not json")
    small_disk.remount("ro")
    with pytest.raises(PlatformError, match="cannot open the Milvus Lite directory") as failure:
        connect(str(directory), timeout_seconds=1)
    one_line(failure)
