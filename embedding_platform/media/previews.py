"""Small pictures of media for people: of an image, of a moment of a video, of how loud a sound is."""

import io
from collections.abc import Sequence

import av
import numpy as np
from PIL import Image, ImageDraw

from embedding_platform.errors import RejectedError
from embedding_platform.media.image import open_image
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, over
from embedding_platform.media.streams import decoded_sound, open_container, picture_stream, sound_stream
from embedding_platform.records import SAMPLE_RATE
from embedding_platform.settings import DecodingSettings

LONG_SIDE = 480
"""Pixels of a preview: sharp in a card of 240 on a dense screen."""

_JPEG_QUALITY = 80

WAVE_BARS = 96
_BAR_PIXELS = 8
_GAP_PIXELS = 3
_WAVE_HEIGHT = 120
_WAVE_COLOUR = (74, 125, 184, 255)
"""Seen on a light page as on a dark one."""


def image_preview(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> bytes:
    """An image at most LONG_SIDE pixels wide and high, as JPEG.

    Raises:
        RejectedError: if it cannot be decoded.
    """
    return _jpeg(open_image(uri, limits))


def video_preview(uri: str, seconds: float, limits: DecodingSettings = USUAL_LIMITS) -> bytes:
    """The picture that a video shows so many seconds after its beginning, as JPEG of at most LONG_SIDE pixels.

    Raises:
        RejectedError: if it has none that can be decoded.
    """
    deadline = Deadline(limits)
    with open_container(uri, deadline) as container:
        stream = picture_stream(container)
        if stream is None or stream.codec_context is None:
            raise RejectedError("holds no moving pictures that can be decoded")
        begins = float((stream.start_time or 0) * stream.time_base)
        if seconds > 0:
            container.seek(int((begins + seconds) * av.time_base))
        shown = None
        for frame in container.decode(stream):
            deadline.check()
            if frame.width * frame.height > limits.max_frame_pixels:
                raise over(limits, "max_frame_pixels", f"has too large frames, {frame.width} x {frame.height}")
            if shown is not None and frame.time is not None and frame.time > begins + seconds:
                break
            shown = frame
        if shown is None:
            raise RejectedError("holds no picture at that time")
        turned = np.rot90(shown.to_ndarray(format="rgb24"), round(shown.rotation / 90) % 4)
        return _jpeg(Image.fromarray(np.ascontiguousarray(turned)))


def sound_preview(uri: str, start: float, end: float, limits: DecodingSettings = USUAL_LIMITS) -> bytes:
    """How loud a sound is between two seconds: WAVE_BARS bars, the loudest of full height, as transparent PNG.

    Raises:
        RejectedError: if it cannot be decoded.
    """
    return _drawn(_peaks(uri, start, end, limits))


def _peaks(uri: str, start: float, end: float, limits: DecodingSettings) -> np.ndarray:
    """The greatest amplitude in each of WAVE_BARS equal parts of the time, float32 [WAVE_BARS] from 0 on."""
    deadline = Deadline(limits)
    peaks = np.zeros(WAVE_BARS, np.float32)
    with open_container(uri, deadline) as container:
        stream = sound_stream(container)
        if stream is None:
            raise RejectedError("holds no sound that can be decoded")
        begins = float((stream.start_time or 0) * stream.time_base)
        if start > 0:
            container.seek(int((begins + start) * av.time_base))
        for time, samples in decoded_sound(container, stream, SAMPLE_RATE, deadline):
            times = time - begins + np.arange(len(samples)) / SAMPLE_RATE
            places = np.floor((times - start) * (WAVE_BARS / (end - start))).astype(np.int64)
            inside = (places >= 0) & (places < WAVE_BARS)
            np.maximum.at(peaks, places[inside], np.abs(samples[inside]))
            if len(times) and times[-1] >= end:
                break
    return peaks


def _drawn(peaks: Sequence[float] | np.ndarray) -> bytes:
    picture = Image.new("RGBA", (len(peaks) * _BAR_PIXELS, _WAVE_HEIGHT), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    loudest = max(float(np.max(peaks)), 1e-6)
    middle = _WAVE_HEIGHT / 2
    for number, peak in enumerate(peaks):
        half = max(2.0, float(peak) / loudest * (middle - 2))
        left = number * _BAR_PIXELS
        box = (left, middle - half, left + _BAR_PIXELS - _GAP_PIXELS, middle + half)
        draw.rounded_rectangle(box, radius=2, fill=_WAVE_COLOUR)
    payload = io.BytesIO()
    picture.save(payload, "PNG", optimize=True)
    return payload.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    payload = io.BytesIO()
    picture.save(payload, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return payload.getvalue()
