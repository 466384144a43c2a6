"""Running batches on an encoder's lanes, and what becomes of those that fail."""

import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.inference.batch_size import BatchSize, cut
from embedding_platform.inference.memory import is_device_lost, is_out_of_memory
from embedding_platform.models.encoder import Encoder, Lane, Prepared
from embedding_platform.records import Segment
from embedding_platform.spaces import Role


@dataclass(frozen=True, eq=False)
class PreparedSegment:
    """A segment, its content as a lane takes it, and the cost of that."""

    segment: Segment
    prepared: Prepared
    cost: int


Answer: TypeAlias = np.ndarray | str
"""The vector, float32 [d], of one content; or why the model failed on it."""


class Lanes:
    """A thread for each lane of an encoder, which all take batches from one queue.

    To be used in a `with` block; at its end, batches that have not begun never do, and the
    threads end.
    """

    def __init__(self, encoder: Encoder, budgets: Mapping[Role, int]) -> None:
        self._device = encoder.device
        self._sizes = {role: BatchSize(budget) for role, budget in budgets.items()}
        self._learning = threading.Lock()
        self._turns = _Turns()
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in encoder.lanes:
            self._free.put(lane)
        self._own = threading.local()
        self.count = self._free.qsize()
        self._pool = ThreadPoolExecutor(self.count, "lane", initializer=self._choose_lane)

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, role: Role, batch: Sequence[PreparedSegment]) -> "Future[list[Answer]]":
        """Have a batch of ascending costs embedded; the result has an answer for each content, in order.

        A batch for which memory does not suffice goes on in smaller ones. One that fails for
        another reason is halved until the content that it fails on is alone.

        The result raises:
            PlatformError: if memory does not suffice for one content alone, or the device failed.
            Exception: whatever else a lane raised that is no RuntimeError, ValueError or RejectedError.
        """
        return self._pool.submit(self._embed, role, batch)

    def _choose_lane(self) -> None:
        self._own.lane = self._free.get()

    def _embed(self, role: Role, batch: Sequence[PreparedSegment]) -> list[Answer]:
        answers: list[Answer] = []
        waiting, alone = [batch], False
        while waiting:
            batch = waiting.pop()
            first = next(cut([one.cost for one in batch], self._sizes[role].allowed))
            if batch[first.stop :]:
                waiting.append(batch[first.stop :])
            batch = batch[first]
            was_alone, alone = alone, False
            found = self._try(role, batch, was_alone)
            if isinstance(found, np.ndarray):
                answers += [vector for _, vector in zip(batch, found, strict=True)]
            elif found.out_of_memory:
                if len(batch) == 1 and was_alone:
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
