"""Sound and pictures out of containers, by PyAV: what audio and video share."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from embedding_platform.errors import RejectedError
from embedding_platform.media.limits import Deadline
from embedding_platform.media.reading import MediaFile, open_media

_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,matroska,webm,ogg,avi,asf,flv,mpeg,mpegts,mpegvideo,wav,flac,mp3,aac,aiff"
}
"""What FFmpeg may take a file for: a playlist would have it open other files and addresses."""

_LARGEST_GAP_SECONDS = 0.1
"""A jump in the time stamps of sound beyond this is a real gap; less is a container's rounding."""

_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)
"""What writers that cannot go back leave as the length of a RIFF file."""

_LONGEST_OGG_PAGE = 27 + 255 + 255 * 255
"""Header, segment table and 255 segments of 255 bytes (RFC 3533, section 6)."""

_SHORTFALL_SECONDS = 0.5
_SHORTFALL_SHARE = 0.01
"""How much less than its declared length a whole file may hold: containers round, encoders trim."""


@contextmanager
def open_container(uri: str, deadline: Deadline) -> Iterator[Any]:
    """Open a media container; decoding errors inside the block become rejections.

    Raises:
        RejectedError: if FFmpeg cannot read it, or what is done with it inside the block, or
            the time is up.
    """
    with open_media(uri, deadline) as file:
        _check_size(file)
        try:
            with av.open(file, mode="r", metadata_errors="ignore", options=_OPTIONS) as container:
                yield container
        except av.FFmpegError as error:
            raise file.stopped or RejectedError(f"is damaged or cut short: {error.strerror}") from error
        if file.stopped is not None:
            raise file.stopped


def picture_stream(container: Any) -> Any | None:
    """The first video stream that is not a cover picture, or None."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def sound_stream(container: Any) -> Any | None:
    """The first audio stream that can be decoded, or None."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def duration_seconds(container: Any) -> float | None:
    """Length that the container declares; None where it declares none."""
    return None if container.duration is None else container.duration / av.time_base


def check_length(declared: float | None, held: float, shortfall: float | None = None) -> None:
    """Compare a declared length with what was decoded, both in seconds.

    `shortfall` is what may be missing, where a format is stricter than most.

    Raises:
        RejectedError: if more is missing than rounding explains.
    """
    if declared is None:
        return
    allowed = max(_SHORTFALL_SECONDS, _SHORTFALL_SHARE * declared) if shortfall is None else shortfall
    if held < declared - allowed:
        raise RejectedError(f"is cut short or damaged: declares {declared:.2f} s but holds {held:.2f} s")


def decoded_sound(
    container: Any, stream: Any, sample_rate: int, deadline: Deadline
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the sound of a stream piece by piece: its time in seconds, and float32 mono samples [n].

    Pieces follow each other without a gap unless the stream itself has one.

    Raises:
        RejectedError: if the time is up, or more is decoded than the longest sound holds.
    """
    played = 0.0
    resampler: Any = None
    setup: tuple[str, str, int] | None = None
    origin, received, sent = 0.0, 0.0, 0
    for frame in container.decode(stream):
        played += frame.samples / frame.sample_rate
        deadline.check(played)
        expected = origin + received
        arrived = expected if frame.time is None else frame.time
        frame_setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_setup != setup or abs(arrived - expected) > _LARGEST_GAP_SECONDS:
            if resampler is not None:
                for samples in _resampled(resampler, None):
                    yield origin + sent / sample_rate, samples
                    sent += len(samples)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
            setup, origin, received, sent = frame_setup, arrived, 0.0, 0
        received += frame.samples / frame.sample_rate
        for samples in _resampled(resampler, frame):
            yield origin + sent / sample_rate, samples
            sent += len(samples)
    if resampler is not None:
        for samples in _resampled(resampler, None):
            yield origin + sent / sample_rate, samples
            sent += len(samples)


def _check_size(file: MediaFile) -> None:
    """Reject a RIFF or Ogg file that ends before its last chunk or page: FFmpeg plays what is left."""
    head = file.read(12)
    size = file.seek(0, os.SEEK_END)
    needed = 0
    if head[:4] == b"RIFF":
        (length,) = struct.unpack("<I", head[4:8])
        needed = 0 if length in _UNKNOWN_LENGTHS else length + 8
    elif head[:4] == b"OggS":
        begins = file.seek(max(0, size - _LONGEST_OGG_PAGE))
        tail = file.read()
        page = tail.rfind(b"OggS")
        sizes = tail[page + 27 : page + 27 + tail[page + 26]] if len(tail) > page + 26 else b""
        needed = begins + page + 27 + max(1, len(sizes)) + sum(sizes)
    if needed > size + 1:  # A last chunk of odd length may lack its padding byte.
        raise RejectedError(f"is cut short: {needed} bytes announced, {size} there")
    file.seek(0)


def _resampled(resampler: Any, frame: Any) -> Iterator[np.ndarray]:
    for piece in resampler.resample(frame):
        samples = piece.to_ndarray().reshape(-1)
        if len(samples):
            yield np.ascontiguousarray(samples, dtype=np.float32)
