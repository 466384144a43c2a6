import itertools
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_platform.inference.read_ahead import ClosedError, ReadAhead

SOON = 60
"""Seconds after which something that should have happened counts as not happening."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@settings(deadline=None, max_examples=50)
@given(
    groups=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 0.0005])), max_size=6), max_size=10
    ),
    threads=st.integers(1, 4),
    limit=st.integers(1, 12),
)
def test_items_come_in_order_whatever_takes_long(groups, threads, limit):
    def expand(group: list[tuple[int, float]]) -> Iterator[tuple[int, float]]:
        for item in group:
            time.sleep(item[1])
            yield item

    with ReadAhead(groups, expand, threads, limit, weigh=lambda item: item[0]) as ahead:
        assert list(ahead) == [item for group in groups for item in group]


class Counted(np.ndarray):
    """An array that tells how many of its kind are alive."""

    alive = 0
    most = 0

    @classmethod
    def make(cls) -> "Counted":
        array = np.zeros(1).view(cls)
        with lock:
            cls.alive += 1
            cls.most = max(cls.most, cls.alive)
        weakref.finalize(array, cls.gone)
        return array

    @classmethod
    def gone(cls) -> None:
        with lock:
            cls.alive -= 1


lock = threading.RLock()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_no_more_items_are_alive_than_the_limit_and_one_for_each_thread(threads, limit, size):
    Counted.alive = Counted.most = 0
    groups = [size] * (120 // size + 1)
    with ReadAhead(groups, lambda size: (Counted.make() for _ in range(size)), threads, limit) as ahead:
        for number, item in enumerate(ahead):
            if number % 10 == 0:
                # What can be read ahead is read ahead now.
                time.sleep(0.002)
            del item
    # The consumer holds one, which the count of those that wait no longer holds.
    assert Counted.most <= limit + threads
    assert Counted.alive == 0


def test_an_item_is_let_go_while_its_group_goes_on():
    Counted.alive = 0
    goes_on = threading.Event()

    def expand(group: int) -> Iterator[Counted]:
        yield Counted.make()
        assert goes_on.wait(SOON)

    with ReadAhead([1], expand, threads=1, limit=9) as ahead:
        next(ahead)
        deadline = time.monotonic() + SOON
        while Counted.alive and time.monotonic() < deadline:
            time.sleep(0.002)
        assert Counted.alive == 0
        goes_on.set()


def test_while_nothing_is_taken_the_limit_is_filled_and_not_exceeded():
    made: list[int] = []
    filled = threading.Event()

    def expand(start: int) -> Iterator[int]:
        for number in itertools.count(start):
            made.append(number)
            if len(made) == 5:
                filled.set()
            yield number

    with ReadAhead([0, 1000], expand, threads=2, limit=5):
        assert filled.wait(SOON)
        time.sleep(0.02)
        assert 5 <= len(made) <= 5 - 1 + 2


def test_a_full_store_of_later_groups_does_not_stop_the_group_whose_turn_it_is():
    later_is_full = threading.Event()

    def expand(group: str) -> Iterator[str]:
        if group == "first":
            assert later_is_full.wait(SOON)
            for number in range(20):
                yield f"first {number}"
            return
        for number in range(20):
            if number == 3:
                later_is_full.set()
            yield f"{group} {number}"

    with ReadAhead(["first", "second"], expand, threads=2, limit=4) as ahead:
        assert list(ahead) == [f"{group} {number}" for group in ("first", "second") for number in range(20)]


def test_groups_are_expanded_side_by_side():
    both = threading.Barrier(2, timeout=SOON)

    def expand(group: int) -> Iterator[int]:
        both.wait()
        yield group

    with ReadAhead([1, 2], expand, threads=2, limit=4) as ahead:
        assert list(ahead) == [1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_after_what_was_given_before_it_and_not_before(threads):
    def expand(group: int) -> Iterator[int]:
        yield group
        if group == 3:
            raise KeyError("a bug")

    with ReadAhead(range(10), expand, threads, limit=50) as ahead:
        assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(KeyError, match="a bug"):
            next(ahead)


def test_an_error_that_is_no_exception_is_not_swallowed_either():
    def expand(group: int) -> Iterator[int]:
        raise SystemExit(3)
        yield

    with ReadAhead([1], expand, threads=1, limit=1) as ahead, pytest.raises(SystemExit):
        next(ahead)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_groups_comes_in_its_place(threads):
    def groups() -> Iterator[int]:
        yield from (0, 1)
        raise OSError("the disk went away")

    with ReadAhead(groups(), lambda group: [group] * 2, threads, limit=50) as ahead:
        assert [next(ahead) for _ in range(4)] == [0, 0, 1, 1]
        with pytest.raises(OSError, match="the disk went away"):
            next(ahead)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_leaving_early_ends_the_threads_and_asks_for_no_more(taken):
    asked = itertools.count()
    with ReadAhead(asked, lambda group: [group], threads=3, limit=2) as ahead:
        assert list(itertools.islice(ahead, taken)) == list(range(taken))
    with pytest.raises(ClosedError):
        next(ahead)
    assert next(asked) <= taken + 2 + 3 + 3


def test_one_who_waits_in_another_thread_hears_of_the_end():
    waits, goes_on, heard = threading.Event(), threading.Event(), []

    def expand(group: int) -> Iterator[int]:
        waits.set()
        assert goes_on.wait(SOON)
        yield group

    def take() -> None:
        try:
            next(ahead)
        except ClosedError as error:
            heard.append(error)
            goes_on.set()

    with ReadAhead([1], expand, threads=1, limit=1) as ahead:
        taker = threading.Thread(target=take)
        taker.start()
        assert waits.wait(SOON)
    taker.join(SOON)
    assert len(heard) == 1


@pytest.mark.parametrize("groups", [[], [[]], [[], []]])
def test_nothing_gives_nothing(groups):
    with ReadAhead(groups, lambda group: group, threads=2, limit=1) as ahead:
        assert list(ahead) == []
