"""Clocks that are set back, and files of odd times: nothing depends on which time is the later."""

import datetime
import os
import time
from pathlib import Path

import pytest

from embedding_platform.defs import sensors
from embedding_platform.defs.runs_of_sources import LastRun
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.platform import Sight
from embedding_platform.watching import Look
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
    ("seconds_ago", "failures", "waits"),
    [
        (1.0, 1, True),
        (sensors.SECONDS_TO_RETRY + 1, 1, False),
        (sensors.SECONDS_TO_RETRY + 1, 2, True),
        (2 * sensors.SECONDS_TO_RETRY + 1, 2, False),
        (sensors.MOST_SECONDS_TO_RETRY + 1, 8, False),
        (-YEAR, 1, False),
    ],
    ids=["just now", "long ago", "again", "longer ago", "often", "in the future, since the clock was set back"],
)
def test_a_failed_run_is_tried_again_whatever_the_clock_said_then(
    seconds_ago: float, failures: int, waits: bool
) -> None:
    now = time.time()
    look = Look(Sight("state", holds=True, differs=True, looked_at=now), age="", is_unplaced=False, is_left=False)
    last = LastRun("run", "state", stopped_at=now - seconds_ago, failures=failures)
    assert sensors._is_too_early(last, look, now) == waits
    other = LastRun("run", "another state", stopped_at=now - seconds_ago, failures=failures)
    assert not sensors._is_too_early(other, look, now), "the media changed since"
