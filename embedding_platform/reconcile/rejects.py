"""All that the stages could not use, why, and what makes them try again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from embedding_platform import layout, storage
from embedding_platform.buckets import among, folder_of
from embedding_platform.errors import RejectedError
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.media.items import verdict_code
from embedding_platform.media.limits import stands
from embedding_platform.media.listing import current_state
from embedding_platform.reconcile.embeddings import rejected_contents, vector_verdict_lasts
from embedding_platform.reconcile.files import once_listed, stored_items, stored_rejects
from embedding_platform.reconcile.segments import cut_verdict_lasts, rejected_items
from embedding_platform.spaces import Space

NEXT_RUN = "at the next run"
NEXT_RUN_CHANGED = "at the next run, since the file has changed"
NEXT_RUN_GONE = "never: the file is gone, and so is this at the next run"
FILE_CHANGES = "when the file changes"
CUTTING_CHANGES = "when the file, its captions or how files are cut change"
MODEL_CHANGES = "when the content or the model changes"


@dataclass(frozen=True)
class Rejected:
    """One thing that a stage could not use, as the last run left it.

    `asset` is the stage: "image/files", "image/segments", "image/clip/embeddings". `retried`
    says what makes it tried again.
    """

    asset: str
    source: str
    path: str
    uri: str
    reason: str
    retried: str


class Rejection(NamedTuple):
    """How many of a number of things a stage could not use."""

    rejected: int
    total: int

    @property
    def share(self) -> float:
        """The rejected as a part of all, from 0 to 1."""
        return self.rejected / self.total if self.total else 0.0

    def with_others(self, others: "Rejection") -> "Rejection":
        """Both together."""
        return Rejection(self.rejected + others.rejected, self.total + others.total)


NOTHING_BESIDE = Rejection(0, 0)


def rejected_files_beside(store: str, modality: str, source: str) -> Rejection:
    """What the last listings of the other buckets of the source's folder rejected, out of all of their files."""
    rejected, items = _rows_beside(store, modality, source, partial(layout.rejected_items_url, store, modality))
    return Rejection(rejected, rejected + items)


def rejected_items_beside(store: str, modality: str, source: str, cutting: Cutting) -> Rejection:
    """The items of the other buckets of the source's folder that could not be cut, out of all of them."""
    table_of = partial(layout.rejected_segments_url, store, modality, cut_version=code_version(modality, cutting))
    return Rejection(*_rows_beside(store, modality, source, table_of))


def rejected_of_source(
    store: str, modality: str, source: str, spaces: Sequence[tuple[Space, str]], cutting: Cutting
) -> Iterator[Rejected]:
    """What the files, segments and embeddings stages rejected of one source, sorted by stage and path.

    `spaces` are the modality's, with their fingerprints. Each file is looked at, without being
    opened, to tell whether it has changed since.

    Raises:
        PlatformError: if a table cannot be read.
    """
    present_code = verdict_code(modality)
    for path, uri, version, reason in sorted(stored_rejects(store, modality, source)):
        state, _, code = version.rpartition("-")
        lasts = code == present_code and stands(reason, cutting.decoding)
        retried = _retried(uri, state, FILE_CHANGES if lasts else NEXT_RUN)
        yield Rejected(f"{modality}/files", source, path, uri, reason, retried)
    listed = {item.path: item for item in stored_items(store, modality, source)}
    for path, uri, version, reason in sorted(rejected_items(store, modality, source, cutting)):
        item = listed.get(path)
        if item is None or item.version != version:
            retried = NEXT_RUN
        else:
            otherwise = CUTTING_CHANGES if cut_verdict_lasts(reason, cutting) else NEXT_RUN
            retried = _retried(uri, f"{item.size}-{item.modified}", otherwise)
        yield Rejected(f"{modality}/segments", source, path, uri, reason, retried)
    for space, fingerprint in spaces:
        for path, uri, _, reason in sorted(rejected_contents(store, space, source, fingerprint)):
            retried = MODEL_CHANGES if vector_verdict_lasts(reason) else NEXT_RUN
            yield Rejected(f"{space.key}/embeddings", source, path, uri, reason, retried)


def _rows_beside(store: str, modality: str, source: str, rejected_table_of: Callable[[str], str]) -> tuple[int, int]:
    """How many rows the tables of rejects, and those of items, of the other buckets of the source's folder have."""
    buckets = among(once_listed(store, modality), [folder_of(source)])
    others = [bucket for bucket in buckets if bucket != source]
    rejected = sum(storage.row_count(rejected_table_of(other)) for other in others)
    return rejected, sum(storage.row_count(layout.items_url(store, modality, other)) for other in others)


def _retried(uri: str, state: str, otherwise: str) -> str:
    """What makes a file tried again that was rejected while its size and change mark were `state`."""
    try:
        size, modified = current_state(uri)
    except FileNotFoundError:
        return NEXT_RUN_GONE
    except RejectedError:
        # The next run looks again.
        return NEXT_RUN
    return otherwise if f"{size}-{modified}" == state else NEXT_RUN_CHANGED
