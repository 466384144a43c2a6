"""Video: clips of some seconds, each seen through the model's window at its centre."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, check_duration, over
from embedding_platform.media.streams import (
    check_length,
    decoded_sound,
    duration_seconds,
    open_container,
    picture_stream,
    sound_stream,
)
from embedding_platform.records import (
    CLIP_FRAME_RATE,
    CLIP_FRAMES,
    CLIP_SAMPLE_RATE,
    CLIP_SOUND_SAMPLES,
    Content,
    Item,
    Segment,
    VideoClip,
    digest,
    segment_id,
)
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "1"

SHORT_SIDE = 256
"""Frames are scaled down to this short side in pixels: models read 224, and memory is bounded."""

LONGEST_STILL_SECONDS = 600.0
"""Longest time that one frame may stand. A damaged clock jumps by hours or days, and would
cut one frame into thousands of clips."""

_MOST_SECONDS_PER_FRAME = 1.0
"""Of the time that a frame stands, what counts as played: time stamps may claim any."""

WINDOW_SECONDS = CLIP_FRAMES / CLIP_FRAME_RATE


def probe(uri: str, limits: DecodingSettings = USUAL_LIMITS) -> dict[str, Any]:
    """Attributes of the video from its headers and first frame.

    They are duration_seconds (None where undeclared), width and height as seen, frame_rate,
    codec, sound (whether it has any) and sound_sample_rate (None without sound).

    Raises:
        RejectedError: if there is no video stream, no frame in it, or an absurd frame size.
    """
    with open_container(uri, Deadline(limits)) as container:
        stream, sound = _pictures(container, limits), sound_stream(container)
        duration = duration_seconds(container)
        check_duration(limits, duration)
        frame = next(container.decode(stream), None)
        if frame is None or (duration is not None and duration <= 0):
            raise RejectedError("holds no pictures: its duration is zero")
        width, height = frame.width, frame.height
        if frame.rotation % 180:
            width, height = height, width
        return {
            "duration_seconds": duration,
            "width": width,
            "height": height,
            "frame_rate": float(stream.average_rate) if stream.average_rate else None,
            "codec": stream.codec_context.name,
            "sound": sound is not None,
            "sound_sample_rate": None if sound is None else sound.codec_context.sample_rate,
        }


def cut(source: str, item: Item, cutting: Cutting) -> list[Segment]:
    """Clips of `cutting.clip_seconds` from the first frame; the last may be shorter or longer.

    A rest shorter than the model's window (0.64 s) is part of the clip before it.

    Raises:
        RejectedError: if pictures or sound cannot be decoded to the end that is declared, as far as
            they are decoded.
        PlatformError: if clips would be shorter than the window.
    """
    if cutting.clip_seconds < WINDOW_SECONDS:
        raise PlatformError(f"clip_seconds is {cutting.clip_seconds}; set it to {WINDOW_SECONDS} or more")
    most = None if cutting.most_segments is None else cutting.clip_seconds * cutting.most_segments + WINDOW_SECONDS
    is_whole = True
    first: float | None = None
    last: float | None = None
    widest_gap, shown_for = 0.0, 0.0
    for time, frame in _timed_frames(item.uri, Deadline(cutting.decoding), cutting.decoding):
        first = time if first is None else first
        widest_gap = max(widest_gap, time - (first if last is None else last))
        if widest_gap > LONGEST_STILL_SECONDS:
            raise RejectedError(f"is damaged: its clock jumps by {widest_gap:.0f} s at {time - first:.0f} s")
        last = time
        shown_for = float(frame.duration * frame.time_base) if frame.duration else 0.0
        if most is not None and last - first > most:
            is_whole = False
            break
    if first is None or last is None:
        raise RejectedError("holds no pictures: its duration is zero")
    seconds = last - first + (min(shown_for, LONGEST_STILL_SECONDS) or 1 / CLIP_FRAME_RATE)
    if is_whole:
        # How long the last frame is shown is often not written down.
        _check_sound(item.uri, Deadline(cutting.decoding), first, seconds + widest_gap)
    # Time stamps are floats: a length that is a whole number of clips may fall a hair short.
    count = max(1, int(seconds / cutting.clip_seconds + 1e-6))
    starts = [position * cutting.clip_seconds for position in range(count)]
    if seconds - count * cutting.clip_seconds >= WINDOW_SECONDS - 1e-6:
        starts.append(count * cutting.clip_seconds)
    ends = [*starts[1:], seconds]
    return [
        _segment(source, item, position, start, end)
        for position, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def read(segments: Sequence[Segment], limits: DecodingSettings = USUAL_LIMITS) -> Iterator[Content]:
    """Yield each segment as a clip: 16 frames at 25 a second, and the sound that goes with them.

    A frame is the one being shown at the middle of its twenty-fifth of a second, so a
    variable frame rate is no matter. Frames are uint8 [16, height, width, 3] RGB, upright,
    their short side at most SHORT_SIDE. A video shorter than the window repeats its last
    frame, and its sound is followed by zeros.

    Raises:
        RejectedError: if the file cannot be decoded.
    """
    starts = [max(0.0, (segment.start + segment.end - WINDOW_SECONDS) / 2) for segment in segments]
    instants = [start + (frame + 0.5) / CLIP_FRAME_RATE for start in starts for frame in range(CLIP_FRAMES)]
    deadline = Deadline(limits)
    timed = _timed_frames(segments[0].uri, deadline, limits)
    first = next(timed, None)
    if first is None:
        raise RejectedError("holds no pictures: its duration is zero")
    origin = first[0]
    # Sound has its own pass: in a badly interleaved file a common one would have to hold
    # all pictures until their sound comes.
    pictures = _shown_at(itertools.chain([first], timed), [origin + instant for instant in instants])
    sounds = _sounding_at(segments[0].uri, [origin + start for start in starts], deadline)
    for sound in sounds:
        yield VideoClip(frames=np.stack(list(itertools.islice(pictures, CLIP_FRAMES))), sound=sound)
        deadline.restart()


def parameters(cutting: Cutting) -> tuple[str, ...]:
    """What of `cutting` decides the clips."""
    return (str(cutting.clip_seconds),)


def _check_sound(uri: str, deadline: Deadline, first: float, seconds: float) -> None:
    """Decode the sound to its end, and compare the declared length with how long pictures or sound play."""
    with open_container(uri, deadline) as container:
        declared = duration_seconds(container)
        sound = sound_stream(container)
        sound_ends = 0.0
        if sound is not None:
            for time, samples in decoded_sound(container, sound, CLIP_SAMPLE_RATE, deadline):
                sound_ends = time + len(samples) / CLIP_SAMPLE_RATE
    check_length(declared, max(seconds, sound_ends - first))


def _pictures(container: Any, limits: DecodingSettings) -> Any:
    stream = picture_stream(container)
    if stream is None or stream.codec_context is None:
        raise RejectedError("holds no moving pictures that can be decoded")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_frame_pixels:
        raise over(limits, "max_frame_pixels", f"has too large frames, {width} x {height}")
    stream.thread_type = "AUTO"
    return stream


def _timed_frames(uri: str, deadline: Deadline, limits: DecodingSettings) -> Iterator[tuple[float, Any]]:
    """Yield the frames with their times in seconds, which never run back."""
    with open_container(uri, deadline) as container:
        stream = _pictures(container, limits)
        step = 1 / float(stream.average_rate) if stream.average_rate else 1 / CLIP_FRAME_RATE
        last: float | None = None
        played = 0.0
        for frame in container.decode(stream):
            if frame.width * frame.height > limits.max_frame_pixels:
                raise over(limits, "max_frame_pixels", f"has too large frames, {frame.width} x {frame.height}")
            time = frame.time
            if last is not None:
                time = last + step if time is None else max(time, last)
                played += min(time - last, _MOST_SECONDS_PER_FRAME)
            last = time or 0.0
            deadline.check(played)
            yield last, frame


def _shown_at(timed: Iterator[tuple[float, Any]], instants: Iterable[float]) -> Iterator[np.ndarray]:
    """Yield the picture being shown at each of the ascending instants."""
    _, current = next(timed)
    upcoming = next(timed, None)
    size = _scaled_size(current.width, current.height)
    picture = None
    for instant in instants:
        while upcoming is not None and upcoming[0] <= instant:
            current, picture = upcoming[1], None
            upcoming = next(timed, None)
        if picture is None:
            picture = _picture(current, size)
        yield picture


def _sounding_at(uri: str, starts: Sequence[float], deadline: Deadline) -> Iterator[np.ndarray | None]:
    """Yield the sound of the window at each of the ascending starts; None without a stream."""
    with open_container(uri, deadline) as container:
        stream = sound_stream(container)
        if stream is None:
            yield from itertools.repeat(None, len(starts))
            return
        pieces = decoded_sound(container, stream, CLIP_SAMPLE_RATE, deadline)
        piece = next(pieces, None)
        for start in starts:
            window = np.zeros(CLIP_SOUND_SAMPLES, np.float32)
            opens = round(start * CLIP_SAMPLE_RATE)
            while piece is not None:
                begins = round(piece[0] * CLIP_SAMPLE_RATE) - opens
                ends = begins + len(piece[1])
                low, high = max(begins, 0), min(ends, CLIP_SOUND_SAMPLES)
                if low < high:
                    window[low:high] = piece[1][low - begins : high - begins]
                if ends >= CLIP_SOUND_SAMPLES:
                    break
                piece = next(pieces, None)
            yield window


def _scaled_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SHORT_SIDE / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _picture(frame: Any, size: tuple[int, int]) -> np.ndarray:
    pixels = frame.reformat(*size, format="rgb24", interpolation="AREA").to_ndarray()
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _segment(source: str, item: Item, position: int, start: float, end: float) -> Segment:
    return Segment(
        segment_id=segment_id(source, item.path, "video", position),
        path=item.path,
        uri=item.uri,
        item_version=item.version,
        role="video",
        position=position,
        start=start,
        end=end,
        text=None,
        content_hash=digest("video", item.content_hash, f"{start}", f"{end}"),
    )
