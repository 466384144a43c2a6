"""Sound: windows of some seconds, decoded to 16 kHz mono."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, check_duration
from embedding_platform.media.reading import open_media
from embedding_platform.media.streams import (
    check_length,
    decoded_sound,
    duration_seconds,
    open_container,
    sound_stream,
)
from embedding_platform.records import (
    MAX_AUDIO_SECONDS,
    SAMPLE_RATE,
    Content,
    Item,
    Segment,
    Sound,
    digest,
    segment_id,
)
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "2"

_MISSING_FRAME_SECONDS = 0.01
"""Shortfall of a FLAC file, whose length is exact, from which on frames of it were dropped; most hold 0.09 s."""

_SHORTEST_REST_SECONDS = 0.1
"""A rest shorter than this after the last whole window gets no window of its own: it holds
no word and no note, and its vector would only add noise to the space."""


def probe(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> dict[str, Any]:
    """Duration in seconds (None where undeclared), sample rate in Hz, channels and codec.

    Raises:
        RejectedError: if there is no sound stream, or no sound in it.
    """
    with open_container(uri, Deadline(limits)) as container:
        stream = _sound(container)
        check_duration(limits, duration_seconds(container))
        if next((packet for packet in container.demux(stream) if packet.size), None) is None:
            raise RejectedError("holds no sound: its duration is zero")
        return {
            "duration_seconds": duration_seconds(container),
            "sample_rate": stream.codec_context.sample_rate,
            "channels": stream.codec_context.channels,
            "codec": stream.codec_context.name,
        }


def cut(source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """Windows of `cutting.audio_window_seconds` from the beginning; the last may be shorter.

    A rest under 0.1 s after a whole window is left out. A file shorter than that is one window.

    Raises:
        RejectedError: if the file cannot be decoded to the end that it declares, as far as it is decoded.
        PlatformError: if the window is not within 0 to 30 s.
    """
    window = _window_samples(cutting)
    most = None if cutting.most_segments is None else window * cutting.most_segments
    deadline = Deadline(cutting.decoding)
    with open_container(item.uri, deadline) as container:
        stream = _sound(container)
        declared = duration_seconds(container) if _knows_its_length(container, item.uri) else None
        total = 0
        for _, samples in decoded_sound(container, stream, SAMPLE_RATE, deadline):
            total += len(samples)
            if most is not None and total > most:
                total, declared = most, None
                break
        is_exact = container.format.name == "flac"
    if not total:
        raise RejectedError("holds no sound: its duration is zero")
    check_length(declared, total / SAMPLE_RATE, _MISSING_FRAME_SECONDS if is_exact else None)
    starts = range(0, total, window)
    if len(starts) > 1 and total - starts[-1] < _SHORTEST_REST_SECONDS * SAMPLE_RATE:
        starts = starts[:-1]
    return [
        _segment(source, item, position, start / SAMPLE_RATE, min(start + window, total) / SAMPLE_RATE)
        for position, start in enumerate(starts)
    ]


def read(segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield the sound of each segment, mono at SAMPLE_RATE.

    Raises:
        RejectedError: if the file cannot be decoded, or ends before a segment does.
    """
    deadline = Deadline(limits)
    with open_container(segments[0].uri, deadline) as container:
        pieces = decoded_sound(container, _sound(container), SAMPLE_RATE, deadline)
        begins, piece = 0, np.empty(0, np.float32)
        for segment in segments:
            start, end = round(segment.start * SAMPLE_RATE), round(segment.end * SAMPLE_RATE)
            samples = np.empty(end - start, np.float32)
            filled = 0
            while filled < len(samples):
                while begins + len(piece) <= start + filled:
                    begins += len(piece)
                    following = next(pieces, None)
                    if following is None:
                        raise RejectedError(f"ends before {segment.end:.1f} s: it has changed since it was cut")
                    piece = following[1]
                offset = start + filled - begins
                part = piece[offset : offset + len(samples) - filled]
                samples[filled : filled + len(part)] = part
                filled += len(part)
            yield Sound(samples)
            deadline.restart()


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """What of `cutting` decides the windows."""
    return (str(cutting.audio_window_seconds),)


def _window_samples(cutting: Cutting) -> int:
    if not _SHORTEST_REST_SECONDS <= cutting.audio_window_seconds <= MAX_AUDIO_SECONDS:
        raise PlatformError(
            f"audio_window_seconds is {cutting.audio_window_seconds}; "
            f"set it between {_SHORTEST_REST_SECONDS} and {MAX_AUDIO_SECONDS}"
        )
    return round(cutting.audio_window_seconds * SAMPLE_RATE)


def _sound(container: Any) -> Any:
    stream = sound_stream(container)
    if stream is None:
        raise RejectedError("holds no sound that can be decoded")
    if stream.codec_context.name == "flac":
        # Without it FFmpeg passes over the checksum of each frame, and noise is heard.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    return stream


def _segment(source: str, item: Item, position: int, start: float, end: float) -> Segment:
    return Segment(
        segment_id=segment_id(source, item.path, "audio", position),
        path=item.path,
        uri=item.uri,
        item_version=item.version,
        role="audio",
        position=position,
        start=start,
        end=end,
        text=None,
        content_hash=digest("audio", item.content_hash, f"{start}", f"{end}"),
    )


def _knows_its_length(container: Any, uri: str) -> bool:
    """Whether the declared duration is written in the file, not guessed from its bit rate.

    Bare MPEG audio says how long it is only in a Xing, Info or VBRI frame at its beginning.
    """
    if container.format.name == "aac":
        return False
    if container.format.name != "mp3":
        return True
    with open_media(uri) as file:
        head = file.read(10)
        if head[:3] == b"ID3":
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            file.seek(10 + size)
        else:
            file.seek(0)
        first_frame = file.read(4096)
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))
