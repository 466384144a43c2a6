"""Parts that belong together: whatever ends the process that watches over them, none of them is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedding_platform import supervision
from embedding_platform.supervision import Running, end_leftovers
from embedding_platform_tests.milvus_server import ends

PATIENCE_SECONDS = 300.0


class Supervised:
    """A supervisor of two small parts in a process of its own."""

    def __init__(self, folder: Path, how: str, seconds_to_end: float) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "embedding_platform_tests.small_supervisor", folder, how, seconds_to_end]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pids(self, name: str) -> list[tuple[int, int]]:
        """The numbers of each process that the part has been so far, and of its child."""
        file = self.folder / f"{name}.pids"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(own), int(child)) for own, child in (line.split() for line in lines)]

    def everybody(self) -> list[int]:
        return [pid for name in ("first", "second") for pids in self.pids(name) for pid in pids]

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(how: str = "plain", seconds_to_end: float = 20.0) -> Supervised:
        supervised = Supervised(tmp_path, how, seconds_to_end)
        started.append(supervised)
        wait_until(lambda: bool(supervised.pids("second")))
        return supervised

    yield start
    for supervised in started:
        supervised.process.kill()
        supervised.process.wait()
        for pid in supervised.everybody():
            assert ends(pid), "nothing may outlive its supervisor"
        assert all(len(supervised.everybody()) >= 4 for supervised in started)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_ends_everything(supervise, ending) -> None:
    supervised = supervise()
    supervised.process.send_signal(ending)
    assert supervised.process.wait(PATIENCE_SECONDS) == 0
    assert len(supervised.everybody()) == 4
    assert all(ends(pid) for pid in supervised.everybody())
    assert supervised.said() == ""


def test_a_signal_while_a_part_starts_ends_everything(supervise) -> None:
    supervised = supervise("never ready")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(PATIENCE_SECONDS) == 0
    assert all(ends(pid) for pid in supervised.everybody())


def test_a_part_that_does_not_come_to_work_is_an_error_and_the_others_end(tmp_path) -> None:
    supervised = Supervised(tmp_path, "broken", 20)
    told, _ = supervised.process.communicate(timeout=PATIENCE_SECONDS)
    assert supervised.process.returncode == 1
    assert told.splitlines()[-1] == "second ended with status 1 while it started; see what it said above"
    assert len(supervised.pids("first")) == 1
    assert all(ends(pid) for pid in supervised.everybody())


def test_what_does_not_end_is_killed(supervise) -> None:
    supervised = supervise("stubborn", 1)
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(PATIENCE_SECONDS) == 0
    assert all(ends(pid) for pid in supervised.everybody())
    assert supervised.said() == "killed second; the next start takes up what was under way\n"


def test_a_second_signal_does_not_wait(supervise) -> None:
    supervised = supervise("stubborn", 600)
    supervised.process.send_signal(signal.SIGINT)
    ((first, _),) = supervised.pids("first")
    assert ends(first), "the first signal was heard"
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.process.wait(PATIENCE_SECONDS) == 0
    assert all(ends(pid) for pid in supervised.everybody())


@pytest.mark.parametrize(("how", "seconds_to_end"), [("plain", 20), ("stubborn", 1)])
def test_a_killed_supervisor_leaves_nobody_behind(supervise, how, seconds_to_end) -> None:
    supervised = supervise(how, seconds_to_end)
    supervised.process.kill()
    supervised.process.wait()
    assert len(supervised.everybody()) == 4
    assert all(ends(pid) for pid in supervised.everybody())


def test_a_part_that_was_killed_is_started_again_without_what_it_left(supervise) -> None:
    supervised = supervise()
    ((own, child),) = supervised.pids("first")
    os.kill(own, signal.SIGKILL)
    wait_until(lambda: len(supervised.pids("first")) == 2)
    assert ends(child)
    (_, (again, _)) = supervised.pids("first")
    assert [(name, pid) for name, pid, _ in json.loads((supervised.folder / "note.json").read_text())] == [
        ("first", again),
        ("second", supervised.pids("second")[0][0]),
    ]
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(PATIENCE_SECONDS) == 0
    assert supervised.said() == f"first (pid {own}) was killed by SIGKILL; started again as pid {again}\n"


def test_a_part_that_dies_over_and_over_ends_everything(supervise) -> None:
    supervised = supervise("weak")
    assert supervised.process.wait(PATIENCE_SECONDS) == 1
    assert len(supervised.pids("second")) == 1 + supervision.MOST_DEATHS
    assert all(ends(pid) for pid in supervised.everybody())
    *again, last = supervised.said().splitlines()
    assert len(again) == supervision.MOST_DEATHS
    assert "second (pid " in last
    assert "ended with status 3, for the 4th time in 120 s; everything is stopped" in last


def test_a_number_that_another_process_was_given_is_not_the_process_that_had_it() -> None:
    assert Running.of("this", os.getpid()).lives
    assert not Running("another", os.getpid(), Running.of("this", os.getpid()).born - 60).lives
    assert not Running("nobody", 2**22 + 1, 0.0).lives


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_a_killed_start_left_is_ended_where_it_works_in_the_folder(tmp_path, monkeypatch, where) -> None:
    monkeypatch.setattr(supervision, "SECONDS_TO_END", 0.0)
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], cwd=tmp_path, start_new_session=True
    ) as left:
        said: list[str] = []
        folder = tmp_path if where == "here" else tmp_path.parent
        end_leftovers([Running.of("daemon", left.pid)], str(folder), said.append)
        assert said == [f"waiting for daemon (pid {left.pid}) of a start that was killed"]
        if where == "elsewhere":
            assert left.poll() is None
            left.kill()
        assert left.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_another_process_under_a_former_number_is_left_alone(tmp_path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], cwd=tmp_path, start_new_session=True
    ) as other:
        end_leftovers([Running("daemon", other.pid, Running.of("", other.pid).born - 60)], str(tmp_path), print)
        assert other.poll() is None
        other.kill()
