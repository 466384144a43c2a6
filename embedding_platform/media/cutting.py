"""Cut items into segments and read segments back, whatever their modality.

A modality is a module of this package that bears its name and has `CODE_VERSION`, `probe`,
`cut`, `read` and `parameters`.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

from embedding_platform.media.limits import USUAL_LIMITS
from embedding_platform.records import SEGMENTS_LAYOUT, Content, Item, Segment, digest
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "item-attributes"
"""What `cut` adds to a modality's segments: another name has all items cut anew."""


@dataclass(frozen=True)
class Cutting:
    """How large segments are.

    `tokenizer_file` is the path of a Hugging Face tokenizer.json, None to count four bytes
    of UTF-8 as one token. `max_tokens` is the longest passage, special tokens included;
    `overlap_tokens` is the most that a passage repeats of the one before it. `decoding` bounds
    what a file may take; it decides whether there are segments, never which. Of a file with more
    than `most_segments`, a number for queries alone, what comes after them is not decoded.
    """

    tokenizer_file: str | None
    max_tokens: int
    overlap_tokens: int
    audio_window_seconds: float = 30.0
    clip_seconds: float = 2.56
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    most_segments: int | None = None


def modality_module(modality: str) -> ModuleType:
    """The module of this package that knows a modality."""
    return importlib.import_module(f"embedding_platform.media.{modality}")


def cut(modality: str, source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """The segments of an item, at least one; the whole file is decoded on the way, or what `most_segments` need.

    Each has the attributes of the item and its own, so that rows can be told by either.

    Raises:
        RejectedError: if the item cannot be decoded to its end, or holds nothing.
    """
    segments: list[Segment] = modality_module(modality).cut(source, item, cutting)[: cutting.most_segments]
    return [replace(segment, attributes={**item.attributes, **segment.attributes}) for segment in segments]


def read(modality: str, segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield the decoded contents of segments of one file, which are in order of position.

    The file is decoded in one pass, and memory holds one content at a time.

    Raises:
        RejectedError: if the file cannot be decoded, or has changed since it was cut.
    """
    contents: Iterator[Content] = modality_module(modality).read(segments, limits)
    return contents


def code_version(modality: str, cutting: Cutting) -> str:
    """Hash of all that decides an item's segments besides the item: code, parameters, and how segments are stored."""
    module = modality_module(modality)
    return digest(modality, module.CODE_VERSION, CODE_VERSION, *SEGMENTS_LAYOUT, *module.parameters(cutting))
