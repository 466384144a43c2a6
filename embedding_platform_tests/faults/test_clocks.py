"""Clocks that are set back, and files of odd times: nothing depends on which time is the later."""

import datetime
import os
import time
from pathlib import Path

import dagster as dg
import pytest

from embedding_platform.defs import sensors
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.faults.indexing import assert_true_to_media, edit, index
from embedding_platform_tests.reconcile.small_lake import Lake, counts

YEAR = 365 * 24 * 3600.0


@pytest.fixture
def client(tmp_path: Path):
    directory = str(tmp_path / "milvus")
    yield connect(directory)
    close_directory(directory)


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clock that stamps vectors be off by so many seconds."""

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(seconds=seconds)

    monkeypatch.setattr("embedding_platform.vectors.store.datetime", Shifted)


@pytest.mark.parametrize("shift", [-YEAR, 60 * YEAR, -1e-6])
def test_a_file_of_any_other_time_is_read_again_and_of_the_same_time_is_not(client, lake: Lake, shift: float) -> None:
    index(client, lake)
    path = lake.path("n0")
    then = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + int(shift * 1e9)))
    assert path.stat().st_size == then.st_size
    report = lake.files()
    assert (counts(report), report.hashed) == ((0, 1, 0, 4), 1)
    index(client, lake)
    assert_true_to_media(client, lake)
    assert lake.files().hashed == 0


def test_a_clock_set_back_between_runs_changes_nothing(client, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    index(client, lake)
    for shift in (-YEAR, YEAR, -2 * YEAR):
        edit(lake)
        with monkeypatch.context() as patch:
            set_clock(patch, shift)
            (report,) = index(client, lake)
            assert report.sync.batches > 0
            assert index(client, lake)[0].sync.batches == 0
        assert_true_to_media(client, lake)
        lake.write("n1", 1)
        lake.path("new").unlink()
        index(client, lake)
        assert_true_to_media(client, lake)


@pytest.mark.parametrize(
    ("seconds_ago", "is_due"),
    [(1.0, False), (sensors.SECONDS_TO_RETRY + 1, True), (-YEAR, True)],
    ids=["just now", "long ago", "in the future, since the clock was set back"],
)
def test_a_failed_run_is_tried_again_whatever_the_clock_said_then(
    platform, instance: dg.DagsterInstance, seconds_ago: float, is_due: bool
) -> None:
    source = Path(platform.settings.media_url) / "letters"
    source.mkdir()
    (source / "a.txt").write_text("words")
    seen = platform.seen("text", "letters")
    last = sensors._LastRun("run", sensors._state(seen), failed_at=time.time() - seconds_ago)
    assert sensors._is_due(platform, "text", "letters", seen, last, is_partition=True) == is_due
