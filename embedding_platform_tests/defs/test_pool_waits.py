"""Runs that wait for a place in a pool."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
import pytest
from dagster._core.execution.plan import active
from dagster._core.executor import in_process

from embedding_platform.defs.pool_waits import wait_asleep

OTHER = "another-run"


@dg.asset(pool="gpu")
def embedded() -> None:
    """Needs the pool's only place."""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance whose pool `gpu` has one place, which another run holds."""
    monkeypatch.setattr(in_process, "InstanceConcurrencyContext", in_process.InstanceConcurrencyContext)
    wait_asleep()
    with dg.instance_for_test() as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        assert instance.event_log_storage.claim_concurrency_slot("gpu", OTHER, "step").is_claimed
        yield instance


@contextmanager
def after(seconds: float, deed: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread while the block runs, unless it ends before."""
    timer = threading.Timer(seconds, deed)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def once_asleep(monkeypatch: pytest.MonkeyPatch, seconds: float, deed: Callable[[], object]) -> list[float]:
    """Do something when this thread has slept for so long in all; gives how long it slept each time."""
    naps: list[float] = []
    sleeper, sleep = threading.current_thread(), time.sleep

    def nap(duration: float) -> None:
        sleep(duration)
        if threading.current_thread() is sleeper:
            is_due = sum(naps) < seconds <= sum(naps) + duration
            naps.append(duration)
            if is_due:
                deed()

    monkeypatch.setattr(active.time, "sleep", nap)
    return naps


def let_go(instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.free_concurrency_slots_for_run(OTHER)


def test_a_run_that_waits_sleeps_and_takes_its_place_when_it_is_free(pool, monkeypatch) -> None:
    naps = once_asleep(monkeypatch, 2, lambda: let_go(pool))
    with after(60, lambda: let_go(pool)):
        assert dg.materialize([embedded], instance=pool).success
    assert 0 < len(naps) < 100, "not again and again without a pause"


def test_a_run_that_waits_is_cancelled_without_getting_its_place(pool, monkeypatch) -> None:
    once_asleep(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    # Were it not, it would get its place, and succeed.
    with after(30, lambda: let_go(pool)), pytest.raises(dg.DagsterExecutionInterruptedError):
        dg.materialize([embedded], instance=pool)
    info = pool.event_log_storage.get_concurrency_info("gpu")
    assert (info.active_run_ids, info.pending_run_ids) == ({OTHER}, set())
