"""The text of documents. What takes long on hostile bytes is done by a process that can be killed."""

import codecs
import io
import re
import struct
import zlib
from dataclasses import dataclass

from embedding_platform.errors import RejectedError, first_line
from embedding_platform.media.recognition import looks_like_text

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

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


def plain(payload: bytes) -> Document:
    """The text of a file that is nothing but text.

    Raises:
        RejectedError: if it is not text in any encoding.
    """
    text, encoding = decode(payload)
    return Document(storable(text), encoding)


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


def html(payload: bytes) -> Document:
    """The text that an HTML page shows.

    Raises:
        RejectedError: if it is not text, or nested too deeply.
    """
    from bs4 import BeautifulSoup, NavigableString

    declared = _DECLARED_CHARSET.search(payload[:4096])
    markup, encoding = decode(payload, declared[1].decode("ascii", "replace") if declared else "")
    try:
        page = BeautifulSoup(markup, "html.parser")
        for element in page.select(", ".join(_UNSEEN)):
            element.decompose()
        as_it_stands = {id(node) for pre in page.find_all("pre") for node in pre.find_all(string=True)}
        for node in page.find_all(string=True):
            if type(node) is NavigableString and id(node) not in as_it_stands:
                node.replace_with(_WHITE_SPACE.sub(" ", node))
        for element in page.find_all("br"):
            element.replace_with("\n")
        for element in page.find_all(list(_BLOCKS)):
            element.insert(0, "\n")
            element.append("\n")
        text = page.get_text()
    except RecursionError as error:
        raise RejectedError("is nested too deeply to be read as HTML") from error
    lines = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", storable(text)))
    return Document(re.sub(r"\n{3,}", "\n\n", lines).strip(), encoding)


def pdf(payload: bytes) -> Document:
    """The text layer of a PDF.

    Raises:
        RejectedError: if it is damaged or encrypted, or holds no text.
    """
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
        raise RejectedError(f"is a damaged PDF: {first_line(error)}") from error
    # Fonts without a proper map yield NUL and lone surrogates.
    pages = [storable(page) for page in pages]
    if not any(page.strip() for page in pages):
        raise RejectedError("holds no text: a scanned PDF needs text recognition (OCR) first")
    starts, text = [], io.StringIO()
    for page in pages:
        starts.append(text.tell())
        text.write(page + "\n")
    return Document(text.getvalue(), "pdf", tuple(starts))


def storable(text: str) -> str:
    """The text without NUL and lone surrogates, which no store of text takes."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")
