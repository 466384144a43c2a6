"""Text documents: passages of at most so many tokens, cut where the text itself pauses."""

import bisect
import codecs
import hashlib
import io
import json
import posixpath
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.listing import open_media
from embedding_platform.media.recognition import looks_like_pdf, looks_like_text
from embedding_platform.records import Content, Item, Segment, digest, segment_id

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

CODE_VERSION = "1"

MAX_BYTES = 64 * 2**20
"""Largest document that is read: a text is held whole while it is cut."""

_BYTES_PER_TOKEN = 4
"""What a token of English holds in most vocabularies; used where no tokenizer is named."""

_MOST_CHARACTERS_PER_TOKEN = 16
"""More than this is no language: WordPiece takes a run of 10,000 letters for a single
unknown token, and a vector of it would stand for nothing."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_DECLARED_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"[ \t\r\n\f]+")
_UNSEEN = ("script", "style", "template", "noscript", "head > :not(title)", "[hidden]")
_BLOCKS = (
    "title",
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "section",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "tr",
    "ul",
)


@dataclass(frozen=True)
class Document:
    """The text of a file, the encoding of its bytes, and where its pages start ([] without pages)."""

    text: str
    encoding: str
    page_starts: tuple[int, ...] = ()


def probe(uri: str) -> dict[str, Any]:
    """Characters, lines, words and encoding of a document; pages of a PDF.

    A word is a run between spaces that holds a letter or a digit; where a script sets no
    spaces, each ideograph and kana counts as one.

    Raises:
        RejectedError: if the document is unreadable or holds no text.
    """
    document = extract(uri)
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
    document = extract(item.uri)
    passages = _passages(document.text, cutting)
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


def read(segments: Sequence[Segment]) -> Iterator[Content]:
    """Yield the text of each segment; no file is opened."""
    for segment in segments:
        yield segment.text or ""


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """What of `cutting` decides the passages; the tokenizer by its content, not its place."""
    tokenizer = "" if cutting.tokenizer_file is None else _tokenizer_json(cutting.tokenizer_file)
    return (
        hashlib.sha256(tokenizer.encode()).hexdigest(),
        str(cutting.max_tokens),
        str(cutting.overlap_tokens),
    )


def extract(uri: str) -> Document:
    """The text of a document: as it stands, what HTML shows, or the text layer of a PDF.

    Raises:
        RejectedError: if it is unreadable, encrypted, binary or too large, or holds no text.
    """
    with open_media(uri) as file:
        payload = file.read(MAX_BYTES + 1)
    if not payload:
        raise RejectedError("is empty (0 bytes)")
    if len(payload) > MAX_BYTES:
        raise RejectedError(f"is larger than {MAX_BYTES // 2**20} MiB: split it")
    if looks_like_pdf(payload[:1024]):
        return _pdf(payload)
    is_html = posixpath.splitext(uri)[1].lower() in (".html", ".htm")
    document = _html(payload) if is_html else Document(*decode(payload))
    if not document.text.strip():
        raise RejectedError("holds no text")
    return document


def decode(payload: bytes, declared: str = "") -> tuple[str, str]:
    """Text of bytes, and the encoding: by byte order mark, as UTF-8, as declared, or by statistics.

    Raises:
        RejectedError: if the bytes are not text in any encoding.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if payload.startswith(mark):
            try:
                return payload.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise RejectedError(f"begins as {encoding} but is not: byte {error.start} cannot be decoded") from error
    if not looks_like_text(payload):
        raise RejectedError("holds binary data, not text")
    for encoding in ("utf-8", declared):
        try:
            return payload.decode(encoding), encoding
        except (UnicodeError, LookupError):
            continue
    from charset_normalizer import from_bytes

    guess = from_bytes(payload).best()
    if guess is None:
        raise RejectedError("is not text in any known encoding: save it as UTF-8")
    return str(guess), guess.encoding


def _html(payload: bytes) -> Document:
    from bs4 import BeautifulSoup, NavigableString

    declared = _DECLARED_CHARSET.search(payload[:4096])
    markup, encoding = decode(payload, declared[1].decode("ascii", "replace") if declared else "")
    try:
        page = BeautifulSoup(markup, "html.parser")
        for element in page.select(", ".join(_UNSEEN)):
            element.decompose()
        for node in page.find_all(string=True):
            if type(node) is NavigableString and node.find_parent("pre") is None:
                node.replace_with(_WHITE_SPACE.sub(" ", node))
        for element in page.find_all("br"):
            element.replace_with("\n")
        for element in page.find_all(list(_BLOCKS)):
            element.insert(0, "\n")
            element.append("\n")
        text = page.get_text()
    except RecursionError as error:
        raise RejectedError("is nested too deeply to be read as HTML") from error
    lines = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
    return Document(re.sub(r"\n{3,}", "\n\n", lines).strip(), encoding)


def _pdf(payload: bytes) -> Document:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    # pypdf meets damage with errors of its own and with whatever Python raises on the way.
    damage = (
        PyPdfError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
        TypeError,
        ValueError,
        AssertionError,
        OSError,
        NotImplementedError,
        struct.error,
        zlib.error,
    )
    try:
        reader = PdfReader(io.BytesIO(payload))
        if reader.is_encrypted and not reader.decrypt(""):
            raise RejectedError("is encrypted: save it without a password")
        pages = [page.extract_text() for page in reader.pages]
    except DependencyError as error:
        raise RejectedError("is encrypted: save it without a password") from error
    except damage as error:
        raise RejectedError(f"is a damaged PDF: {error}") from error
    # Fonts without a proper map yield NUL and lone surrogates, which no store of text takes.
    pages = [page.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8") for page in pages]
    if not any(page.strip() for page in pages):
        raise RejectedError("holds no text: a scanned PDF needs text recognition (OCR) first")
    starts, text = [], io.StringIO()
    for page in pages:
        starts.append(text.tell())
        text.write(page + "\n")
    return Document(text.getvalue(), "pdf", tuple(starts))


def _passages(text: str, cutting: Cutting) -> Iterator[tuple[int, str]]:
    """Yield where each passage starts, and its text."""
    coarse, fine = _splitters(cutting)
    for start, passage in coarse.chunk_indices(text):
        if len(passage) <= cutting.max_tokens * _MOST_CHARACTERS_PER_TOKEN:
            yield start, passage
        else:
            yield from ((start + offset, part) for offset, part in fine.chunk_indices(passage))


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
