"""From a stream of files' segments to a stream of vectors.

Reader threads decode ahead into a bounded queue while the model works on the batch before;
batches are cut by cost (tokens, images, windows, clips) and hold contents of similar cost,
so that little is padded. Order across files is not kept: vectors are found by content hash.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from embedding_platform.errors import RejectedError
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import Content, Segment
from embedding_platform.spaces import Role

Reader = Callable[[Sequence[Segment]], Iterator[Content]]
"""Yields the decoded contents, in order, of segments of one file."""


TEXTS_QUEUED = 128
MEDIA_QUEUED = 8
"""Most decoded contents that wait in the queue. A text takes some kB, an image of 12 megapixels 36 MB."""


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


class _Decoded(NamedTuple):
    segment: Segment
    content: Content


class _Crashed(NamedTuple):
    error: BaseException


_DONE = object()


def embed_stream(
    files: Iterable[Sequence[Segment]],
    read: Reader,
    encoder: Encoder,
    budgets: Mapping[Role, int],
    readers: int = 2,
) -> Iterator[Embedded | Failed]:
    """Embed the segments of many files, each given as one group; every segment comes back once.

    `budgets` bounds the summed cost of a batch per role. A file that `read` rejects, and a
    content that the model refuses on its own, come back as `Failed`; the others go on.

    Raises:
        Exception: whatever else a reader or the model raised; nothing is swallowed.
    """
    decoded: queue.Queue = queue.Queue(TEXTS_QUEUED if set(budgets) == {"text"} else MEDIA_QUEUED)
    stop = threading.Event()
    groups = iter(files)
    lock = threading.Lock()
    threads = [
        threading.Thread(target=_read_files, args=(groups, lock, read, decoded, stop), daemon=True)
        for _ in range(readers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield from _embed_decoded(decoded, len(threads), encoder, budgets)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _read_files(
    groups: Iterator[Sequence[Segment]],
    lock: threading.Lock,
    read: Reader,
    decoded: queue.Queue,
    stop: threading.Event,
) -> None:
    try:
        while not stop.is_set():
            with lock:
                group = next(groups, None)
            if group is None:
                break
            for outcome in _read_file(group, read):
                _put(decoded, outcome, stop)
                if stop.is_set():
                    return
    except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
        _put(decoded, _Crashed(error), stop)
    _put(decoded, _DONE, stop)


def _read_file(group: Sequence[Segment], read: Reader) -> Iterator[_Decoded | Failed]:
    contents = read(group)
    for position, segment in enumerate(group):
        try:
            content = next(contents)
        except RejectedError as error:
            yield from (Failed(rest, str(error)) for rest in group[position:])
            return
        except StopIteration:
            reason = "the file holds fewer segments than when it was cut"
            yield from (Failed(rest, reason) for rest in group[position:])
            return
        yield _Decoded(segment, content)


def _put(decoded: queue.Queue, outcome: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            decoded.put(outcome, timeout=0.1)
        except queue.Full:
            continue
        return


def _embed_decoded(
    decoded: queue.Queue, running: int, encoder: Encoder, budgets: Mapping[Role, int]
) -> Iterator[Embedded | Failed]:
    waiting: dict[Role, list[tuple[int, _Decoded]]] = {role: [] for role in budgets}
    weight: dict[Role, int] = dict.fromkeys(budgets, 0)
    # Costs vary for text alone: of four batches, each gets texts of like length.
    enough = {role: (4 if role == "text" else 1) * budget for role, budget in budgets.items()}
    while running:
        outcome = decoded.get()
        if outcome is _DONE:
            running -= 1
        elif isinstance(outcome, _Crashed):
            raise outcome.error
        elif isinstance(outcome, Failed):
            yield outcome
        else:
            role = outcome.segment.role
            cost = encoder.cost(role, outcome.content)
            waiting[role].append((cost, outcome))
            weight[role] += cost
            if weight[role] >= enough[role]:
                for batch in _batches(waiting[role], budgets[role]):
                    yield from _embed_batch(batch, encoder, role)
                waiting[role], weight[role] = [], 0
    for role, rest in waiting.items():
        for batch in _batches(rest, budgets[role]):
            yield from _embed_batch(batch, encoder, role)


def _batches(waiting: list[tuple[int, _Decoded]], budget: int) -> Iterator[list[_Decoded]]:
    """Cut contents sorted by cost so that longest cost times count stays within the budget."""
    batch: list[_Decoded] = []
    for cost, item in sorted(waiting, key=lambda pair: pair[0]):
        if batch and cost * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _embed_batch(batch: list[_Decoded], encoder: Encoder, role: Role) -> Iterator[Embedded | Failed]:
    """Embed a batch; one that the model cannot run is halved until the bad item is alone."""
    try:
        vectors = encoder.embed(role, [item.content for item in batch])
    except (RuntimeError, ValueError, RejectedError) as error:
        if len(batch) == 1:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            yield Failed(batch[0].segment, f"the model failed on it: {reason}")
            return
        middle = len(batch) // 2
        yield from _embed_batch(batch[:middle], encoder, role)
        yield from _embed_batch(batch[middle:], encoder, role)
        return
    for item, vector in zip(batch, vectors, strict=True):
        yield Embedded(item.segment, vector)
