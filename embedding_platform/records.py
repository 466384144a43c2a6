"""What flows between stages: items, segments, decoded contents, and their tables."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS_PER_PIECE = 2**16
"""Rows of a table that are copied at once, where a copy of a million would take hundreds of megabytes."""

SAMPLE_RATE = 16_000
"""Hz of decoded audio: what Whisper was trained on (Radford et al. 2022, section 2.2)."""

MAX_AUDIO_SECONDS = 30.0
"""Longest audio window: Whisper's input is 30 s (Radford et al. 2022, section 2.2)."""

CLIP_FRAMES = 16
CLIP_FRAME_RATE = 25
CLIP_SAMPLE_RATE = 48_000
CLIP_SOUND_SAMPLES = 30_720
"""One video window: 16 frames at 25 fps and the 30,720 samples at 48 kHz that sound with
them, 0.64 s (Jaegle et al. 2021, "Perceiver IO", section on Kinetics-700)."""

ITEMS = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.string()),
        ("media_type", pa.string()),
        ("content_hash", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("captions_modified", pa.string()),
        ("attributes", pa.string()),
        ("version", pa.string()),
    ]
)
"""One row per media file of a source; the columns are the fields of `Item` and its version."""

SEGMENTS = pa.schema(
    [
        ("segment_id", pa.string()),
        ("path", pa.string()),
        ("uri", pa.string()),
        ("item_version", pa.string()),
        ("role", pa.string()),
        ("position", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("text", pa.string()),
        ("content_hash", pa.string()),
        ("attributes", pa.string()),
        ("row_version", pa.string()),
    ]
)
"""One row per segment; the columns are the fields of `Segment` and its row version."""

_ROW_LAYOUT = "1"
"""Part of every row version: raise it when `row_version` takes up something else of a segment."""

SEGMENTS_LAYOUT = (*SEGMENTS.names, _ROW_LAYOUT)
"""What a stored segment consists of. A part of the cutter's version, so that segments stored otherwise are cut anew."""

REJECTED = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row per thing that a stage could not use. `version` is what the verdict was passed on:
when the thing, or our code for it, changes, it is tried again."""


def vectors_schema(dimension: int) -> pa.Schema:
    """Schema of a vector shard: content hash, `dimension` float32 values, and provenance.

    `fingerprint` (64 hex digits) is that of the space whose model made the vector.
    """
    return pa.schema(
        [
            ("content_hash", pa.string()),
            ("vector", pa.list_(pa.float32(), dimension)),
            ("run_id", pa.string()),
            ("embedded_at", pa.timestamp("us", tz="UTC")),
            ("device", pa.string()),
            ("fingerprint", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Item:
    """One media file: where it is and what it holds.

    `path` is relative to the source, `uri` is the whole fsspec URL. `modified` is the times
    or etag that spare hashing; `captions_modified` is that of the files the captions came
    from ("" without captions). `content_hash` is the SHA-256 of the file's bytes in hex.
    """

    path: str
    uri: str
    size: int
    modified: str
    media_type: str
    content_hash: str
    captions: tuple[str, ...] = ()
    captions_modified: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What decides the item's segments: its bytes and its captions."""
        return digest(self.content_hash, *self.captions)


@dataclass(frozen=True)
class Segment:
    """The piece of an item that gets one vector.

    `position` counts the segments of one role in the item from 0. `start` and `end` are in
    the modality's unit (characters of the extracted text, or seconds; 0 and 0 for a whole
    file). `text` is the passage or caption, None for other roles. `content_hash` decides
    whether a vector can be reused: equal hashes hold equal content of equal role.
    """

    segment_id: str
    path: str
    uri: str
    item_version: str
    role: Role
    position: int
    start: float
    end: float
    text: str | None
    content_hash: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sound:
    """Decoded mono sound: float32 [n] in [-1, 1], `rate` samples a second."""

    samples: np.ndarray
    rate: int = SAMPLE_RATE


@dataclass(frozen=True)
class VideoClip:
    """A decoded clip as a video model sees it.

    `frames` is uint8 [CLIP_FRAMES, height, width, 3] RGB, `sound` float32
    [CLIP_SOUND_SAMPLES] mono in [-1, 1] at CLIP_SAMPLE_RATE, or None for a silent file.
    """

    frames: np.ndarray
    sound: np.ndarray | None


Content: TypeAlias = "str | Image | Sound | VideoClip"
"""A decoded segment: text, an RGB image, sound, or a clip."""


def digest(*parts: str) -> str:
    """SHA-256 in hex of the parts, each with its length, so that no two splits agree."""
    hasher = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "big"))
        hasher.update(encoded)
    return hasher.hexdigest()


def segment_id(source: str, path: str, role: Role, position: int) -> str:
    """The row key of a segment: 32 hex digits that its place decides, never its content."""
    return digest(source, path, role, str(position))[:32]


def row_version(source: str, segment: Segment) -> str:
    """Digest of all that a segment tells its row but for the file's URL, which changes when the media root moves."""
    return digest(
        _ROW_LAYOUT,
        source,
        segment.segment_id,
        segment.path,
        segment.role,
        str(segment.position),
        repr(float(segment.start)),
        repr(float(segment.end)),
        segment.content_hash,
        segment.item_version,
        segment.text or "",
        _json(segment.attributes),
    )


def column_digest(*columns: pa.ChunkedArray) -> str:
    """SHA-256 in hex of columns of strings without nulls, in order, without making a Python object of each value.

    Each column counts with its lengths and its bytes, so that no two splits agree.
    """
    hasher = hashlib.sha256()
    for column in columns:
        hasher.update(len(column).to_bytes(8, "big"))
        end = np.zeros(1, "<i8")
        hasher.update(end.tobytes())
        for places, _ in _buffers(column):
            hasher.update((places[1:] + end).tobytes())
            end += places[-1]
        for _, payload in _buffers(column):
            hasher.update(payload)
    return hasher.hexdigest()


def _buffers(column: pa.ChunkedArray) -> Iterator[tuple[np.ndarray, memoryview]]:
    """Yield offsets and bytes of a column of strings, a piece at a time: no copy is made of the whole."""
    for first in range(0, len(column), ROWS_PER_PIECE):
        # Casting gives fresh arrays, however the column was sliced or chunked.
        chunks = column.slice(first, ROWS_PER_PIECE).cast(pa.large_binary()).chunks
        values = pa.concat_arrays([pa.array([], pa.large_binary()), *chunks])
        _, offsets, payload = values.buffers()
        places = np.frombuffer(offsets, dtype="<i8")[: len(values) + 1]
        yield places, memoryview(payload or b"")[: places[-1]]


def items_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table of schema ITEMS."""
    rows = [_row(item, ITEMS) for item in items]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def items(table: pa.Table) -> list[Item]:
    """The items of a table of schema ITEMS."""
    fields = [name for name in ITEMS.names if name != "version"]
    return [
        Item(**{**row, "captions": tuple(row["captions"]), "attributes": json.loads(row["attributes"])})
        for row in table.select(fields).to_pylist()
    ]


def segments_table(segments: Iterable[Segment], source: str) -> pa.Table:
    """Segments of a source as a table of schema SEGMENTS."""
    rows = [_row(segment, SEGMENTS) | {"row_version": row_version(source, segment)} for segment in segments]
    return pa.Table.from_pylist(rows, schema=SEGMENTS)


def segments(table: pa.Table) -> list[Segment]:
    """The segments of a table of schema SEGMENTS."""
    fields = [name for name in SEGMENTS.names if name != "row_version"]
    return [Segment(**{**row, "attributes": json.loads(row["attributes"])}) for row in table.select(fields).to_pylist()]


def rejected_rows(table: pa.Table) -> list[tuple[str, str, str, str]]:
    """The rows (path, uri, version, reason) of a table of schema REJECTED."""
    return list(zip(*(table[name].to_pylist() for name in REJECTED.names), strict=True))


def rejected_table(rows: Sequence[tuple[str, str, str, str]]) -> pa.Table:
    """Rows of (path, uri, version, reason) as a table of schema REJECTED."""
    return pa.Table.from_pylist([dict(zip(REJECTED.names, row, strict=True)) for row in rows], schema=REJECTED)


def _row(record: Item | Segment, schema: pa.Schema) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in schema.names if name != "row_version"}
    row["attributes"] = _json(record.attributes)
    return row


def _json(attributes: Mapping[str, Any]) -> str:
    return json.dumps(attributes, sort_keys=True, ensure_ascii=False)
