"""What kind of media a file holds: by its content first, by its name second."""

import posixpath
import struct
from collections.abc import Callable
from typing import Any, Final

from embedding_platform.errors import RejectedError
from embedding_platform.media.limits import USUAL_LIMITS, Deadline
from embedding_platform.media.reading import open_media
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "1"

CAPTIONS_FILE = "captions.jsonl"

_HEAD_BYTES = 65_536

_EXTENSIONS: Final = {
    "txt": ("text", "text/plain"),
    "md": ("text", "text/markdown"),
    "markdown": ("text", "text/markdown"),
    "html": ("text", "text/html"),
    "htm": ("text", "text/html"),
    "pdf": ("text", "application/pdf"),
    "jpg": ("image", "image/jpeg"),
    "jpeg": ("image", "image/jpeg"),
    "png": ("image", "image/png"),
    "webp": ("image", "image/webp"),
    "gif": ("image", "image/gif"),
    "tif": ("image", "image/tiff"),
    "tiff": ("image", "image/tiff"),
    "bmp": ("image", "image/bmp"),
    "avif": ("image", "image/avif"),
    "heic": ("image", "image/heic"),
    "wav": ("audio", "audio/wav"),
    "flac": ("audio", "audio/flac"),
    "mp3": ("audio", "audio/mpeg"),
    "ogg": ("audio", "audio/ogg"),
    "oga": ("audio", "audio/ogg"),
    "opus": ("audio", "audio/ogg"),
    "m4a": ("audio", "audio/mp4"),
    "aac": ("audio", "audio/aac"),
    "aif": ("audio", "audio/aiff"),
    "aiff": ("audio", "audio/aiff"),
    "wma": ("audio", "audio/x-ms-asf"),
    "mp4": ("video", "video/mp4"),
    "m4v": ("video", "video/mp4"),
    "3gp": ("video", "video/mp4"),
    "mov": ("video", "video/quicktime"),
    "mkv": ("video", "video/x-matroska"),
    "webm": ("video", "video/webm"),
    "ogv": ("video", "video/ogg"),
    "avi": ("video", "video/x-msvideo"),
    "wmv": ("video", "video/x-ms-asf"),
    "flv": ("video", "video/x-flv"),
    "mpg": ("video", "video/mpeg"),
    "mpeg": ("video", "video/mpeg"),
    "mts": ("video", "video/mp2t"),
    "m2ts": ("video", "video/mp2t"),
}

_TEXT_EXTENSIONS: Final = frozenset({"txt", "md", "markdown", "html", "htm"})

_NOUNS: Final = {"text": "a document", "image": "an image", "audio": "sound", "video": "a video"}

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "container/ogg"),
    (b"\x1a\x45\xdf\xa3", "container/x-matroska"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "container/x-ms-asf"),
    (b"FLV\x01", "container/x-flv"),
    (b"\x00\x00\x01\xba", "container/mpeg"),
    (b"\x00\x00\x01\xb3", "container/mpeg"),
)

_FORM_TYPES: Final = {
    (b"RIFF", b"WEBP"): "image/webp",
    (b"RIFF", b"WAVE"): "audio/wav",
    (b"RF64", b"WAVE"): "audio/wav",
    (b"RIFF", b"AVI "): "container/x-msvideo",
    (b"FORM", b"AIFF"): "audio/aiff",
    (b"FORM", b"AIFC"): "audio/aiff",
}

_BRANDS: Final = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heic",
    b"qt  ": "container/quicktime",
}

_BITMAP_HEADERS: Final = frozenset({12, 40, 52, 56, 64, 108, 124})
"""Sizes that the header after a BMP's file header has had in the format's history."""


def recognise(
    path: str,
    uri: str,
    limits: DecodingSettings = USUAL_LIMITS,
    decode: Callable[..., Any] = lambda function, *arguments: function(*arguments),
) -> tuple[str, str] | None:
    """Modality (text, image, audio, video) and media type of a file; None for other files.

    A signature in the content wins over the name. A container that can hold both is sound
    unless it has a video stream other than an attached picture. To find out, native code opens
    it: `decode` calls the function that it is given, with the arguments.

    Raises:
        RejectedError: if the name promises media that the content does not hold.
    """
    if "\ufffd" in path:
        if claimed(path) is None:
            return None
        raise RejectedError("has a name that is not UTF-8: rename it")
    if posixpath.basename(path) == CAPTIONS_FILE:
        return None
    with open_media(uri) as file:
        head = file.read(_HEAD_BYTES)
    media_type = _by_content(head)
    if media_type is None:
        return _by_name(path, head)
    kind, _, subtype = media_type.partition("/")
    if kind == "container":
        kind = decode(_container_kind, uri, limits)
        media_type = f"{kind}/{subtype}"
    return ("text" if kind == "application" else kind), media_type


def claimed(path: str) -> tuple[str, str] | None:
    """Modality and media type that a file's extension claims; None where it claims none."""
    return _EXTENSIONS.get(_extension(path))


def looks_like_text(head: bytes) -> bool:
    """Whether bytes can be the beginning of a text in some encoding."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    controls = sum(head.count(code) for code in (*range(1, 9), *range(14, 27), *range(28, 32), 127))
    return b"\x00" not in head and controls * 20 <= len(head)


def _extension(path: str) -> str:
    return posixpath.splitext(path)[1].lstrip(".").lower()


def _by_name(path: str, head: bytes) -> tuple[str, str] | None:
    claim = claimed(path)
    if claim is None:
        return None
    extension = _extension(path)
    if not head:
        raise RejectedError("is empty (0 bytes)")
    is_text = looks_like_text(head)
    if extension in _TEXT_EXTENSIONS:
        if not is_text:
            raise RejectedError(f"named .{extension} but holds binary data, not text")
        return claim
    noun = "a PDF" if extension == "pdf" else _NOUNS[claim[0]]
    if is_text and _is_utf8(head):
        raise RejectedError(f"named .{extension} but holds plain text, not {noun}")
    raise RejectedError(f"named .{extension} but its content is not {noun} of any known format")


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The head may end within a character.
        return len(head) == _HEAD_BYTES and error.start > len(head) - 4
    return True


def _by_content(head: bytes) -> str | None:
    """Media type by signature; "container/..." where only the streams tell the modality."""
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return "container/webm" if signature == b"\x1a\x45\xdf\xa3" and b"webm" in head[:64] else media_type
    if form := _FORM_TYPES.get((head[:4], head[8:12])):
        return form
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "container/mp4")
    if head[4:8] in (b"moov", b"mdat", b"wide", b"pnot"):
        return "container/quicktime"
    if b"%PDF-" in head[:1024] and looks_like_pdf(head):
        return "application/pdf"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS:
        return "image/bmp"
    if len(head) > 564 and all(head[at] == 0x47 for at in (0, 188, 376, 564)):
        return "container/mp2t"
    return _by_frames(head.lstrip(b"\x00"))


def looks_like_pdf(head: bytes) -> bool:
    """Whether a PDF header begins a line near the start, as readers accept it."""
    at = head.find(b"%PDF-", 0, 1024)
    return at == 0 or (at > 0 and head[at - 1 : at] in (b"\n", b"\r", b"\x00", b"\xbf"))


def _by_frames(head: bytes) -> str | None:
    """Media type of bare MPEG audio: two frame headers in a row, the second where the first says."""
    for length_of, media_type in ((_adts_length, "audio/aac"), (_mpeg_length, "audio/mpeg")):
        length = length_of(head[:7])
        if length and length_of(head[length : length + 7]):
            return media_type
    return None


def _adts_length(header: bytes) -> int:
    """Bytes of the ADTS frame that a header begins (ISO/IEC 13818-7, 6.2); 0 if it begins none."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    return (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5


_BIT_RATES: Final = {
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (2, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES: Final = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def _mpeg_length(header: bytes) -> int:
    """Bytes of the MPEG layer II or III frame that a header begins (ISO/IEC 11172-3, 2.4.2.3); else 0."""
    if len(header) < 4:
        return 0
    (word,) = struct.unpack(">I", header[:4])
    version, layer = word >> 19 & 3, word >> 17 & 3
    rate_index, sample_index, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if word >> 21 != 0x7FF or version == 1 or layer not in (1, 2) or rate_index in (0, 15) or sample_index == 3:
        return 0
    bit_rate = _BIT_RATES[(3, layer) if version == 3 else (2, 1)][rate_index] * 1000
    samples = 576 if version != 3 and layer == 1 else 1152
    return samples // 8 * bit_rate // _SAMPLE_RATES[version][sample_index] + padding


def _container_kind(uri: str, limits: DecodingSettings) -> str:
    from embedding_platform.media.streams import open_container, picture_stream, sound_stream

    with open_container(uri, Deadline(limits)) as container:
        if picture_stream(container) is not None:
            return "video"
        if sound_stream(container) is not None:
            return "audio"
    raise RejectedError("holds neither sound nor moving pictures")
