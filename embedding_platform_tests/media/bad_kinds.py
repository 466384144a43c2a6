"""Files as people, programs and attackers leave them: how each kind is made, and what becomes of it."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from PIL import Image

from embedding_platform.settings import DecodingSettings

from .made import encoded, picture, tone, write_sound, write_video
from .test_text import pdf

INDEXED = "indexed"
"""The verdict on a file that gives segments; any other is a pattern of the reason, "" where no table names it."""

BRIEF = DecodingSettings(max_seconds=2)
"""For files that would keep a decoder busy for hours: the reason names the limit that ended it."""

SPARSE_BYTES = 5 * 2**30


@dataclass(frozen=True)
class Kind:
    """A file's name, what writes it at a path, and the verdict by the path of what is listed.

    `verdict` is that on the file itself, `others` those on files and lines beside it.
    """

    name: str
    make: Callable[[Path], object]
    verdict: str
    modality: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    limits: DecodingSettings = field(default_factory=DecodingSettings)


def bytes_of(payload: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(payload if isinstance(payload, bytes) else payload())


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (40, 30), tail: bytes = b"") -> bytes:
    """A PNG of a red picture with more chunks between its header and its pixels."""
    rows = b"".join(b"\0" + b"\xff\0\0" * 40 for _ in range(30))
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts) + tail


def _chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def tiff(width: int, height: int, tile: int) -> bytes:
    """A TIFF of one deflated tile, of any size that it claims."""
    data = zlib.compress(bytes(1000))
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, tile),
        (323, 4, 1, tile),
        (324, 4, 1, 8),
        (325, 4, 1, len(data)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def wav(
    rate: int = 16_000, channels: int = 1, bits: int = 16, code: int = 1, data: bytes = bytes(32_000), claimed: int = -1
) -> bytes:
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", code, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    size = len(data) if claimed < 0 else claimed
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(4 + 8 + 16 + 8 + size, 2**32 - 1)) + body


def nested_forms(depth: int) -> bytes:
    """A PDF whose page draws a form, which draws another ten times, and so on."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Resources << /XObject << /F 5 0 R >> >> /Contents 4 0 R >>",
        b"<< /Length 4 >>\nstream\n/F Do\nendstream",
    ]
    for level in range(depth):
        inner = f"/Resources << /XObject << /F {6 + level} 0 R >> >>" if level < depth - 1 else ""
        draws = b"/F Do " * 10 if level < depth - 1 else b"BT (x) Tj ET"
        head = f"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] {inner} /Length {len(draws)} >>"
        objects.append(head.encode() + b"\nstream\n" + draws + b"\nendstream")
    return written_pdf(objects)


def written_pdf(objects: Sequence[bytes]) -> bytes:
    body, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, table, len(objects) + 1, len(body))
    )


def page_of(content: bytes) -> bytes:
    """A PDF of one page with this content stream, deflated."""
    stream = zlib.compress(content)
    font = b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    return written_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R %s >>" % font,
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    )


LOOPING_PAGES = written_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"])


def encrypted_pdf() -> bytes:
    return pdf("secret words", password="key")


def jpeg(**options: object) -> bytes:
    return encoded(Image.effect_noise((120, 90), 80).convert("RGB"), format="JPEG", **options)


def animation(break_from: int = 0) -> bytes:
    frames = [Image.effect_noise((40, 30), 60 + 30 * number).convert("P") for number in range(3)]
    whole = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    if not break_from:
        return whole
    second = [at for at in range(len(whole)) if whole[at : at + 2] == b"\x21\xf9"][1]
    return whole[: second + break_from]


def with_bytes(payload: bytes, at: int, new: bytes) -> bytes:
    return payload[:at] + new + payload[at + len(new) :]


def exif(payload: bytes) -> bytes:
    image = Image.open(io.BytesIO(jpeg()))
    return encoded(image, format="JPEG", exif=b"Exif\0\0" + payload)


def sound_file(
    name: str, codec: str, seconds: float = 0.5, rate: int = 16_000, **options: object
) -> Callable[[Path], object]:
    return lambda path: write_sound(path, tone(seconds, rate), rate=rate, codec=codec, **options)  # type: ignore[arg-type]


def after(make: Callable[[Path], object], change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """What `make` writes, with its bytes changed."""

    def changed(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return changed


def cut_at(share: float) -> Callable[[bytes], bytes]:
    return lambda payload: payload[: int(len(payload) * share)]


def movie(levels: int = 15, **options: object) -> Callable[[Path], object]:
    return lambda path: write_video(path, [10 * level % 200 for level in range(levels)], **options)  # type: ignore[arg-type]


def without_moov(payload: bytes) -> bytes:
    at = payload.index(b"moov")
    return with_bytes(payload, at, b"junk")


def claiming_length(payload: bytes) -> bytes:
    """A Matroska file whose header claims to play for 10^9 s, which it counts in milliseconds."""
    duration = b"\x44\x89\x88"
    return with_bytes(payload, payload.index(duration) + len(duration), struct.pack(">d", 1e12))


def renamed(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """What `make` writes under another name, which tells it the format."""

    def written(path: Path) -> None:
        make(path.with_name(name))
        path.with_name(name).rename(path)

    return written


def grown(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """What `make` writes, and nothing behind it for gigabytes."""

    def written(path: Path) -> None:
        make(path)
        os.truncate(path, SPARSE_BYTES)

    return written


def sound_without_pictures(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(0.5, 48_000)[None], format="flt", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000, frame_size=960)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode())


def no_frame(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def sparse(head: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, SPARSE_BYTES)

    return make


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    # Bound by its bare name: a path to a socket has at most 107 bytes.
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.txt").write_text("words in a folder that is named as a picture")


def loop(path: Path) -> None:
    path.mkdir()
    (path / "again").symlink_to(path)
    (path / "self.png").symlink_to(path / "self.png")


def captions(*lines: bytes) -> Callable[[Path], object]:
    return bytes_of(b"\n".join(lines))


def beside_a_picture(payload: bytes) -> Callable[[Path], object]:
    """A text, and an image of the same name."""

    def make(path: Path) -> None:
        path.write_bytes(payload)
        path.with_suffix(".png").write_bytes(picture())

    return make


CYRILLIC = "Съешь же ещё этих мягких французских булок да выпей чаю. " * 4
PROSE = "The ferry leaves at noon and comes back before dark. " * 4
GOOD_CAPTION = b'{"file_name": "good.png", "text": "a good picture"}'
PAIRED = {"good.png": INDEXED}
GIBIBYTE_OF_ZEROS = zlib.compress(bytes(2**20), 9)

TEXTS = (
    Kind("empty.txt", bytes_of(b""), r"is empty \(0 bytes\)"),
    Kind("blank.md", bytes_of(b" \n\t\r\n \xe2\x80\x83"), "holds no text"),
    Kind("utf-16.txt", bytes_of(PROSE.encode("utf-16")), INDEXED),
    Kind("utf-16-broken.txt", bytes_of(b"\xff\xfea\0b"), "begins as utf-16 but is not"),
    Kind("utf-16-lone-surrogate.txt", bytes_of(b"\xff\xfea\0\x00\xd8b\0"), "begins as utf-16 but is not"),
    Kind("utf-16-with-nul.txt", bytes_of("one\0two".encode("utf-16")), INDEXED),
    Kind("utf-8-mark.txt", bytes_of(PROSE.encode("utf-8-sig")), INDEXED),
    Kind("utf-32.txt", bytes_of(PROSE.encode("utf-32")), INDEXED),
    Kind("latin-1.txt", bytes_of(("Voilà où l'été a été passé, près de la forêt. " * 4).encode("latin-1")), INDEXED),
    Kind("cp1251.txt", bytes_of(CYRILLIC.encode("cp1251")), INDEXED),
    Kind("lone-surrogate.txt", bytes_of(b"words " * 20 + b"\xed\xa0\x80 and more words"), INDEXED),
    Kind("nul.txt", bytes_of(b"zero\0byte"), "binary data, not text"),
    Kind("noise.txt", bytes_of(bytes(range(256)) * 40), "binary data, not text"),
    Kind("one-line.txt", bytes_of(("漢" * 20_000).encode()), INDEXED),
    Kind("combining.txt", bytes_of(("a" + "\u0301" * 30_000).encode()), INDEXED),
    Kind("picture.txt", bytes_of(picture()), INDEXED),
    Kind(
        "large.txt",
        bytes_of(b"x " * 2**20),
        "max_document_megabytes = 1",
        limits=DecodingSettings(max_document_megabytes=1),
    ),
    Kind("gigantic.txt", sparse(b"words " * 20_000), "is too large, 5120 MiB: .*max_document_megabytes = 64"),
    Kind("unseen.html", bytes_of(b"<html><script>only()</script><style>p {}</style></html>"), "holds no text"),
    Kind("unclosed.html", bytes_of(b"<p>words <b>in <i>tags <table><tr><td>that never end <!-- and a remark"), INDEXED),
    Kind("entities.html", bytes_of(b"<p>&#xD800; &#0; &#99999999999; &nosuch; &amp words"), INDEXED),
    Kind("marked-section.html", bytes_of(b"<p>words</p><![x[y]]>"), "cannot be parsed: ParserRejectedMarkup"),
    Kind("nested.html", bytes_of(b"<div>x" * 100_000), "max_seconds = 2", limits=BRIEF),
    Kind("tags.html", bytes_of(b"<a " * 300_000), "max_seconds = 2|holds no text|indexed", limits=BRIEF),
    Kind("charset.html", bytes_of(b"<meta charset=punycode><p>caf\xe9 au lait, s'il vous pla\xeet" * 3), INDEXED),
    Kind("encrypted.pdf", bytes_of(encrypted_pdf), "is encrypted: save it without a password"),
    Kind("no-pages.pdf", bytes_of(b"%PDF-1.7\n%%EOF"), "is a damaged PDF"),
    Kind("scanned.pdf", bytes_of(lambda: pdf("")), "text recognition"),
    Kind("looping.pdf", bytes_of(LOOPING_PAGES), "damaged PDF|holds no text"),
    Kind("forms.pdf", bytes_of(nested_forms(20)), r"max_seconds = 2|holds no text", limits=BRIEF),
    Kind("cut.pdf", bytes_of(lambda: pdf("words " * 50)[:300]), "damaged PDF|holds no text"),
    Kind("inflating.pdf", bytes_of(lambda: page_of(bytes(80 * 2**20))), "damaged PDF: Limit reached"),
    Kind(
        "operators.pdf",
        bytes_of(lambda: page_of(b"BT /F1 12 Tf (a) Tj ET " * 2_000_000)),
        "max_seconds = 2|damaged PDF",
        limits=BRIEF,
    ),
    Kind(
        "large-latin-1.txt",
        bytes_of(b"caf\xe9 au lait " * 4_000_000),
        "needs too much memory to be parsed: .*max_document_memory_megabytes = 256",
        limits=DecodingSettings(max_document_memory_megabytes=256),
    ),
    Kind("prose.pdf", bytes_of(PROSE.encode()), "holds plain text, not a PDF"),
)

IMAGES = (
    Kind("empty.png", bytes_of(b""), r"is empty \(0 bytes\)"),
    Kind("prose.jpg", bytes_of(PROSE.encode()), "holds plain text, not an image"),
    Kind("noise.jpg", bytes_of(np.random.default_rng(1).bytes(3000)), "not an image of any known format"),
    Kind("truncated.jpg", bytes_of(lambda: jpeg()[:1500]), "is damaged or cut short"),
    Kind("trailing.jpg", bytes_of(lambda: jpeg() + b"and then some" * 100), INDEXED),
    Kind("cmyk.jpg", bytes_of(lambda: encoded(Image.new("CMYK", (40, 30), (0, 200, 200, 0)), format="JPEG")), INDEXED),
    Kind("exif-noise.jpg", bytes_of(lambda: exif(b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40)), INDEXED),
    Kind(
        "exif-orientation-99.jpg",
        bytes_of(lambda: exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0")),
        INDEXED,
    ),
    Kind(
        "sixteen-bit.png",
        bytes_of(lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), format="PNG")),
        INDEXED,
    ),
    Kind("palette.png", bytes_of(lambda: picture("P")), INDEXED),
    Kind("no-palette.png", bytes_of(lambda: with_bytes(png(), 25, b"\x03")), "is damaged"),
    Kind("interlaced-cut.png", bytes_of(lambda: with_bytes(png(), 28, b"\x01")), "is damaged"),
    Kind("bad-checksum.png", bytes_of(lambda: with_bytes(png(), 29, b"\xff\xff")), "is damaged"),
    Kind(
        "claims-100000-x-100000.png",
        bytes_of(png(size=(100_000, 100_000))),
        "too many pixels, .*max_pixels = 178956970",
    ),
    Kind("fewer-rows.png", bytes_of(png(size=(40, 40))), INDEXED),
    Kind("text-bomb.png", bytes_of(lambda: png((b"zTXt", b"k\0\0" + zlib.compress(bytes(80 * 2**20))))), "is damaged"),
    Kind(
        "profile-bomb.png", bytes_of(lambda: png((b"iCCP", b"k\0\0" + zlib.compress(bytes(80 * 2**20))))), "is damaged"
    ),
    Kind(
        "many-chunks.png",
        bytes_of(lambda: png(*[(b"abCd", b"")] * 500_000)),
        "takes too long .*max_seconds = 0.5",
        # All of it takes some seconds.
        limits=DecodingSettings(max_seconds=0.5),
    ),
    Kind("broken-second-frame.gif", bytes_of(lambda: animation(60)), INDEXED),
    Kind("broken-first-frame.gif", bytes_of(lambda: animation()[:400]), "is damaged|cut short"),
    Kind("huge-tile.tiff", bytes_of(tiff(10, 10, 65_520)), "is damaged"),
    Kind("gigapixels.tiff", bytes_of(tiff(90_000, 90_000, 256)), "too many pixels, 90000 x 90000"),
    Kind("ring.tiff", bytes_of(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), "is damaged"),
    Kind(
        "far-directory.tiff",
        bytes_of(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**50)),
        "is damaged",
    ),
    Kind("cut.webp", bytes_of(lambda: picture(format="WEBP")[:60]), "is damaged"),
    Kind("cut.avif", bytes_of(lambda: picture(format="AVIF")[:150]), "is damaged"),
    Kind("photo.heic", bytes_of(b"\0\0\0\x18ftypheic" + bytes(200)), "cannot be decoded here"),
    Kind(
        "runs.bmp",
        bytes_of(
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 154, 0, 54, 40, 5000, 5000, 1, 8, 1, 100, 0, 0, 0, 0) + bytes(100)
        ),
        "is damaged|cut short",
    ),
    Kind("postscript.jpg", bytes_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run"), "holds plain text"),
    Kind("gigantic.jpg", sparse(b"\xff\xd8\xff"), "is too large, 5120 MiB: .*max_megabytes = 4096"),
)

PAIRS = (
    Kind("captions.jsonl", captions(GOOD_CAPTION), "", others=PAIRED),
    Kind(
        "captions.jsonl",
        captions(b"\xef\xbb\xbf" + GOOD_CAPTION, b"{broken"),
        "",
        others={**PAIRED, "captions.jsonl:2": "is not JSON"},
    ),
    Kind(
        "captions.jsonl",
        captions(GOOD_CAPTION, b"[" * 100_000),
        "",
        others={**PAIRED, "captions.jsonl:2": "is not JSON"},
    ),
    Kind("captions.jsonl", captions(b'{"file_name": "good.png", "text": "\\u0000 \\ud800 words"}'), "", others=PAIRED),
    Kind(
        "captions.jsonl",
        captions(b'{"file_name": "good.png", "text": "caf\xe9"}'),
        "",
        others={**PAIRED, "captions.jsonl:1": "is not JSON"},
    ),
    Kind(
        "captions.jsonl",
        captions(b'{"file_name": "\\u0000", "text": "x"}', b"9" * 5000),
        "",
        others={"captions.jsonl:1": "is not there", "captions.jsonl:2": "is not"},
    ),
    Kind(
        "captions.jsonl",
        captions(b'{"file_name": "../../etc/passwd", "text": "x"}'),
        "",
        others={"captions.jsonl:1": "is not there"},
    ),
    Kind(
        "captions.jsonl",
        captions(b'{"file_name": "good.png", "text": {"en": "x"}}'),
        "",
        others={"captions.jsonl:1": 'has no "text"'},
    ),
    Kind(
        "captions.jsonl",
        sparse(GOOD_CAPTION + b"\n"),
        "is too large, 5120 MiB: .*max_document_megabytes",
        others=PAIRED,
    ),
    Kind("pair.txt", beside_a_picture(b""), r"is no caption: is empty \(0 bytes\)", others={"pair.png": INDEXED}),
    Kind(
        "pair.txt",
        beside_a_picture(b"long words " * 2000),
        "is no caption: has 2.* a caption at most 10000",
        others={"pair.png": INDEXED},
    ),
    Kind("pair.txt", beside_a_picture("une légende".encode("latin-1") * 9), "", others={"pair.png": INDEXED}),
)

SOUNDS = (
    Kind("empty.wav", bytes_of(b""), r"is empty \(0 bytes\)"),
    Kind("header-only.wav", bytes_of(wav(data=b"")), "holds no sound"),
    Kind("zero-rate.wav", bytes_of(wav(rate=0)), "is damaged|no sound"),
    Kind("zero-channels.wav", bytes_of(wav(channels=0)), "is damaged|no sound"),
    Kind("thirteen-bits.wav", bytes_of(wav(bits=13)), INDEXED),
    Kind("unknown-code.wav", bytes_of(wav(code=0x7777)), "is damaged|no sound"),
    Kind(
        "not-a-number.wav",
        bytes_of(lambda: wav(bits=32, code=3, data=np.full(16_000, np.nan, "<f4").tobytes())),
        INDEXED,
    ),
    Kind(
        "beyond-one.wav", bytes_of(lambda: wav(bits=32, code=3, data=np.full(16_000, 1e30, "<f4").tobytes())), INDEXED
    ),
    Kind("announces-more.wav", bytes_of(wav(claimed=10**9)), "is cut short"),
    Kind("of-unknown-length.wav", bytes_of(with_bytes(wav(claimed=2**32 - 1), 4, b"\xff" * 4)), INDEXED),
    Kind("one-hertz.wav", bytes_of(wav(rate=1, bits=8, data=bytes(10**6))), "plays? for .*max_hours = 24"),
    Kind("gigantic.wav", sparse(wav(claimed=2**32 - 1)), "is too large, 5120 MiB: .*max_megabytes = 4096"),
    Kind("only-a-tag.mp3", bytes_of(b"ID3\x04\0\0\0\x01\0\0" + bytes(16_384)), "is damaged|no sound"),
    Kind("cut.mp3", after(sound_file("a", "libmp3lame", 3), cut_at(0.5)), "is cut short|is damaged"),
    Kind(
        "bad-checksum.flac",
        after(sound_file("a", "flac", 3), lambda payload: with_bytes(payload, len(payload) // 2, b"\xa5" * 64)),
        "is damaged|is cut short",
    ),
    Kind("cut.flac", after(sound_file("a", "flac", 3), cut_at(0.6)), "is cut short|is damaged"),
    Kind("cut.ogg", after(sound_file("a", "libopus", 3, 48_000), cut_at(0.6)), "is cut short|is damaged"),
    Kind("named.aac", bytes_of(wav()), INDEXED),
    Kind(
        "noise.m4a", bytes_of(b"\0\0\0\x18ftypM4A " + np.random.default_rng(2).bytes(900)), "is damaged|neither sound"
    ),
)

VIDEOS = (
    Kind("empty.mp4", bytes_of(b""), r"is empty \(0 bytes\)"),
    Kind("no-moov.mp4", after(movie(), without_moov), "is damaged"),
    Kind(
        "far-box.mp4",
        bytes_of(b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\1free" + struct.pack(">Q", 2**50) + bytes(64)),
        "is damaged",
    ),
    Kind("cut.mp4", after(movie(100), cut_at(0.7)), "is damaged|is cut short"),
    Kind("cut.mkv", after(movie(100), cut_at(0.5)), "is damaged|is cut short"),
    Kind("claims-years.mkv", after(movie(), claiming_length), "declares to play for 277778 hours: .*max_hours = 24"),
    Kind("sound-only.mp4", lambda path: write_sound(path, tone(0.5, 44_100), codec="aac"), INDEXED, "audio"),
    Kind("sound-only.mkv", sound_without_pictures, INDEXED, "audio"),
    Kind("no-frame.mkv", no_frame, "holds no pictures|is damaged|neither"),
    Kind("one-frame.mp4", movie(1), INDEXED),
    Kind("variable-rate.mp4", lambda path: write_video(path, [10, 90, 170, 40], [0.0, 0.04, 0.9, 1.3]), INDEXED),
    Kind("rotated.mp4", movie(rotation=90), INDEXED),
    Kind(
        "clock-jumps.mkv", lambda path: write_video(path, [10, 20, 30], [0.0, 0.04, 90_000.0]), "clock jumps|max_hours"
    ),
    Kind("pictures.ogv", movie(codec="libvpx"), INDEXED),
    Kind("old.avi", movie(codec="mpeg4"), INDEXED),
    Kind("lossless.mkv", movie(codec="ffv1"), INDEXED),
    Kind("pictures.jpg", renamed("a.avi", movie(codec="mpeg4")), INDEXED),
    Kind(
        "large-frames.mp4",
        movie(),
        "too large frames, 64 x 48: .*max_frame_pixels = 3000",
        limits=DecodingSettings(max_frame_pixels=3000),
    ),
    Kind("gigantic.mkv", grown(movie()), "is too large, 5120 MiB: .*max_megabytes = 4096"),
    Kind("playlist.mp4", bytes_of(b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n"), "holds plain text"),
    Kind("noise.webm", bytes_of(b"\x1a\x45\xdf\xa3" + np.random.default_rng(3).bytes(900)), "is damaged|neither"),
)

NAMES = (
    Kind(os.fsdecode(b"caf\xe9.png"), bytes_of(picture()), "has a name that is not UTF-8: rename it"),
    Kind("two\nlines.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("'quotes\" and `ticks`; $(x) %s {0}.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("n" * 251 + ".txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("🧀🎉.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("\u202egnp.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("ملف.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("..double..dots...txt", bytes_of(PROSE.encode()), ""),
    Kind("a..b.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("-rf.txt", bytes_of(PROSE.encode()), INDEXED),
    Kind("a::b.png", bytes_of(picture()), INDEXED),
    Kind("C:\\photos\\a.png", bytes_of(picture()), INDEXED),
    Kind("[x]*?#1.png", bytes_of(picture()), INDEXED),
    Kind("cat.jpg", folder, "", others={"cat.jpg/inside.txt": INDEXED}),
    Kind("circle", loop, ""),
    Kind("pipe.wav", pipe, ""),
    Kind("socket.wav", listening, ""),
    Kind("nowhere.png", lambda path: path.symlink_to(path.parent / "is not there"), ""),
    Kind("data.csv", bytes_of(b"a,b"), ""),
    Kind("half-written.png.part", bytes_of(picture()[:50]), ""),
)

KINDS = {
    f"{modality}-{number}-{kind.name.encode('utf-8', 'replace').decode()[:40]}": kind
    for modality, kinds in (
        ("text", TEXTS),
        ("image", IMAGES),
        ("pair", PAIRS),
        ("audio", SOUNDS),
        ("video", VIDEOS),
        ("name", NAMES),
    )
    for number, kind in enumerate(kinds)
}
