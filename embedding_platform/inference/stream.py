"""From a stream of files' segments to a stream of vectors, in the same order.

Three stages run side by side, none of which waits for another that could run. Readers decode
and prepare contents ahead. A collector gathers them in windows and cuts each into batches of
contents of similar cost (tokens, images, windows, clips), so that little is padded; what
shares a batch depends on the input alone, and not on which thread was faster. The encoder's
lanes run the batches, while the consumer works on the vectors of the window before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from embedding_platform.errors import RejectedError, first_line
from embedding_platform.inference.batch_size import cut
from embedding_platform.inference.lanes import Answer, Lanes, PreparedSegment
from embedding_platform.inference.read_ahead import ClosedError, ReadAhead
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import Content, Segment
from embedding_platform.spaces import Role

Reader: TypeAlias = Callable[[Sequence[Segment]], Iterator[Content]]
"""Yields the decoded contents, in order, of segments of one file."""

READ_AHEAD_BYTES = 32 * 2**20
"""Prepared contents that wait to be collected, in bytes rather than by number: about 3 clips of
10 MB, 30 spectrograms of 1 MB, 50 images of 600 kB, or 5,000 texts of 6 kB. They only even out
what takes readers longer and shorter; the windows behind them hold work for the lanes."""

SEGMENT_BYTES = 1024
"""What a segment weighs besides its arrays, roughly: itself, its text, the arrays' headers."""

WINDOW_BATCHES = 4
"""Batches of the first window, about: few, so that the lanes have work soon."""

TEXT_WINDOW_BATCHES = 32
"""Batches to which windows of texts double, one after the other. Only texts differ in cost: of passages from
3 to 256 tokens, 20 % of what runs is padding where 4 batches share a window, and 5 % where 32 do."""


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
) -> Iterator[Embedded | Failed]:
    """Embed the segments of many files, each given as one group; every segment comes back once, in order.

    `budgets` bounds the summed cost of a batch per role, contents padded to the longest; a
    single content may be above it. A file that `read` rejects, and a content that the model
    refuses or fails on by itself, come back as `Failed`; the others go on. Where memory does
    not suffice, batches become smaller.

    Raises:
        PlatformError: if memory does not suffice for one content alone.
        Exception: whatever else `files`, a reader or the model raised, once all outcomes that
            come before it were given; nothing is swallowed.
    """
    lanes = Lanes(encoder, budgets)
    contents = ReadAhead(files, partial(_prepared, read, encoder), readers, READ_AHEAD_BYTES, _weight)
    windows = ReadAhead([contents], partial(_windows, lanes, budgets), 1, _windows_ahead(lanes.count))
    # Left in reverse order: the collector ends once nothing more comes from the readers.
    with lanes, windows, contents:
        for window in windows:
            for slot in window:
                if isinstance(slot, _Raised):
                    raise slot.error
                yield slot.outcome() if isinstance(slot, _Awaited) else slot


@dataclass(frozen=True, eq=False)
class _Awaited:
    """A segment in a batch on its way, and its place in there."""

    segment: Segment
    answers: "Future[list[Answer]]"
    place: int

    def outcome(self) -> Embedded | Failed:
        answer = self.answers.result()[self.place]
        return Failed(self.segment, answer) if isinstance(answer, str) else Embedded(self.segment, answer)


@dataclass(frozen=True, eq=False)
class _Raised:
    """An error in the place where reading met it."""

    error: Exception


_Slot: TypeAlias = Failed | _Awaited | _Raised


def _prepared(read: Reader, encoder: Encoder, group: Sequence[Segment]) -> Iterator[PreparedSegment | Failed]:
    contents = read(group)
    for place, segment in enumerate(group):
        try:
            yield _next_prepared(contents, segment, encoder)
        except RejectedError as error:
            yield from (Failed(rest, str(error)) for rest in group[place:])
            return
        except StopIteration:
            reason = "the file holds fewer segments than when it was cut"
            yield from (Failed(rest, reason) for rest in group[place:])
            return


def _next_prepared(contents: Iterator[Content], segment: Segment, encoder: Encoder) -> PreparedSegment | Failed:
    # In a function of its own, whose end lets the content go: decoded, an image takes a hundred times as much.
    content = next(contents)
    try:
        prepared = encoder.prepare(segment.role, content)
    except (ValueError, RejectedError) as error:
        return Failed(segment, f"the model does not take it: {first_line(error)}")
    return PreparedSegment(segment, prepared, encoder.cost(segment.role, prepared))


def _weight(outcome: PreparedSegment | Failed) -> int:
    arrays = outcome.prepared.values() if isinstance(outcome, PreparedSegment) else ()
    return SEGMENT_BYTES + sum(array.nbytes for array in arrays)


def _windows_ahead(lanes: int) -> int:
    """Windows behind the one whose vectors are taken: a batch for each lane, and a window that is being collected."""
    return 1 + -(-lanes // WINDOW_BATCHES)


def _windows(
    lanes: Lanes, budgets: Mapping[Role, int], contents: Iterable[PreparedSegment | Failed]
) -> Iterator[list[_Slot]]:
    """Windows whose batches are on their way to the lanes."""
    window: list[PreparedSegment | Failed | _Raised] = []
    costs = dict.fromkeys(budgets, 0)
    enough = {role: WINDOW_BATCHES * budget for role, budget in budgets.items()}
    try:
        for outcome in contents:
            window.append(outcome)
            role = outcome.segment.role
            costs[role] += outcome.cost if isinstance(outcome, PreparedSegment) else 1
            if costs[role] >= enough[role]:
                sent = _send(window, lanes, budgets)
                window, costs = [], dict.fromkeys(budgets, 0)
                if "text" in enough:
                    enough["text"] = min(2 * enough["text"], TEXT_WINDOW_BATCHES * budgets["text"])
                yield sent
    except ClosedError:
        return
    except Exception as error:  # noqa: BLE001 - raised by the stream, after what comes before it
        window.append(_Raised(error))
    if window:
        yield _send(window, lanes, budgets)


def _send(
    window: Sequence[PreparedSegment | Failed | _Raised], lanes: Lanes, budgets: Mapping[Role, int]
) -> list[_Slot]:
    slots: dict[int, _Slot] = {
        place: outcome for place, outcome in enumerate(window) if not isinstance(outcome, PreparedSegment)
    }
    for role, budget in budgets.items():
        contents = [
            (place, outcome)
            for place, outcome in enumerate(window)
            if isinstance(outcome, PreparedSegment) and outcome.segment.role == role
        ]
        contents.sort(key=lambda content: content[1].cost)
        for batch in cut([content.cost for _, content in contents], budget):
            answers = lanes.submit(role, [content for _, content in contents[batch]])
            for number, (place, content) in enumerate(contents[batch]):
                slots[place] = _Awaited(content.segment, answers, number)
    return [slots[place] for place in range(len(window))]
