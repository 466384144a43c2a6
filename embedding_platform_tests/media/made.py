"""Real media files, made on the fly."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from embedding_platform.media.cutting import Cutting
from embedding_platform.records import Item

CUTTING = Cutting(tokenizer_file=None, max_tokens=64, overlap_tokens=0)


def item(path: Path | str, media_type: str = "", captions: Sequence[str] = ()) -> Item:
    name = str(path)
    return Item(name.rsplit("/", 1)[-1], name, 1, "1", media_type, "hash-of-" + name, tuple(captions))


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A picture: its left half red, its right half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, size[0], size[1]))
    return encoded(image.convert(mode), **{"format": "PNG"} | options)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def write_sound(
    path: Path,
    samples: np.ndarray,
    rate: int = 44_100,
    codec: str = "pcm_s16le",
    channels: int = 1,
    container_format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode mono float32 samples into every channel."""
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        _encode_sound(container, stream, samples, rate, layout)
    return path


def write_video(
    path: Path,
    levels: Sequence[int],
    times: Sequence[float] | None = None,
    rate: int = 25,
    size: tuple[int, int] = (64, 48),
    sound: np.ndarray | None = None,
    codec: str = "libx264",
    sound_codec: str = "aac",
    rotation: float = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode grey frames of the given levels, shown from the given times (default: every 1/rate).

    The upper half of a frame is 20 levels brighter than the level, so that it shows which way is up.
    """
    times = [index / rate for index in range(len(levels))] if times is None else times
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast"}
        if rotation:
            stream.set_display_rotation(rotation)
        if sound is not None:
            sound_stream = container.add_stream(sound_codec, rate=48_000, layout="mono")
        for level, time in zip(levels, times, strict=True):
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            pixels[: size[1] // 2] += 20
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _encode_sound(container, sound_stream, sound, 48_000, "mono")
    return path


def _encode_sound(container: Any, stream: Any, samples: np.ndarray, rate: int, layout: str) -> None:
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for piece in resampler.resample(frame):
            container.mux(stream.encode(piece))
    for piece in resampler.resample(None):
        container.mux(stream.encode(piece))
    container.mux(stream.encode())
