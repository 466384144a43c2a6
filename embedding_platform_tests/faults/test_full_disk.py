"""A disk that fills up: one line, nothing half-written, nothing lost, and the next run goes on."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from pymilvus.exceptions import MilvusException

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect, serve
from embedding_platform.milvus.sync import read_rows
from embedding_platform.vectors import store as vector_store
from embedding_platform_tests.faults.conftest import SmallDisk
from embedding_platform_tests.faults.indexing import assert_true_to_media, collect, index, published_texts
from embedding_platform_tests.reconcile.small_lake import Lake, counts

PAGE = os.sysconf("SC_PAGE_SIZE")


def lake_with_store_on(disk: SmallDisk, media: Path) -> Lake:
    lake = Lake(disk.path, media_name=str(media))
    for number in range(5):
        lake.write(f"n{number}", number)
    return lake


def add(lake: Lake, *numbers: int) -> None:
    for number in numbers:
        lake.write(f"n{number}", number)


def names_in(folder: str) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]


@pytest.mark.parametrize(
    ("stage", "pages_left"), [("files", 0), ("segments", 0), ("segments", 6), ("embeddings", 0), ("embeddings", 6)]
)
def test_a_store_without_room_is_told_in_one_line_and_the_next_run_does_the_rest(
    small_disk: SmallDisk, tmp_path: Path, stage: str, pages_left: int
) -> None:
    lake = lake_with_store_on(small_disk, tmp_path / "media")
    lake.run()
    add(lake, *range(5, 205))
    stages = ["files", "segments", "embeddings"]
    for before in stages[: stages.index(stage)]:
        getattr(lake, before)()

    noted = pages_of(arrived(lake))
    small_disk.fill(left=pages_left * PAGE)
    for _ in range(2):
        with pytest.raises(PlatformError, match=r"cannot write .*: No space left on device; free space") as failure:
            getattr(lake, stage)()
        assert "\n" not in str(failure.value)
        assert not [name for name in names_in(lake.store) if name.startswith(".writing-")]
    # What is about to come is noted before any of it is stored.
    chunks = pages_left - (pages_of(arrived(lake)) - noted) if stage == "embeddings" else 0
    held = 5 + chunks * lake.batch.chunk
    assert (chunks > 0) == (stage == "embeddings" and pages_left > 0)
    assert len(vector_store.stored_hashes(vectors_of(lake), lake.fingerprint)) == held

    small_disk.free()
    files, segments, embeddings = lake.run()
    assert (len(files.items), segments.segments, segments.rejected) == (205, 205, [])
    assert (embeddings.embedded, embeddings.missing) == (205 - held, [])
    assert counts(lake.embeddings()) == (0, 0, 0, 205)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whichever_write_the_disk_refuses_the_next_run_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    plain = getattr(os, call)
    calls = 0

    def refused_at(number: int):
        def refused(*arguments):
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*arguments)

        return refused

    for number in range(1, 100):
        lake = Lake(tmp_path / str(number))
        add(lake, *range(6))
        calls = 0
        monkeypatch.setattr(storage.os, call, refused_at(number))
        try:
            lake.run()
        except PlatformError as error:
            assert "No space left on device; free space" in str(error)  # noqa: PT017
        else:
            break
        finally:
            monkeypatch.setattr(storage.os, call, plain)
        lake.run()
        assert counts(lake.embeddings()) == (0, 0, 0, 6)
        assert not [name for name in names_in(lake.store) if name.startswith(".writing-")]
    assert 4 <= number < 99, "files, segments and two chunks of vectors are written"


@pytest.fixture
def directory(small_disk: SmallDisk):
    directory = str(small_disk.path / "milvus")
    yield directory
    close_directory(directory)


@pytest.mark.parametrize("is_served", [False, True], ids=["opened here", "served"])
def test_milvus_lite_without_room_loses_no_row_and_the_next_run_does_the_rest(
    small_disk: SmallDisk, directory: str, lake: Lake, is_served: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(directory) if is_served else nullcontext():
        client = connect(directory)
        index(client, lake)
        before = published_texts(client, lake)
        add(lake, *range(5, 205))
        lake.run()
        small_disk.fill()
        for _ in range(2):
            with pytest.raises(PlatformError, match=r"Milvus could not write 200 rows .*No space left") as failure:
                collect(client, lake)
            assert "\n" not in str(failure.value)
        assert published_texts(client, lake) == before

        small_disk.free()
        (report,) = index(client, lake)
        assert report.sync.counts == {"new": 200, "stale": 0, "orphaned": 0, "unchanged": 5}
        assert_true_to_media(client, lake)
        if is_served:
            kill_server(directory)
            assert_true_to_media(client, lake)
        else:
            client.close()
            close_directory(directory)
            assert_true_to_media(connect(directory), lake)
    assert "Traceback" not in capfd.readouterr().err


def test_a_flush_that_the_disk_refuses_takes_no_row_from_readers(
    small_disk: SmallDisk, directory: str, lake: Lake
) -> None:
    client = connect(directory)
    index(client, lake)
    small_disk.fill()
    with pytest.raises(MilvusException, match="No space left"):
        client.flush(lake.target.collection, timeout=60)
    eventually(lambda: len(rows_of(client, lake)) == 5)
    small_disk.free()
    assert index(client, lake)[0].sync.batches == 0
    assert_true_to_media(client, lake)


def test_a_directory_that_a_full_disk_cannot_hold_is_not_served(small_disk: SmallDisk) -> None:
    directory = small_disk.path / "milvus"
    small_disk.fill()
    with pytest.raises(PlatformError, match=r"cannot serve .*; choose a folder on a disk with room"):
        serve(str(directory)).__enter__()
    assert [name for name in os.listdir(small_disk.path) if ".server.json" in name] == []
    small_disk.free()
    with serve(str(directory)) as uri:
        assert connect(uri).list_collections(timeout=60) == []


def kill_server(directory: str) -> None:
    with open(f"{directory}.server.json") as file:
        os.kill(json.load(file)["pid"], signal.SIGKILL)


def rows_of(client, lake: Lake) -> pd.Series:
    return read_rows(client, lake.target.partition("one"))


def vectors_of(lake: Lake) -> str:
    return layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, "one")


def arrived(lake: Lake) -> str:
    return layout.arrived_url(lake.store, lake.space.key, lake.fingerprint, "one")


def pages_of(path: str) -> int:
    return -(-os.path.getsize(path) // PAGE)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
