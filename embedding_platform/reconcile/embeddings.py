"""`<modality>/<space>/embeddings`: segment contents against the vectors stored under the space's fingerprint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import layout, records, storage
from embedding_platform.errors import RejectedError
from embedding_platform.increments import Increment, index_of, presence
from embedding_platform.inference.stopwatch import Stopwatch
from embedding_platform.inference.stream import Embedded, Failed, embed_stream
from embedding_platform.media.cutting import Cutting, read
from embedding_platform.media.limits import is_crash
from embedding_platform.media.suspects import Decode, Decodes, noted_in
from embedding_platform.memory import bytes_to_hold
from embedding_platform.models.encoder import Encoder
from embedding_platform.reconcile import arrivals
from embedding_platform.reconcile.files import items_table
from embedding_platform.reconcile.segments import CHANGED, Reject, check_unchanged, iterate_live_segments
from embedding_platform.records import ITEMS, REJECTED, Content, Segment
from embedding_platform.settings import BatchSettings
from embedding_platform.spaces import Space
from embedding_platform.vectors import judgement
from embedding_platform.vectors import store as vector_store
from embedding_platform.vectors.judged import Judged, judge_stored

UNREADABLE = "unreadable"
"""What a reject's reason begins with when the segment gave no vector at all; a fault's name otherwise."""

MOST_REPEATED = 20
"""Contents named of those that several segments share."""

SECONDS_BETWEEN_PROGRESS = 0.2

CHUNK_BYTES = 8 * 2**20
SECONDS_PER_CHUNK = 60.0
"""Work that a killed run may lose: a chunk is stored when its vectors take so much, less where memory is short, or
when it is this old."""


@dataclass(frozen=True)
class EmbeddingsReport:
    """What embedding a source did. The increment counts distinct contents.

    `orphaned` contents are kept for reuse until they are pruned; `missing` live contents have
    neither vector nor rejection; `faults` maps each fault to the content hashes that have it;
    `duplicates` segments repeat the content of another, and `repeated` are the hashes of such
    contents and how many segments share each, the most frequent first, at most MOST_REPEATED.
    `bytes_stored` is the size of the vectors that this run made, at four bytes a value.

    `seconds` tell where the time went: in all (total), to load the model (load), from then until
    the last vector was stored (embedded), to write them (store), to judge what is stored (judge),
    and of the threads that embed, summed over them: decode, prepare, model.
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
    repeated: list[tuple[str, int]]
    bytes_stored: int
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
    notes: str | None = None,
) -> EmbeddingsReport:
    """Give every live content of the source a vector: reuse, else embed, judge and store chunk by chunk.

    The model is loaded only if something has to be embedded. `progress` hears of contents
    done and contents to do. `notes` is the folder of `media.suspects`.
    """
    began = perf_counter()
    folder = layout.vectors_folder(store, space.key, fingerprint, source)
    desired, segments, repeated = _distinct(_contents(store, space, source, cutting))
    last_rejects = rejected_contents(store, space, source, fingerprint)
    lasting = _lasting(last_rejects, desired)
    increment = _increment(folder, fingerprint, desired, list(lasting))
    arrived_url = layout.arrived_url(store, space.key, fingerprint, source)
    arrivals.note(arrived_url, increment.new)

    reused: pd.Index = index_of(pa.array([], pa.string()))
    if len(increment.new):
        space_folder = layout.space_folder(store, space.key, fingerprint)
        reused = vector_store.reuse(space_folder, folder, space.model.dimension, increment.new, fingerprint)
    needed = _without(increment.new, reused)
    seconds: dict[str, float] = {}
    watch = Stopwatch()
    rejects = lasting
    embedded, device, runtime, precision = 0, "", "", ""
    if len(needed):
        loading = perf_counter()
        encoder = load_encoder()
        loaded = perf_counter()
        device, precision = encoder.device, encoder.precision
        budgets = {role: getattr(batch, role) or encoder.budget(role) for role in space.roles}
        size = batch.chunk or max(1, bytes_to_hold(CHUNK_BYTES) // (4 * space.model.dimension))
        with noted_in(notes) as decodes:
            files = _Files(store, space, source, cutting, needed, decodes)
            outcomes = embed_stream(files.groups(), files.read, encoder, budgets, batch.readers, watch)
            for chunk in _chunks(_told(outcomes, progress, len(needed)), size):
                sound, bad = _judge(chunk, space)
                if sound:
                    vectors = np.stack(list(sound.values()))
                    with watch.running("store"):
                        vector_store.append(folder, list(sound), vectors, fingerprint, run_id, device)
                embedded += len(sound)
                if bad:
                    rejects |= bad
                    _write_rejects(store, space, source, fingerprint, rejects)
        # Known now: a network that one runtime cannot take has gone to another when it started.
        runtime = encoder.runtime
        seconds |= {"load": loaded - loading, "embedded": perf_counter() - loaded}
        vector_store.compact(folder, space.model.dimension, fingerprint)

    storage.remove_leftovers(folder)
    if sorted(rejects.values()) != sorted(last_rejects):
        _write_rejects(store, space, source, fingerprint, rejects)
    with watch.running("judge"):
        judged = judge_stored(folder, space, desired, fingerprint, arrivals.noted(arrived_url))
    faults = {fault: list(judged.faults.get(fault, [])) for fault in judgement.FAULTS}
    for content, (*_, reason) in rejects.items():
        faults.setdefault(reason.split(": ")[0], []).append(content)
    held = pa.chunked_array([pa.array(desired[judged.held], pa.string()).sort()])
    return EmbeddingsReport(
        increment=increment,
        embedded=embedded,
        reused=len(reused),
        segments=segments,
        contents=len(desired),
        missing=_without(desired[~judged.held], pd.Index(list(rejects), dtype="str")).to_list(),
        rejected=sorted(rejects.values()),
        faults=faults,
        judged=judged,
        seconds={"total": perf_counter() - began, **seconds, **watch.seconds},
        device=device,
        runtime=runtime,
        precision=precision,
        duplicates=segments - len(desired),
        repeated=repeated,
        bytes_stored=4 * space.model.dimension * embedded,
        data_version=records.digest(fingerprint, records.column_digest(held)),
    )


def vector_verdict_lasts(reason: str) -> bool:
    """Whether a rejection stands until content or model change.

    A file that could not be read is tried again, unless it crashed its decoder, and so is a content whose
    vector had another dimension than the space: that is no fault of the content.
    """
    return is_crash(reason) or reason.split(": ")[0] not in (UNREADABLE, judgement.DIMENSION)


def embeddings_increment(store: str, space: Space, source: str, fingerprint: str, cutting: Cutting) -> Increment:
    """Which contents are to be embedded; nothing is done.

    Rejections by judgement count as dealt with. `orphaned` contents are kept for reuse.
    """
    folder = layout.vectors_folder(store, space.key, fingerprint, source)
    desired = index_of(_contents(store, space, source, cutting).unique())
    lasting = _lasting(rejected_contents(store, space, source, fingerprint), desired)
    return _increment(folder, fingerprint, desired, list(lasting))


def _increment(folder: str, fingerprint: str, desired: pd.Index, rejected: list[str]) -> Increment:
    dealt_with = vector_store.stored_hashes(folder, fingerprint)
    if rejected:
        dealt_with = dealt_with.append(pd.Index(rejected, dtype="str")).unique()
    return presence(desired, dealt_with)


def rejected_contents(store: str, space: Space, source: str, fingerprint: str) -> list[Reject]:
    """Contents without a usable vector, as (path, uri, content hash, reason)."""
    table = storage.read_table(layout.rejected_vectors_url(store, space.key, fingerprint, source), REJECTED)
    return records.rejected_rows(table)


class _Files:
    """The files that hold needed contents: one segment for each content, and a reader of what was listed alone."""

    def __init__(
        self, store: str, space: Space, source: str, cutting: Cutting, needed: pd.Index, decodes: Decodes
    ) -> None:
        self._space = space
        self._cutting = cutting
        self._decodes = decodes
        self._needed = vector_store.Wanted(needed)
        self._parts = partial(iterate_live_segments, store, space.modality, source, cutting)
        # Text was taken from the file when it was cut.
        self._listed = (
            items_table(store, space.modality, source, ["path", "uri", "size", "modified"])
            if set(space.roles) != {"text"}
            else ITEMS.empty_table()
        )
        self._states: dict[str, tuple[str, int, str]] = {}

    def groups(self) -> Iterator[list[Segment]]:
        """Segments grouped by file, in the file's order, a shard of them in memory at a time."""
        for part in self._parts(where={"role": pa.array(self._space.roles), "content_hash": self._needed.hashes}):
            ordered = part.sort_by([("path", "ascending"), ("position", "ascending")])
            chosen = ordered.take(self._needed.rows_in(ordered["content_hash"]))
            self._needed.take(chosen["content_hash"])
            listed = self._listed.take(pc.index_in(chosen["path"].unique(), self._listed["path"]).drop_null())
            states = {row["path"]: (row["uri"], row["size"], row["modified"]) for row in listed.to_pylist()}
            for _, group in groupby(_segments_in(chosen), key=attrgetter("path")):
                segments = list(group)
                if segments[0].path in states:
                    self._states[segments[0].segment_id] = states[segments[0].path]
                yield segments

    def read(self, group: Sequence[Segment]) -> Iterator[Content]:
        """Contents of one file's segments, none of them from bytes other than those that were hashed.

        A vector is kept under the content hash for good, so it must not come from a later
        version of the file.
        """
        state = self._states.pop(group[0].segment_id, None)
        modality, limits = self._space.modality, self._cutting.decoding
        # Without a state it is no file of which anything is embedded, or text that was taken from it when it was cut.
        contents = (
            self._decodes.each(Decode("read", modality, *state), read, modality, group, limits)
            if state
            else read(modality, group, limits)
        )
        for segment, content in zip(group, contents, strict=False):
            if segment.role != "text":
                # A listing that overlaps with this run may know files that this run does not.
                if state is None:
                    raise RejectedError(CHANGED)
                check_unchanged(*state)
            yield content


def _segments_in(table: pa.Table) -> Iterator[Segment]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from records.segments(pa.Table.from_batches([batch]))


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


def _contents(store: str, space: Space, source: str, cutting: Cutting) -> pa.ChunkedArray:
    """The content hash of each live segment that the space's model embeds."""
    asked = {"role": pa.array(space.roles)}
    parts = iterate_live_segments(store, space.modality, source, cutting, ["content_hash"], asked)
    return pa.chunked_array([chunk for part in parts for chunk in part["content_hash"].chunks], pa.string())


def _distinct(contents: pa.ChunkedArray) -> tuple[pd.Index, int, list[tuple[str, int]]]:
    """Each content once, the number of segments, and the contents that most segments share, with how many do."""
    counts = contents.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1))
    pairs = sorted((-pair["counts"], pair["values"]) for pair in shared.to_pylist())
    repeated = [(content, -count) for count, content in pairs[:MOST_REPEATED]]
    return index_of(counts.field("values")), len(contents), repeated


def _without(contents: pd.Index, others: pd.Index) -> pd.Index:
    return presence(contents, others).new


def _lasting(rejects: list[Reject], live: pd.Index) -> dict[str, Reject]:
    """Rejections of live contents by content hash that stand until content or model change."""
    lasting = [row for row in rejects if vector_verdict_lasts(row[3])]
    held = pc.is_in(pa.array([row[2] for row in lasting], pa.string()), pa.array(live, pa.string())) if lasting else []
    return {row[2]: row for row, is_live in zip(lasting, held, strict=True) if is_live.as_py()}


def _write_rejects(store: str, space: Space, source: str, fingerprint: str, rejects: Mapping[str, Reject]) -> None:
    url = layout.rejected_vectors_url(store, space.key, fingerprint, source)
    storage.write_table(url, records.rejected_table(list(rejects.values())))
