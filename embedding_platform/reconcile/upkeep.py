"""Joining the small files that many small increments leave behind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedding_platform import layout, storage
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.reconcile.segments import ROWS_PER_SHARD
from embedding_platform.records import SEGMENTS
from embedding_platform.spaces import Space
from embedding_platform.vectors import store as vector_store

FEWEST_SHARDS = 4
"""Small shards of a folder that are worth joining when nothing else is to be done."""


@dataclass(frozen=True)
class Compaction:
    """Shards that were joined, by what they hold and source, and the number of folders looked at."""

    joined: dict[tuple[str, str], int]
    folders: int


def compact_all(
    store: str,
    sources: dict[str, Sequence[str]],
    spaces: Sequence[tuple[Space, str]],
    cutting: Cutting,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Compaction:
    """Join the small shards of all sources, given by modality, and of spaces, given with their fingerprints.

    No row is dropped that another does not repeat, and old shards go when the new ones are durable, so
    that runs of the same sources may go on meanwhile.
    """
    work: list[tuple[tuple[str, str], Callable[[], int]]] = []
    for modality, names in sources.items():
        for source in names:
            work.append(((f"{modality}/segments", source), _segments(store, modality, source, cutting)))
            for space, fingerprint in spaces:
                if space.modality == modality:
                    work.append(((f"{space.key}/embeddings", source), _vectors(store, space, fingerprint, source)))
    joined: dict[tuple[str, str], int] = {}
    for done, (place, compact) in enumerate(work, 1):
        if removed := compact():
            joined[place] = removed
        progress(done, len(work))
    return Compaction(joined, len(work))


def _segments(store: str, modality: str, source: str, cutting: Cutting) -> Callable[[], int]:
    folder = layout.segments_folder(store, modality, source, code_version(modality, cutting))
    # All rows stay: which of them are live is for a run of the source to say, which knows of its own listing.
    return lambda: storage.compact_shards(folder, SEGMENTS, lambda table: table, ROWS_PER_SHARD, FEWEST_SHARDS)


def _vectors(store: str, space: Space, fingerprint: str, source: str) -> Callable[[], int]:
    folder = layout.vectors_folder(store, space.key, fingerprint, source)
    return lambda: vector_store.compact(folder, space.model.dimension, fingerprint, fewest=FEWEST_SHARDS)
