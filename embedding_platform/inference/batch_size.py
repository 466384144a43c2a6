"""How large a batch may be: cut by cost, made smaller when memory does not suffice, and larger again with care."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PATIENCE = 32
"""Full batches that have to go well before a larger one is tried."""


def cut(costs: Sequence[int], budget: int) -> Iterator[slice]:
    """Cut contents, in their order, into batches whose summed cost stays within the budget, or that hold one."""
    start = summed = 0
    for place, cost in enumerate(costs):
        if place > start and summed + cost > budget:
            yield slice(start, place)
            start, summed = place, 0
        summed += cost
    if costs:
        yield slice(start, len(costs))


def rows(cost: int, budget: int) -> int:
    """How many contents of one cost a full batch has: as many as the budget allows, and at least one."""
    return max(1, budget // max(1, cost))


@dataclass
class BatchSize:
    """The summed cost that batches of one role may have at present: the budget, halved as often as memory asked for.

    A lack of memory halves it. Each time that PATIENCE full batches went well it doubles, as
    memory may have been short for a while only; if that turns out to be too much, the next
    growth takes twice as many good batches. A batch of another size has another shape, and a
    vector another last bit; with no sizes but these, a device whose memory never suffices for
    the budget comes to one size all the same, and to other shapes only where it tries to grow.
    """

    budget: int
    allowed: int = field(init=False)
    _patience: int = field(default=PATIENCE, init=False)
    _good: int = field(default=0, init=False)
    _has_grown: bool = field(default=False, init=False)
    _halvings: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.allowed = self.budget

    def went_well(self, costs: Sequence[int]) -> None:
        """A batch of contents of these costs found memory enough."""
        is_full = sum(costs) + max(costs) > self.allowed
        if self._halvings == 0 or not is_full:
            return
        self._good += 1
        if self._good >= self._patience:
            self._halve_to(self._halvings - 1)
            self._has_grown = True

    def ran_out(self, costs: Sequence[int]) -> None:
        """A batch of contents of these costs found too little memory."""
        if sum(costs) > self.allowed or self.allowed == 1:
            # Begun before another batch ran out, and smaller ones are on their way already.
            return
        if self._has_grown:
            self._patience *= 2
        self._halve_to(self._halvings + 1)
        self._has_grown = False

    def _halve_to(self, halvings: int) -> None:
        self._halvings, self._good = halvings, 0
        self.allowed = max(1, self.budget >> halvings)
