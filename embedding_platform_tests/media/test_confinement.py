"""The processes that parse documents: killed at work, dead while idle, and gone with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from embedding_platform.errors import RejectedError
from embedding_platform.media import confinement
from embedding_platform.media.confinement import SMALL_BYTES, parse
from embedding_platform.media.limits import USUAL_LIMITS, stands

LARGE = b"words and words " * SMALL_BYTES
"""Text that goes to a process of its own."""

SLOW = b"<a " * 300_000 + b"<div>x" * 100_000
"""HTML that takes minutes."""

PARENT = """
import sys
from embedding_platform.media import confinement
from embedding_platform.media.limits import USUAL_LIMITS
confinement.parse("plain", b"words and words " * confinement.SMALL_BYTES, USUAL_LIMITS)
print(confinement._IDLE[0][1].pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def none_idle() -> Iterator[None]:
    """No process from another test, and none left to another."""
    confinement._end_idle()
    yield
    confinement._end_idle()


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true in a minute."""
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_a_process_parses_one_document_after_the_other() -> None:
    assert parse("plain", LARGE, USUAL_LIMITS).text == LARGE.decode()
    ((_, process),) = confinement._IDLE
    assert parse("plain", LARGE, USUAL_LIMITS).text == LARGE.decode()
    assert [idle.pid for _, idle in confinement._IDLE] == [process.pid]


def test_a_document_whose_process_is_killed_is_taken_up_later() -> None:
    parse("plain", LARGE, USUAL_LIMITS)
    ((_, process),) = confinement._IDLE
    killer = threading.Thread(
        target=lambda: eventually(lambda: not confinement._IDLE) and os.kill(process.pid, signal.SIGKILL)
    )
    killer.start()
    with pytest.raises(RejectedError, match=r"cannot be read now: .* ended by SIGKILL; a later run") as failure:
        parse("html", SLOW, USUAL_LIMITS)
    killer.join()
    assert not stands(str(failure.value), USUAL_LIMITS)
    assert parse("plain", LARGE, USUAL_LIMITS).text == LARGE.decode()


def test_a_process_that_died_while_idle_is_replaced() -> None:
    parse("plain", LARGE, USUAL_LIMITS)
    ((_, process),) = confinement._IDLE
    process.kill()
    assert eventually(lambda: process.poll() is not None)
    assert parse("plain", LARGE, USUAL_LIMITS).text == LARGE.decode()
    ((_, other),) = confinement._IDLE
    assert other.pid != process.pid


@pytest.mark.parametrize("is_killed", [False, True])
def test_processes_end_with_their_parent(is_killed: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        if is_killed:
            parent.kill()
        parent.stdin.close()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_process_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse("plain", LARGE, USUAL_LIMITS)
    ((_, process),) = confinement._IDLE
    monkeypatch.setattr(confinement, "_END_SECONDS", 0.1)
    os.kill(process.pid, signal.SIGSTOP)
    confinement._end_idle()
    assert process.returncode == -signal.SIGKILL
    assert confinement._IDLE == []
