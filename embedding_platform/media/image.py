"""Images: one segment each, decoded to RGB the way a person sees them."""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from embedding_platform.errors import RejectedError, first_line
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, over
from embedding_platform.media.reading import open_media
from embedding_platform.records import Content, Item, Segment, digest, segment_id
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "1"

# The settings judge the size, which PIL's own limit would not let them raise.
Image.MAX_IMAGE_PIXELS = None

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""What PIL may take a file for; others of its formats run programs (EPS) or are not images."""

_TILE = 1024
"""Pixels along each side of what is converted at once."""

_TILE_BYTES = 40
"""Bytes that converting takes for a pixel of a tile: float64 in a few steps."""

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Bytes in which PIL stores a pixel of a mode; of all others 4, RGB included (Pillow's documentation, "Modes")."""

_DECODER_BYTES = {"JPEG": 6, "WEBP": 12, "AVIF": 14, "TIFF": 4}
"""Bytes of a pixel that decoders hold besides: coefficients of a progressive JPEG, a canvas and a copy of it for WebP,
planes of 16 bits and a copy for AVIF, a strip for TIFF."""

_ORIENTATION_TAG = 0x0112
_MALFORMED = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What PIL and its codecs raise on damage, besides OSError without an errno."""


def probe(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> dict[str, Any]:
    """Width and height in pixels as seen, format and mode, from the header alone.

    Raises:
        RejectedError: if the header is unreadable, or claims too many pixels or too much memory.
    """
    with _opened(uri, limits) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return {"width": width, "height": height, "format": image.format, "mode": image.mode}


def cut(source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """The image as one segment.

    Raises:
        RejectedError: if it cannot be decoded to its last pixel.
    """
    open_image(item.uri, cutting.decoding)
    return [
        Segment(
            segment_id=segment_id(source, item.path, "image", 0),
            path=item.path,
            uri=item.uri,
            item_version=item.version,
            role="image",
            position=0,
            start=0.0,
            end=0.0,
            text=None,
            content_hash=digest("image", item.content_hash),
        )
    ]


def read(segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield the RGB image of each segment."""
    for segment in segments:
        yield open_image(segment.uri, limits)


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """No parameter of `cutting` concerns images."""
    return ()


def open_image(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> Image.Image:
    """Decode an image to RGB of 8 bits: upright by its EXIF tag, on white where it is transparent.

    Of an animation or a document of several pages it is the first. 16-bit grey is scaled to
    8 bits; other integer and float pixels are scaled from their own range.

    Raises:
        RejectedError: if it cannot be decoded to its last pixel.
    """
    with _opened(uri, limits) as image:
        image.load()
        return _to_rgb(_upright(image))


@contextmanager
def _opened(uri: str, limits: DecodingSettings) -> Iterator[Image.Image]:
    with open_media(uri, Deadline(limits)) as file:
        try:
            with Image.open(cast("BinaryIO", file), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > limits.max_pixels:
                    raise over(limits, "max_pixels", f"has too many pixels, {width} x {height}")
                needed = _needed_bytes(image)
                if needed > limits.max_image_memory_megabytes * 2**20:
                    megabytes = f"{needed / 2**20:.0f} MiB for {width} x {height}"
                    raise over(
                        limits, "max_image_memory_megabytes", f"needs too much memory to be decoded, {megabytes}"
                    )
                yield image
        except UnidentifiedImageError as error:
            raise RejectedError("is damaged, or an image of a format that cannot be decoded here") from error
        except OSError as error:
            if error.errno is not None:
                raise  # The disk or the network failed, not the image.
            raise RejectedError(f"is damaged or cut short: {first_line(error)}") from error
        except _MALFORMED as error:
            raise RejectedError(f"is damaged: {first_line(error)}") from error


def _needed_bytes(image: Image.Image) -> int:
    """Most bytes that `open_image` holds at once, by the header: while it decodes, or while it makes RGB of that."""
    width, height = image.size
    stored = _STORED_BYTES.get(image.mode[:4], 4)
    is_baseline = image.format == "JPEG" and "progressive" not in image.info
    decoding = stored + (0 if is_baseline else _DECODER_BYTES.get(str(image.format), 0))
    # That of a PNG may stand behind its pixels, and asking for it decodes them.
    may_be_turned = image.format == "PNG" or _needs_turning(image)
    converting = stored * (2 if may_be_turned else 1) + 4
    tile = _TILE_BYTES * min(width, _TILE) * min(height, _TILE)
    return width * height * max(decoding, converting) + tile


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (*_MALFORMED, OSError):
        return 1


def _needs_turning(image: Image.Image) -> bool:
    return 2 <= _orientation(image) <= 8


def _upright(image: Image.Image) -> Image.Image:
    if not _needs_turning(image):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except (*_MALFORMED, OSError):
        return image  # The pixels are whole; only the note beside them is not.


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _tiled(image, _scaling_to_8_bits(image))
    if image.has_transparency_data:
        return _tiled(image, _on_white)
    return image.convert("RGB")


def _tiled(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The image in RGB, converted tile by tile, so that what lies between takes memory for one of them."""
    rgb = Image.new("RGB", image.size)
    for box in _tiles(image):
        rgb.paste(convert(image.crop(box)).convert("RGB"), box)
    return rgb


def _tiles(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    width, height = image.size
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield left, top, min(left + _TILE, width), min(top + _TILE, height)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _scaling_to_8_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What scales a tile of an image of integer or float pixels, by the range of the whole image."""
    ranges = [(pixels.min(), pixels.max()) for pixels in (_numbers(image.crop(box)) for box in _tiles(image))]
    low, high = min(least for least, _ in ranges), max(most for _, most in ranges)
    if image.mode != "F" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0
    span = high - low

    def scale(tile: Image.Image) -> Image.Image:
        pixels = _numbers(tile)
        scaled = (pixels - low) * (255.0 / span) if span else np.zeros_like(pixels)
        return Image.fromarray(np.rint(scaled).astype(np.uint8))

    return scale


def _numbers(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
