"""How large a batch may be: cut by cost, made smaller when memory does not suffice, and larger again with care."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PATIENCE = 32
"""Full batches that have to go well before a larger one is tried."""

GROWTH = 10
"""A larger batch is larger by one part in so many."""


def padded_cost(costs: Sequence[int]) -> int:
    """What a batch of contents of these costs comes to: each is padded to the longest."""
    return max(costs) * len(costs)


def cut(costs: Sequence[int], budget: int) -> Iterator[slice]:
    """Cut ascending costs into batches whose padded cost stays within the budget, or that hold one content."""
    start = 0
    for place, cost in enumerate(costs):
        if place > start and cost * (place + 1 - start) > budget:
            yield slice(start, place)
            start = place
    if costs:
        yield slice(start, len(costs))


@dataclass
class BatchSize:
    """The padded cost that batches of one role may have at present, at most `budget`.

    A lack of memory halves it from what was asked for. Each time that PATIENCE full batches
    went well it grows by a part in GROWTH, as memory may have been short for a while only; if
    that turns out to be too much, the next growth takes twice as many good batches.
    """

    budget: int
    allowed: int = field(init=False)
    _patience: int = field(default=PATIENCE, init=False)
    _good: int = field(default=0, init=False)
    _has_grown: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.allowed = self.budget

    def went_well(self, costs: Sequence[int]) -> None:
        """A batch of contents of these costs found memory enough."""
        is_full = max(costs) * (len(costs) + 1) > self.allowed
        if self.allowed == self.budget or not is_full:
            return
        self._good += 1
        if self._good >= self._patience:
            self.allowed = min(self.budget, self.allowed + max(1, self.allowed // GROWTH))
            self._good, self._has_grown = 0, True

    def ran_out(self, costs: Sequence[int]) -> None:
        """A batch of contents of these costs found too little memory."""
        half = max(1, padded_cost(costs) // 2)
        if half >= self.allowed:
            # Begun before another batch ran out, and smaller ones are on their way already.
            return
        if self._has_grown:
            self._patience *= 2
        self.allowed, self._good, self._has_grown = half, 0, False
