"""Images: one segment each, decoded to RGB the way a person sees them."""

import struct
import zlib
from collections.abc import Iterator, Sequence
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
        RejectedError: if the header is unreadable or claims too many pixels.
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
                yield image
        except UnidentifiedImageError as error:
            raise RejectedError("is damaged, or an image of a format that cannot be decoded here") from error
        except OSError as error:
            if error.errno is not None:
                raise  # The disk or the network failed, not the image.
            raise RejectedError(f"is damaged or cut short: {first_line(error)}") from error
        except _MALFORMED as error:
            raise RejectedError(f"is damaged: {first_line(error)}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (*_MALFORMED, OSError):
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_MALFORMED, OSError):
        return image  # The pixels are whole; only the note beside them is not.


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float64)
    pixels = np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
    low, high = pixels.min(), pixels.max()
    if image.mode != "F" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0
    span = high - low
    scaled = (pixels - low) * (255.0 / span) if span else np.zeros_like(pixels)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
