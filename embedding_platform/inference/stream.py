"""From a stream of files' segments to a stream of vectors, in the same order.

Three stages run side by side, none of which waits for another that could run. Readers decode
and prepare contents ahead. A collector gathers them in batches of one cost and shape (tokens,
images, windows, clips), each of which goes to the encoder's lanes when it is full, or when its
first content has waited long enough. The lanes run the batches, filled up, while the consumer
works on vectors that came before.

The shape of each batch depends on any one of its contents, so that a content's vector has the
same bits whatever else the stream holds, and in whatever order. What shares a batch depends on
the input alone too, and not on which thread was faster.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from embedding_platform.errors import RejectedError, first_line
from embedding_platform.inference.lanes import Answer, Lanes, PreparedSegment
from embedding_platform.inference.read_ahead import ClosedError, ReadAhead
from embedding_platform.inference.stopwatch import Stopwatch
from embedding_platform.memory import bytes_to_hold
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import Content, Segment
from embedding_platform.spaces import Role

Reader: TypeAlias = Callable[[Sequence[Segment]], Iterator[Content]]
"""Yields the decoded contents, in order, of segments of one file."""

READ_AHEAD_BYTES = 32 * 2**20
"""Prepared contents that wait to be collected, in bytes rather than by number: about 3 clips of
10 MB, 30 spectrograms of 1 MB, 50 images of 600 kB, or 5,000 texts of 6 kB; fewer where memory is
short. They only even out what takes readers longer and shorter; the batches behind them hold work
for the lanes."""

SEGMENT_BYTES = 1024
"""What a segment weighs besides its arrays, roughly: itself, its text, the arrays' headers."""

WAIT_BATCHES = 64
"""How much may come after a content until its batch goes, full or not, in batches' worth. Of texts, 16 lengths
or so are on their way at once, rare ones among them; of other media all go at once. It bounds, too, what is
embedded ahead of a consumer that is slower."""

PARTS = 2**20
"""Of one batch's budget: the unit in which contents of all roles are counted together."""


@dataclass(frozen=True)
class Embedded:
    """A segment and its vector, float32 [d]."""

    segment: Segment
    vector: np.ndarray


@dataclass(frozen=True)
class Failed:
    """A segment that could not be read or embedded, and the reason."""

    segment: Segment
    reason: str


def embed_stream(
    files: Iterable[Sequence[Segment]],
    read: Reader,
    encoder: Encoder,
    budgets: Mapping[Role, int],
    readers: int = 2,
    stopwatch: Stopwatch | None = None,
) -> Iterator[Embedded | Failed]:
    """Embed the segments of many files, each given as one group; every segment comes back once, in order.

    `budgets` bounds the summed cost of a batch per role, contents padded to the longest; a
    single content may be above it. A file that `read` rejects, and a content that the model
    refuses or fails on by itself, come back as `Failed`; the others go on. Where memory does
    not suffice, batches become smaller. `stopwatch` counts the work "decode", "prepare" and "model".

    Raises:
        PlatformError: if memory does not suffice for one content alone.
        BaseException: whatever else `files`, a reader or the model raised, once all outcomes that
            come before it were given; nothing is swallowed.
    """
    watch = stopwatch or Stopwatch()
    lanes = Lanes(encoder, budgets, watch)
    ahead = bytes_to_hold(READ_AHEAD_BYTES)
    contents = ReadAhead(files, partial(_prepared, read, encoder, watch), readers, ahead, _weight)
    wait = PARTS * max(WAIT_BATCHES, 2 * lanes.count)
    # A consumer that waits for a content leaves room for all that comes until the content's batch goes.
    slots = ReadAhead([contents], partial(_collected, _Batches(lanes, budgets, wait)), 1, wait, _parts_of)
    # Left in reverse order: the collector ends once nothing more comes from the readers.
    with lanes, slots, contents:
        for slot in slots:
            if isinstance(slot.content, _Raised):
                raise slot.content.error
            yield slot.content.outcome() if isinstance(slot.content, _Awaited) else slot.content


@dataclass(frozen=True, eq=False)
class _Awaited:
    """A segment in a batch, sent or not, and its place in there."""

    segment: Segment
    sent: "Future[Future[list[Answer]]]"
    place: int

    def outcome(self) -> Embedded | Failed:
        answer = self.sent.result().result()[self.place]
        return Failed(self.segment, answer) if isinstance(answer, str) else Embedded(self.segment, answer)


@dataclass(frozen=True, eq=False)
class _Raised:
    """An error in the place where reading met it."""

    error: BaseException


@dataclass(frozen=True, eq=False)
class _Slot:
    """What stands in the place of one segment, and how many parts of a batch it comes to."""

    content: Failed | _Awaited | _Raised
    parts: int


def _prepared(
    read: Reader, encoder: Encoder, watch: Stopwatch, group: Sequence[Segment]
) -> Iterator[PreparedSegment | Failed]:
    contents = read(group)
    for place, segment in enumerate(group):
        try:
            yield _next_prepared(contents, segment, encoder, watch)
        except RejectedError as error:
            yield from (Failed(rest, str(error)) for rest in group[place:])
            return
        except StopIteration:
            reason = "the file holds fewer segments than when it was cut"
            yield from (Failed(rest, reason) for rest in group[place:])
            return


def _next_prepared(
    contents: Iterator[Content], segment: Segment, encoder: Encoder, watch: Stopwatch
) -> PreparedSegment | Failed:
    # In a function of its own, whose end lets the content go: decoded, an image takes a hundred times as much.
    with watch.running("decode"):
        content = next(contents)
    try:
        with watch.running("prepare"):
            prepared = encoder.prepare(segment.role, content)
    except (ValueError, RejectedError) as error:
        return Failed(segment, f"the model does not take it: {first_line(error)}")
    cost, shape = encoder.cost(segment.role, prepared), encoder.shape(segment.role, prepared)
    return PreparedSegment(segment, prepared, cost, shape)


def _parts_of(slot: _Slot) -> int:
    return slot.parts


def _weight(outcome: PreparedSegment | Failed) -> int:
    arrays = outcome.prepared.values() if isinstance(outcome, PreparedSegment) else ()
    return SEGMENT_BYTES + sum(array.nbytes for array in arrays)


def _collected(batches: "_Batches", contents: Iterable[PreparedSegment | Failed]) -> Iterator[_Slot]:
    """A slot for each content, which joins a batch; all batches are on their way when no content is left."""
    raised = None
    try:
        for outcome in contents:
            slot = batches.put(outcome)
            # A content may have been embedded and used up long before there is room for another.
            del outcome
            yield slot
    except (ClosedError, GeneratorExit):
        return
    except BaseException as error:  # noqa: BLE001 - raised by the stream, after what comes before it
        raised = _Slot(_Raised(error), 0)
    batches.send_all()
    if raised is not None:
        yield raised


@dataclass(eq=False)
class _Batch:
    """Contents of one cost and shape, which more may join until they are `sent`; `begun` is when the first came."""

    begun: int
    contents: list[PreparedSegment] = field(default_factory=list)
    cost: int = 0
    sent: "Future[Future[list[Answer]]]" = field(default_factory=Future)

    def add(self, content: PreparedSegment) -> _Awaited:
        self.contents.append(content)
        self.cost += content.cost
        return _Awaited(content.segment, self.sent, len(self.contents) - 1)


@dataclass(eq=False)
class _Batches:
    """Batches that are being gathered, in the order in which they were begun. Time is counted in parts."""

    lanes: Lanes
    budgets: Mapping[Role, int]
    wait: int
    gathered: dict[tuple[Role, Hashable], _Batch] = field(default_factory=dict)
    now: int = 0

    def put(self, outcome: PreparedSegment | Failed) -> _Slot:
        """The outcome's slot. What is full now, or has waited for `wait` parts, goes to the lanes."""
        cost = outcome.cost if isinstance(outcome, PreparedSegment) else 1
        parts = -(-PARTS * cost // self.budgets[outcome.segment.role])
        self.now += parts
        slot = _Slot(self._join(outcome) if isinstance(outcome, PreparedSegment) else outcome, parts)
        for key in [key for key, batch in self.gathered.items() if self.now - batch.begun >= self.wait]:
            self._send(key)
        return slot

    def send_all(self) -> None:
        for key in list(self.gathered):
            self._send(key)

    def _join(self, content: PreparedSegment) -> _Awaited:
        key = content.segment.role, content.shape
        if key in self.gathered and self._is_full(key, content.cost):
            self._send(key)
        awaited = self.gathered.setdefault(key, _Batch(self.now)).add(content)
        if self._is_full(key, content.cost):
            self._send(key)
        return awaited

    def _is_full(self, key: tuple[Role, Hashable], cost: int) -> bool:
        return self.gathered[key].cost + cost > self.lanes.allowed(key[0])

    def _send(self, key: tuple[Role, Hashable]) -> None:
        batch = self.gathered.pop(key)
        batch.sent.set_result(self.lanes.submit(key[0], batch.contents))
