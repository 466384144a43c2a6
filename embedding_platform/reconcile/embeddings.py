"""`<modality>/<space>/embeddings`: segment contents against the vectors stored under the space's fingerprint."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records, storage
from embedding_platform.errors import RejectedError
from embedding_platform.increments import Increment, diff
from embedding_platform.inference.stream import Embedded, Failed, embed_stream
from embedding_platform.media.cutting import Cutting, read
from embedding_platform.models.encoder import Encoder
from embedding_platform.reconcile.files import stored_items
from embedding_platform.reconcile.segments import CHANGED, Reject, check_unchanged, live_segments
from embedding_platform.records import REJECTED, Content, Item, Segment
from embedding_platform.settings import BatchSettings
from embedding_platform.spaces import Space
from embedding_platform.vectors import judgement
from embedding_platform.vectors import store as vector_store

UNREADABLE = "unreadable"
"""What a reject's reason begins with when the segment gave no vector at all; a fault's name otherwise."""

MOST_JUDGED = 100_000
"""Stored vectors that one run judges again; beyond it, those that come first are the sample."""

MOST_REPEATED = 20
"""Contents named of those that several segments share."""

SECONDS_BETWEEN_PROGRESS = 0.2

SECONDS_PER_CHUNK = 60.0
"""Work that a killed run may lose: a chunk is stored when it is full or this old."""


@dataclass(frozen=True)
class Judged:
    """What re-reading the stored vectors showed."""

    judged: int
    norms: np.ndarray
    faults: dict[str, list[str]]
    spread: judgement.Spread | None


@dataclass(frozen=True)
class EmbeddingsReport:
    """What embedding a source did. The increment counts distinct contents.

    `orphaned` contents are kept for reuse until compaction; `missing` live contents have
    neither vector nor rejection; `faults` maps each fault to the content hashes that have it;
    `duplicates` segments repeat the content of another, and `repeated` are the hashes of such
    contents, the most frequent first, at most MOST_REPEATED.
    """

    increment: Increment
    embedded: int
    reused: int
    segments: int
    contents: int
    missing: list[str]
    rejected: list[Reject]
    faults: dict[str, list[str]]
    judged: Judged
    seconds: dict[str, float]
    device: str
    runtime: str
    precision: str
    duplicates: int
    repeated: list[str]
    data_version: str


def reconcile_embeddings(
    store: str,
    space: Space,
    source: str,
    fingerprint: str,
    cutting: Cutting,
    load_encoder: Callable[[], Encoder],
    batch: BatchSettings,
    run_id: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmbeddingsReport:
    """Give every live content of the source a vector: reuse, else embed, judge and store chunk by chunk.

    The model is loaded only if something has to be embedded. `progress` hears of contents
    done and contents to do.
    """
    folder = layout.vectors_folder(store, space.key, fingerprint, source)
    table = _segments_of(store, space, source, cutting, ["content_hash"])
    desired = pd.Index(table["content_hash"].unique().to_pylist(), dtype=object)
    last_rejects = rejected_contents(store, space, source, fingerprint)
    lasting = {row[2]: row for row in _lasting(last_rejects) if row[2] in desired}
    increment = _increment(folder, desired, lasting)

    started = perf_counter()
    reused: pd.Index = pd.Index([], dtype=object)
    if len(increment.new):
        space_folder = layout.space_folder(store, space.key, fingerprint)
        reused = vector_store.reuse(space_folder, folder, space.model.dimension, increment.new)
    needed = increment.new.difference(reused)
    seconds: dict[str, float] = {}
    unsound: dict[str, Reject] = {}
    embedded, device, runtime, precision = 0, "", "", ""
    if len(needed):
        encoder = load_encoder()
        device, precision = encoder.device, encoder.precision
        seconds["load"] = perf_counter() - started
        items = {item.path: item for item in stored_items(store, space.modality, source)}
        files = _first_segments(store, space, source, cutting, needed)
        budgets = {role: getattr(batch, role) or encoder.budget(role) for role in space.roles}
        reader = partial(_read_unchanged, space.modality, items, cutting)
        outcomes = embed_stream(files, reader, encoder, budgets, batch.readers)
        for chunk in _chunks(_told(outcomes, progress, len(needed)), batch.chunk):
            sound, bad = _judge(chunk, space)
            if sound:
                vector_store.append(folder, list(sound), np.stack(list(sound.values())), run_id, device)
            embedded += len(sound)
            unsound |= bad
        # Known now: a network that one runtime cannot take has gone to another when it started.
        runtime = encoder.runtime
        seconds["embed"] = perf_counter() - started - seconds["load"]
        vector_store.compact(folder, space.model.dimension, desired)

    rejects = lasting | unsound
    url = layout.rejected_vectors_url(store, space.key, fingerprint, source)
    if sorted(rejects.values()) != sorted(last_rejects):
        storage.write_table(url, records.rejected_table(list(rejects.values())))
    held = vector_store.stored_hashes(folder)
    missing = desired.difference(held).difference(list(rejects))
    judged = judge_stored(folder, space, desired)
    faults = {fault: list(judged.faults.get(fault, [])) for fault in judgement.FAULTS}
    for content, (*_, reason) in rejects.items():
        faults.setdefault(reason.split(": ")[0], []).append(content)
    return EmbeddingsReport(
        increment=increment,
        embedded=embedded,
        reused=len(reused),
        segments=table.num_rows,
        contents=len(desired),
        missing=missing.to_list(),
        rejected=sorted(rejects.values()),
        faults=faults,
        judged=judged,
        seconds={"total": perf_counter() - started, **seconds},
        device=device,
        runtime=runtime,
        precision=precision,
        duplicates=table.num_rows - len(desired),
        repeated=_repeated(table["content_hash"].to_pylist()),
        data_version=records.digest(fingerprint, *sorted(desired.intersection(held))),
    )


def embeddings_increment(store: str, space: Space, source: str, fingerprint: str, cutting: Cutting) -> Increment:
    """Which contents are to be embedded; nothing is done.

    Rejections by judgement count as dealt with. `orphaned` contents are kept for reuse until compaction.
    """
    folder = layout.vectors_folder(store, space.key, fingerprint, source)
    table = _segments_of(store, space, source, cutting, ["content_hash"])
    desired = pd.Index(table["content_hash"].unique().to_pylist(), dtype=object)
    rejects = rejected_contents(store, space, source, fingerprint)
    return _increment(folder, desired, [row[2] for row in _lasting(rejects) if row[2] in desired])


def _increment(folder: str, desired: pd.Index, judged: Iterable[str]) -> Increment:
    return diff(_flat(desired), _flat(vector_store.stored_hashes(folder).union(list(judged), sort=False)))


def rejected_contents(store: str, space: Space, source: str, fingerprint: str) -> list[Reject]:
    """Contents without a usable vector, as (path, uri, content hash, reason)."""
    table = storage.read_table(layout.rejected_vectors_url(store, space.key, fingerprint, source), REJECTED)
    return records.rejected_rows(table)


def judge_stored(folder: str, space: Space, live: pd.Index) -> Judged:
    """Read stored vectors of live contents back and judge them, at most MOST_JUDGED."""
    norms: list[np.ndarray] = []
    sample: list[np.ndarray] = []
    found: dict[str, list[str]] = {}
    judged = 0
    for part in vector_store.iterate(folder, space.model.dimension, live):
        for content, fault in zip(part.hashes, judgement.faults(part.vectors, space), strict=True):
            if fault:
                found.setdefault(fault, []).append(content)
        norms.append(judgement.norms_of(part.vectors))
        if sum(map(len, sample)) < 2000:
            sample.append(part.vectors[:2000])
        judged += len(part.hashes)
        if judged >= MOST_JUDGED:
            break
    spread = judgement.spread(np.concatenate(sample)) if sample else None
    return Judged(judged, np.concatenate(norms) if norms else np.empty(0), found, spread)


def _read_unchanged(
    modality: str, items: dict[str, Item], cutting: Cutting, group: Sequence[Segment]
) -> Iterator[Content]:
    """Contents of one file's segments, none of them from bytes other than those that were hashed.

    A vector is kept under the content hash for good, so it must not come from a later version
    of the file. Text was taken from the file when it was cut.
    """
    for segment, content in zip(group, read(modality, group, cutting.decoding), strict=False):
        if segment.role != "text":
            # A listing that overlaps with this run may know files that this run does not.
            if segment.path not in items:
                raise RejectedError(CHANGED)
            check_unchanged(items[segment.path])
        yield content


def _told(
    outcomes: Iterator[Embedded | Failed], progress: Callable[[int, int], None], total: int
) -> Iterator[Embedded | Failed]:
    """The outcomes as they come; `progress` hears of them a few times a second, and at the end."""
    told = perf_counter()
    for done, outcome in enumerate(outcomes, 1):
        yield outcome
        if done == total or perf_counter() - told > SECONDS_BETWEEN_PROGRESS:
            told = perf_counter()
            progress(done, total)


def _chunks(outcomes: Iterator[Embedded | Failed], size: int) -> Iterator[list[Embedded | Failed]]:
    """Outcomes in lists of `size`, or fewer where `size` took longer than SECONDS_PER_CHUNK."""
    chunk: list[Embedded | Failed] = []
    opened = perf_counter()
    for outcome in outcomes:
        chunk.append(outcome)
        if len(chunk) >= size or perf_counter() - opened > SECONDS_PER_CHUNK:
            yield chunk
            chunk, opened = [], perf_counter()
    if chunk:
        yield chunk


def _judge(chunk: list[Embedded | Failed], space: Space) -> tuple[dict[str, np.ndarray], dict[str, Reject]]:
    """Sound vectors, normalised as the space says, and rejections, both by content hash."""
    sound: dict[str, np.ndarray] = {}
    unsound: dict[str, Reject] = {}
    for outcome in chunk:
        segment = outcome.segment
        if isinstance(outcome, Failed):
            reason = f"{UNREADABLE}: {outcome.reason}"
        else:
            vector = judgement.normalise(outcome.vector[None])[0] if space.normalised else outcome.vector
            (fault,) = judgement.faults(vector[None], space)
            if fault is None:
                sound[segment.content_hash] = vector
                continue
            reason = f"{fault}: {judgement.explain(fault, vector, space)}"
        unsound[segment.content_hash] = (segment.path, segment.uri, segment.content_hash, reason)
    return sound, unsound


def _segments_of(store: str, space: Space, source: str, cutting: Cutting, columns: list[str]) -> pa.Table:
    """The live segments that the space's model embeds."""
    table = live_segments(store, space.modality, source, cutting, [*dict.fromkeys([*columns, "role"])])
    return table.filter(pc.is_in(table["role"], value_set=pa.array(space.roles)))


def _first_segments(
    store: str, space: Space, source: str, cutting: Cutting, needed: pd.Index
) -> Iterator[list[Segment]]:
    """One segment for each needed content, grouped by file, in the file's order."""
    table = _segments_of(store, space, source, cutting, records.SEGMENTS.names)
    table = table.filter(pc.is_in(table["content_hash"], value_set=pa.array(needed, pa.string())))
    groups: dict[str, list[Segment]] = {}
    seen: set[str] = set()
    for segment in records.segments(table.sort_by([("path", "ascending"), ("position", "ascending")])):
        if segment.content_hash not in seen:
            seen.add(segment.content_hash)
            groups.setdefault(segment.path, []).append(segment)
    yield from groups.values()


def _repeated(contents: list[str]) -> list[str]:
    shared = [(content, count) for content, count in Counter(contents).items() if count > 1]
    return [content for content, _ in sorted(shared, key=lambda pair: (-pair[1], pair[0]))[:MOST_REPEATED]]


def _lasting(rejects: list[Reject]) -> list[Reject]:
    """Rejections that stand until content or model change; a file that could not be read is tried again."""
    return [row for row in rejects if not row[3].startswith(f"{UNREADABLE}: ")]


def _flat(contents: pd.Index) -> pd.Series:
    """A content is its own version: it is there or it is not."""
    return pd.Series(contents, index=contents, dtype=object)
