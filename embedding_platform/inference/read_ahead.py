"""Work done by threads ahead of its consumer, and handed over in the order of the input."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

Group = TypeVar("Group")
Item = TypeVar("Item")


class ClosedError(Exception):
    """What was read ahead is asked for after the end of its `with` block."""


@dataclass(eq=False)
class _Line(Generic[Item]):
    """What one group has given and nobody has taken: items and their weights."""

    items: deque[tuple[Item, int]] = field(default_factory=deque)
    ended: bool = False
    error: BaseException | None = None


class ReadAhead(Generic[Group, Item]):
    """Iterates over the items of many groups in order, while threads produce those to come.

    `expand` gives the items of one group, in one thread. An item is begun while those that
    wait weigh less than `limit` in all, so that they never weigh more than `limit` and one
    item for each thread. The group whose turn it is may begin one even so when none of its
    items waits: nothing else would ever make room.

    An error of `groups` or `expand` is raised where its item would have come. To be used in
    a `with` block: the threads start at its beginning, and have ended after it; an
    `expand` at work then is not begun again.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        expand: Callable[[Group], Iterable[Item]],
        threads: int,
        limit: int,
        weigh: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._groups = iter(groups)
        self._expand = expand
        self._limit = limit
        self._weigh = weigh
        self._threads = [
            threading.Thread(target=self._work, name=f"read ahead {number}", daemon=True) for number in range(threads)
        ]
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._lines: deque[_Line[Item]] = deque()
        self._waiting = 0
        self._all_taken = False
        self._closed = False

    def __enter__(self) -> "ReadAhead[Group, Item]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._lines.clear()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """The next item in order, as soon as it is there.

        Raises:
            ClosedError: if the `with` block has ended, also while this waits in another thread.
        """
        with self._changed:
            while True:
                self._changed.wait_for(self._can_go_on)
                if self._closed:
                    raise ClosedError
                if not self._lines:
                    raise StopIteration
                head = self._lines[0]
                if head.items:
                    item, weight = head.items.popleft()
                    self._waiting -= weight
                    self._changed.notify_all()
                    return item
                self._lines.popleft()
                self._changed.notify_all()
                if head.error is not None:
                    raise head.error

    def _can_go_on(self) -> bool:
        if self._closed or not self._lines:
            return self._closed or self._all_taken
        return bool(self._lines[0].items) or self._lines[0].ended

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            self._fill(*taken)

    def _take(self) -> tuple[_Line[Item], Group] | None:
        """The next group and its line. Lines stand in the order of the groups."""
        with self._taking:
            if self._all_taken or self._closed:
                return None
            line: _Line[Item] = _Line()
            try:
                group = next(self._groups)
            except StopIteration:
                line.ended = True
            except BaseException as error:  # noqa: BLE001 - raised by the consumer's next
                line.ended, line.error = True, error
            with self._changed:
                self._lines.append(line)
                self._all_taken = line.ended
                self._changed.notify_all()
            return None if line.ended else (line, group)

    def _fill(self, line: _Line[Item], group: Group) -> None:
        error = None
        try:
            items = iter(self._expand(group))
            while self._wait_for_room(line):
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._put(line, item)
                # It may have been used up long before there is room for another.
                del item
        except BaseException as caught:  # noqa: BLE001 - raised by the consumer's next
            error = caught
        with self._changed:
            line.ended, line.error = True, error
            self._changed.notify_all()

    def _wait_for_room(self, line: _Line[Item]) -> bool:
        """Wait until the line may have one more; False if it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._waiting < self._limit or (line is self._lines[0] and not line.items)
            )
            return not self._closed

    def _put(self, line: _Line[Item], item: Item) -> None:
        weight = self._weigh(item)
        with self._changed:
            line.items.append((item, weight))
            self._waiting += weight
            self._changed.notify_all()
