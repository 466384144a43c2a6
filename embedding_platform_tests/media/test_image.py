import struct
import subprocess
import sys
import zlib
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import RejectedError
from embedding_platform.media import image, image_text
from embedding_platform.records import digest
from embedding_platform.settings import DecodingSettings

from .made import CUTTING, encoded, item, picture


def opened(tmp_path: Path, payload: bytes) -> Image.Image:
    path = tmp_path / "picture"
    path.write_bytes(payload)
    return image.open_image(str(path))


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, pixels, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("mode", "options", "tolerance"),
    [
        ("RGB", {"format": "PNG"}, 0),
        ("RGB", {"format": "JPEG", "quality": 95}, 12),
        ("RGB", {"format": "WEBP", "lossless": True}, 0),
        ("RGB", {"format": "BMP"}, 0),
        ("RGB", {"format": "TIFF", "compression": "tiff_lzw"}, 0),
        ("RGB", {"format": "AVIF", "quality": 95}, 30),
        ("P", {"format": "PNG"}, 0),
        ("P", {"format": "GIF"}, 0),
        ("RGBA", {"format": "PNG"}, 0),
        ("CMYK", {"format": "JPEG", "quality": 95}, 12),
        ("CMYK", {"format": "TIFF"}, 0),
        ("YCbCr", {"format": "JPEG", "quality": 95}, 12),
    ],
)
def test_every_mode_and_format_decodes_to_the_same_rgb(
    tmp_path: Path, mode: str, options: dict[str, object], tolerance: int
) -> None:
    decoded = opened(tmp_path, picture(mode, **options))
    assert (decoded.mode, decoded.size) == ("RGB", (40, 30))
    for place, colour in (((5, 15), (255, 0, 0)), ((35, 15), (0, 0, 255))):
        assert decoded.getpixel(place) == pytest.approx(colour, abs=tolerance)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_and_bilevel_become_rgb(tmp_path: Path, mode: str) -> None:
    decoded = opened(tmp_path, encoded(Image.new("L", (4, 4), 255).convert(mode), format="PNG"))
    assert (decoded.mode, decoded.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_transparency_shows_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    decoded = opened(tmp_path, encoded(clear, format="PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (127, 127, 127)]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    assert opened(tmp_path, encoded(palette, format="PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, container: str) -> None:
    ramp = np.array([[0, 257 * 10, 32_896, 65_535]], np.uint16)
    decoded = opened(tmp_path, encoded(Image.fromarray(ramp), format=container))
    assert [pixel[0] for pixel in np.asarray(decoded)[0]] == [0, 10, 128, 255]


def test_float_pixels_are_scaled_from_their_range(tmp_path: Path) -> None:
    ramp = np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32)
    decoded = opened(tmp_path, encoded(Image.fromarray(ramp), format="TIFF"))
    assert [pixel[0] for pixel in np.asarray(decoded)[0]] == [0, 128, 255, 128]


def test_exif_orientation_is_applied_and_probed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the red left half comes up
    payload = picture(format="JPEG", quality=95, exif=exif)
    decoded = opened(tmp_path, payload)
    assert decoded.size == (30, 40)
    assert decoded.getpixel((15, 5)) == pytest.approx((255, 0, 0), abs=12)
    assert decoded.getpixel((15, 35)) == pytest.approx((0, 0, 255), abs=12)
    attributes = image.probe(str(tmp_path / "picture"))
    assert attributes == {"width": 30, "height": 40, "format": "JPEG", "mode": "RGB"}


def test_malformed_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    assert opened(tmp_path, picture(format="JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff")).size == (40, 30)


@pytest.mark.parametrize("container", ["GIF", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, container: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    decoded = opened(tmp_path, encoded(red, format=container, save_all=True, append_images=[blue]))
    assert decoded.getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_images_are_rejected(tmp_path: Path, container: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    payload = encoded(noise, format=container)
    path = tmp_path / "picture"
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(RejectedError):
        image.cut("s", item(path), CUTTING)


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (13_400, 13_400), (0, 10)])
def test_absurd_headers_are_rejected_before_a_pixel_is_made(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    for attempt in (image.probe, image.open_image):
        with pytest.raises(RejectedError, match=r"too many pixels|damaged"):
            attempt(str(path))


def test_the_pixel_limit_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    with pytest.raises(RejectedError, match=r"^has too many pixels, 40 x 30: the limit is decoding.max_pixels = 1199$"):
        image.open_image(str(path), DecodingSettings(max_pixels=40 * 30 - 1))
    assert image.open_image(str(path), DecodingSettings(max_pixels=40 * 30)).size == (40, 30)


_TURNED = Image.Exif()
_TURNED[0x0112] = 6

MADE: dict[str, tuple[str, dict[str, object]]] = {
    "16 bits": ("I;16", {"format": "PNG"}),
    "float": ("F", {"format": "TIFF"}),
    "transparent": ("RGBA", {"format": "PNG"}),
    "progressive": ("RGB", {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "WebP": ("RGB", {"format": "WEBP"}),
    "AVIF": ("RGB", {"format": "AVIF", "speed": 10}),
    "turned": ("RGB", {"format": "JPEG", "exif": _TURNED}),
}

_PEAK = """
import pathlib, sys
from embedding_platform.media import image

def told(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

small, large = sys.argv[1:]
image.open_image(small)
before = told("VmRSS")
image.open_image(large)
print(told("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells a peak of memory on Linux alone")
@pytest.mark.parametrize("kind", ["16 bits", *(pytest.param(kind, marks=pytest.mark.long) for kind in list(MADE)[1:])])
def test_decoding_takes_no_more_memory_than_the_header_is_judged_by(tmp_path: Path, kind: str) -> None:
    mode, options = MADE[kind]
    width, height = 3000, 2000
    ramp = np.linspace(0, 65_535, width * height).reshape(height, width)
    whole = {"I;16": ramp.astype(np.uint16), "F": ramp.astype(np.float32)}
    large = Image.fromarray(whole[mode]) if mode in whole else Image.fromarray((ramp / 257).astype(np.uint8))
    path, small = tmp_path / "large", tmp_path / "small"
    path.write_bytes(encoded(large if mode in whole else large.convert(mode), **options))
    small.write_bytes(picture())
    with Image.open(path) as header:
        claimed = image._needed_bytes(header)
    command = [sys.executable, "-c", _PEAK, str(small), str(path)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.25 * claimed < taken < claimed + 16 * 2**20
    with pytest.raises(RejectedError, match=rf"^needs too much memory to be decoded, {claimed / 2**20:.0f} MiB for .*"):
        image.probe(str(path), DecodingSettings(max_image_memory_megabytes=claimed // 2**20))
    image.probe(str(path), DecodingSettings(max_image_memory_megabytes=claimed // 2**20 + 1))


def test_an_image_that_would_take_too_much_memory_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_claiming(8000, 8000))
    told = (
        r"^needs too much memory to be decoded, .* MiB for 8000 x 8000: .* decoding.max_image_memory_megabytes = 512$"
    )
    for attempt in (image.probe, image.open_image):
        with pytest.raises(RejectedError, match=told):
            attempt(str(path), DecodingSettings(max_image_memory_megabytes=512))


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA"])
def test_an_image_of_several_tiles_is_scaled_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    drawn = np.random.default_rng(0)
    made = {
        "I;16": drawn.integers(0, 2**16, (30, 40)).astype(np.uint16),
        "F": drawn.normal(size=(30, 40)).astype(np.float32),
        "RGBA": drawn.integers(0, 256, (30, 40, 4)).astype(np.uint8),
    }[mode]
    payload = encoded(Image.fromarray(made), format="TIFF")
    whole = opened(tmp_path, payload)
    monkeypatch.setattr(image, "_TILE", 16)
    assert np.array_equal(np.asarray(opened(tmp_path, payload)), np.asarray(whole))


@pytest.mark.parametrize("payload", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a", b"II*\x00" * 9])
def test_signatures_without_an_image_are_rejected(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(RejectedError, match="damaged"):
        opened(tmp_path, payload)


def test_an_image_is_one_segment_and_reads_from_any_file_system() -> None:
    url = f"memory://{uuid4().hex}/s/a.png"
    fsspec.url_to_fs(url)[0].pipe_file(url, picture())
    (segment,) = image.cut("s", item(url), CUTTING)
    assert (segment.role, segment.position, segment.start, segment.end, segment.text) == ("image", 0, 0, 0, None)
    assert segment.content_hash == digest("image", item(url).content_hash)
    (content,) = image.read([segment])
    assert isinstance(content, Image.Image)
    assert content.size == (40, 30)


def test_a_pair_has_one_image_and_its_captions(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    pair = item(tmp_path / "a.png", captions=("red and blue", "zwei Hälften"))
    segments = image_text.cut("s", pair, CUTTING)
    assert [(s.role, s.position, s.text) for s in segments] == [
        ("image", 0, None),
        ("text", 0, "red and blue"),
        ("text", 1, "zwei Hälften"),
    ]
    assert segments[1].content_hash == digest("text", "red and blue")
    assert len({s.segment_id for s in segments}) == 3
    picture_read, *captions = image_text.read(segments)
    assert isinstance(picture_read, Image.Image)
    assert captions == ["red and blue", "zwei Hälften"]
