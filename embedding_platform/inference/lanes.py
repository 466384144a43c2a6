"""Running batches on an encoder's lanes, and what becomes of those that fail."""

import queue
import sys
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.inference.batch_size import BatchSize, cut, rows
from embedding_platform.inference.memory import is_device_lost, is_out_of_memory
from embedding_platform.inference.stopwatch import Stopwatch
from embedding_platform.models.encoder import Encoder, Lane, Prepared
from embedding_platform.records import Segment
from embedding_platform.spaces import Role


@dataclass(frozen=True, eq=False)
class PreparedSegment:
    """A segment, its content as a lane takes it, and what that costs and is shaped by (`Encoder`)."""

    segment: Segment
    prepared: Prepared
    cost: int
    shape: Hashable | None


QUEUED = 2
"""Batches for each lane, on average, that run or wait for one; whoever has more of them waits as well."""

Answer: TypeAlias = np.ndarray | str
"""The vector, float32 [d], of one content; or why the model failed on it."""


class Lanes:
    """A thread for each lane of an encoder, which all take batches from one queue.

    To be used in a `with` block; at its end, batches that have not begun never do, and the
    threads end.
    """

    def __init__(self, encoder: Encoder, budgets: Mapping[Role, int], stopwatch: Stopwatch | None = None) -> None:
        self._device = encoder.device
        self._stopwatch = stopwatch or Stopwatch()
        self._sizes = {role: BatchSize(budget) for role, budget in budgets.items()}
        self._learning = threading.Lock()
        self._turns = _Turns()
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in encoder.lanes:
            self._free.put(lane)
        self._own = threading.local()
        self.count = self._free.qsize()
        self._room = threading.Semaphore(QUEUED * self.count)
        self._pool = ThreadPoolExecutor(self.count, "lane", initializer=self._choose_lane)

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, role: Role, batch: Sequence[PreparedSegment]) -> "Future[list[Answer]]":
        """Have a batch of one cost and shape embedded; the result has an answer for each content, in order.

        A batch that has room for more is filled up with its last content, so that all batches
        of its contents' shape have one size (see `Encoder.shape`; those of no shape may mix
        costs, and run as they are). One for which memory does not suffice goes on in smaller
        ones, whose vectors may differ in their last bits from those of a full batch. One that
        fails for another reason is halved until the content that it fails on is alone, its
        parts filled up as well.

        Waits while QUEUED batches for each lane have not ended.

        The result raises:
            PlatformError: if memory does not suffice for one content alone, or the device failed.
            Exception: whatever else a lane raised that is no RuntimeError, ValueError or RejectedError.
        """
        self._room.acquire()
        answers = self._pool.submit(self._embed, role, batch)
        answers.add_done_callback(lambda _: self._room.release())
        return answers

    def allowed(self, role: Role) -> int:
        """The summed cost that a batch may have at present without being cut."""
        return self._sizes[role].allowed

    def _choose_lane(self) -> None:
        self._own.lane = self._free.get()

    def _embed(self, role: Role, batch: Sequence[PreparedSegment]) -> list[Answer]:
        answers: list[Answer] = []
        waiting, alone = [batch], False
        while waiting:
            batch = waiting.pop()
            allowed = self.allowed(role)
            first = next(cut([one.cost for one in batch], allowed))
            if batch[first.stop :]:
                waiting.append(batch[first.stop :])
            batch = batch[first]
            was_alone, alone = alone, False
            full = _filled(batch, allowed)
            found = self._try(role, full, was_alone)
            if isinstance(found, np.ndarray):
                answers += [vector for _, vector in zip(full, found, strict=True)][: len(batch)]
            elif found.out_of_memory:
                if len(full) == 1 and was_alone:
                    raise PlatformError(
                        f"memory of {self._device} does not suffice for one {role} content of {batch[0].segment.path}; "
                        "stop what else runs there, or choose a smaller model or another device"
                    )
                waiting.append(batch)
                alone = True
            elif len(batch) == 1:
                answers.append(f"the model failed on it: {found.reason}")
            else:
                waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
        return answers

    def _try(self, role: Role, batch: Sequence[PreparedSegment], alone: bool) -> "np.ndarray | _Failure":
        costs = [one.cost for one in batch]
        failure = None
        with self._turns.turn(alone):
            if alone:
                _release_cached_memory()
            try:
                with self._stopwatch.running("model"):
                    vectors: np.ndarray = self._own.lane(role, [one.prepared for one in batch])
            except (MemoryError, RuntimeError, ValueError, RejectedError) as error:
                if is_device_lost(error):
                    raise PlatformError(
                        f"{self._device} failed: {first_line(error)}; run again, which goes on from what is stored"
                    ) from error
                # The error itself is let go: its traceback keeps the memory of the batch.
                failure = _Failure(is_out_of_memory(error), first_line(error))
        with self._learning:
            if failure is None:
                self._sizes[role].went_well(costs)
            elif failure.out_of_memory:
                self._sizes[role].ran_out(costs)
        return vectors if failure is None else failure


def _filled(batch: Sequence[PreparedSegment], allowed: int) -> list[PreparedSegment]:
    """The batch, and its last content again as often as there is room, if shapes matter."""
    last = batch[-1]
    repeats = 0 if last.shape is None else rows(last.cost, allowed) - len(batch)
    return [*batch, *[last] * repeats]


@dataclass(frozen=True)
class _Failure:
    out_of_memory: bool
    reason: str


class _Turns:
    """Batches run side by side, but one that follows a lack of memory runs alone.

    Otherwise it would fail for the memory that another lane of the same device holds, and
    be halved down to nothing before that one ends.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._kept = False

    @contextmanager
    def turn(self, alone: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._kept)
            self._kept = alone
            self._changed.wait_for(lambda: not alone or self._running == 0)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._kept = self._kept and not alone
                self._changed.notify_all()


def _release_cached_memory() -> None:
    """What torch keeps for batches of other shapes goes back to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
