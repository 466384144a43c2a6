"""Text documents: passages of at most so many tokens, cut where the text itself pauses."""

import bisect
import hashlib
import itertools
import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.confinement import parse
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.documents import Document
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, check_size
from embedding_platform.media.listing import current_state
from embedding_platform.media.reading import open_media
from embedding_platform.media.recognition import looks_like_pdf
from embedding_platform.records import Content, Item, Segment, digest, segment_id
from embedding_platform.settings import DecodingSettings

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

CODE_VERSION = "2"

_STRETCH = 16_384
"""Characters that are cut at a time: what a splitter takes grows with the square of a text without pauses,
to a second for so many Chinese characters in one line, and to hours for a million."""

_PAUSES = ("\n\n", "\n", ". ", " ")
"""Where a longer text is parted into stretches, the best first."""

_BYTES_PER_TOKEN = 4
"""What a token of English holds in most vocabularies; used where no tokenizer is named."""

_MOST_CHARACTERS_PER_TOKEN = 16
"""More than this is no language: WordPiece takes a run of 10,000 letters for a single
unknown token, and a vector of it would stand for nothing."""

_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def probe(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> dict[str, Any]:
    """Characters, lines, words and encoding of a document; pages of a PDF.

    A word is a run between spaces that holds a letter or a digit; where a script sets no
    spaces, each ideograph and kana counts as one.

    Raises:
        RejectedError: if the document is unreadable or holds no text.
    """
    document = extract(uri, limits)
    words = sum(any(map(str.isalnum, run)) for run in _IDEOGRAPH.sub(" 一 ", document.text).split())
    attributes = {
        "characters": len(document.text),
        "lines": len(document.text.splitlines()),
        "words": words,
        "encoding": document.encoding,
    }
    return attributes | ({"pages": len(document.page_starts)} if document.page_starts else {})


def cut(source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """Passages within the token limit; `start` and `end` index the extracted text's characters.

    A passage ends where a paragraph, a sentence or a word does, whichever fits; only a word
    longer than the limit is cut, between graphemes. A PDF's passage has its first page as
    attribute "page".

    Raises:
        RejectedError: if the document is unreadable or holds no text.
        PlatformError: if the tokenizer is unreadable, or the limits leave no room for text.
    """
    document = extract(item.uri, cutting.decoding)
    passages = itertools.islice(_passages(document.text, cutting), cutting.most_segments)
    return [
        Segment(
            segment_id=segment_id(source, item.path, "text", position),
            path=item.path,
            uri=item.uri,
            item_version=item.version,
            role="text",
            position=position,
            start=float(start),
            end=float(start + len(text)),
            text=text,
            content_hash=digest("text", text),
            attributes={"page": bisect.bisect_right(document.page_starts, start)} if document.page_starts else {},
        )
        for position, (start, text) in enumerate(passages)
    ]


def read(segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield the text of each segment; no file is opened."""
    for segment in segments:
        yield segment.text or ""


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """What of `cutting` decides the passages; the tokenizer by its content, not its place."""
    return (
        _tokenizer_digest(cutting.tokenizer_file),
        str(cutting.max_tokens),
        str(cutting.overlap_tokens),
    )


def extract(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> Document:
    """The text of a document: as it stands, what HTML shows, or the text layer of a PDF.

    Raises:
        RejectedError: if it is unreadable, encrypted, binary or too large, or holds no text.
    """
    with open_media(uri) as file:
        payload = file.read(limits.max_document_megabytes * 2**20 + 1)
    return document_of(payload, uri, limits)


def document_of(payload: bytes, name: str, limits: DecodingSettings = USUAL_LIMITS) -> Document:
    """The same, of the bytes of a file of that name.

    Raises:
        RejectedError: as `extract` does.
    """
    if not payload:
        raise RejectedError("is empty (0 bytes)")
    check_size(limits, "text", len(payload))
    if looks_like_pdf(payload[:1024]):
        return parse("pdf", payload, limits)
    is_html = posixpath.splitext(name)[1].lower() in (".html", ".htm")
    document = parse("html" if is_html else "plain", payload, limits)
    if not document.text.strip():
        raise RejectedError("holds no text")
    return document


def _passages(text: str, cutting: Cutting) -> Iterator[tuple[int, str]]:
    """Yield where each passage starts, and its text."""
    coarse, fine = _splitters(cutting)
    deadline = Deadline(cutting.decoding)
    for begins, stretch in _stretches(text):
        deadline.check()
        for offset, passage in coarse.chunk_indices(stretch):
            start = begins + offset
            if len(passage) <= cutting.max_tokens * _MOST_CHARACTERS_PER_TOKEN:
                yield start, passage
            else:
                yield from ((start + place, part) for place, part in fine.chunk_indices(passage))


def _stretches(text: str) -> Iterator[tuple[int, str]]:
    """Yield where each stretch starts, and its text: as long as may be, ending at the best pause of its second half."""
    start = 0
    while len(text) - start > _STRETCH:
        end = start + _STRETCH
        for pause in _PAUSES:
            found = text.rfind(pause, start + _STRETCH // 2, end)
            if found >= 0:
                end = found + len(pause)
                break
        yield start, text[start:end]
        start = end
    yield start, text[start:]


@lru_cache(maxsize=8)
def _splitters(cutting: Cutting) -> tuple["TextSplitter", "TextSplitter"]:
    """A splitter by tokens alone, and a slower one for passages that are long in characters too."""
    from semantic_text_splitter import TextSplitter
    from tokenizers import Tokenizer

    overlap = cutting.overlap_tokens
    if cutting.tokenizer_file is None:
        _check_limits(cutting, special=0)
        by_bytes = TextSplitter.from_callback(
            lambda text: -(-len(text.encode("utf-8")) // _BYTES_PER_TOKEN), cutting.max_tokens, overlap=overlap
        )
        return by_bytes, by_bytes
    tokenizer = Tokenizer.from_str(_tokenizer_json(cutting.tokenizer_file))
    # Both are often saved with a tokenizer and would hide how long a text is.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    _check_limits(cutting, special)

    def size(text: str) -> int:
        tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
        return max(tokens, -(-len(text) // _MOST_CHARACTERS_PER_TOKEN))

    capacity = cutting.max_tokens - special
    return (
        TextSplitter.from_huggingface_tokenizer(tokenizer, capacity, overlap=overlap),
        TextSplitter.from_callback(size, capacity, overlap=overlap),
    )


def _check_limits(cutting: Cutting, special: int) -> None:
    if cutting.overlap_tokens < 0 or cutting.max_tokens - special <= cutting.overlap_tokens:
        raise PlatformError(
            f"max_tokens {cutting.max_tokens} leaves no room beside {special} special tokens "
            f"and an overlap of {cutting.overlap_tokens}; raise max_tokens or lower overlap_tokens"
        )


def _tokenizer_digest(path: str | None) -> str:
    if path is None:
        return hashlib.sha256(b"").hexdigest()
    # Asked of each source and at each write, while a vocabulary takes 20 ms to read; one saved anew has another mark.
    return _digest_as_marked(path, current_state(path) if os.path.exists(path) else None)


@lru_cache(maxsize=8)
def _digest_as_marked(path: str, mark: tuple[int, str] | None) -> str:
    return hashlib.sha256(_tokenizer_json(path).encode()).hexdigest()


def _tokenizer_json(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            content = file.read()
    except OSError as error:
        raise PlatformError(
            f"tokenizer {path} cannot be read: {error.strerror}; fetch the model again or set another"
        ) from error
    try:
        is_tokenizer = "model" in json.loads(content)
    except (ValueError, TypeError):
        is_tokenizer = False
    if not is_tokenizer:
        raise PlatformError(f"tokenizer {path} is not a tokenizer.json; fetch the model again or set another")
    return content
