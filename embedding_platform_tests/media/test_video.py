import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media import video
from embedding_platform.media.cutting import Cutting, code_version, cut, read
from embedding_platform.records import CLIP_FRAMES, CLIP_SOUND_SAMPLES, VideoClip, digest
from embedding_platform.settings import DecodingSettings

from .made import CUTTING, item, tone, write_video


def clips(path: Path | str, cutting: Cutting = CUTTING) -> list[VideoClip]:
    contents = read("video", cut("video", "s", item(path), cutting))
    return [content for content in contents if isinstance(content, VideoClip)]


def levels(clip: VideoClip) -> list[float]:
    """The grey level of the lower half of each frame, as the frames were written."""
    height = clip.frames.shape[1]
    return [float(frame[height * 3 // 4 :].mean()) for frame in clip.frames]


def ramp(count: int) -> Sequence[int]:
    return [20 + 2 * (index % 100) for index in range(count)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v.mp4", {}),
        ("v.mov", {}),
        ("v.mkv", {"sound_codec": "libopus"}),
        ("v.webm", {"codec": "libvpx-vp9", "sound_codec": "libopus"}),
        ("v.mts", {}),
        ("v.avi", {"codec": "mpeg4", "sound_codec": "libmp3lame"}),
    ],
)
def test_every_format_gives_its_clips(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / name, ramp(100), sound=tone(4.0, 48_000, hertz=750), **options)  # type: ignore[arg-type]
    attributes = video.probe(str(path))
    assert (attributes["width"], attributes["height"], attributes["sound"]) == (64, 48, True)
    assert attributes["sound_sample_rate"] == 48_000
    assert attributes["duration_seconds"] == pytest.approx(4.0, abs=0.1)
    found = clips(path)
    assert len(found) == 2
    for clip, centre in zip(found, (1.28, 3.28), strict=True):
        assert (clip.frames.dtype, clip.frames.shape) == (np.uint8, (CLIP_FRAMES, 48, 64, 3))
        expected = [20 + 2 * round(25 * (centre - 0.32) + index) for index in range(CLIP_FRAMES)]
        assert levels(clip) == pytest.approx(expected, abs=8 if name == "v.avi" else 4)
        assert clip.sound is not None
        assert (clip.sound.dtype, clip.sound.shape) == (np.float32, (CLIP_SOUND_SAMPLES,))
        spectrum = np.abs(np.fft.rfft(clip.sound))
        assert np.argmax(spectrum) * 48_000 / CLIP_SOUND_SAMPLES == pytest.approx(750, abs=2)


@pytest.mark.parametrize(
    ("frames", "clip_seconds", "bounds"),
    [
        (64, 2.56, [(0.0, 2.56)]),
        (70, 2.56, [(0.0, 2.8)]),
        (79, 2.56, [(0.0, 3.16)]),
        (80, 2.56, [(0.0, 2.56), (2.56, 3.2)]),
        (128, 2.56, [(0.0, 2.56), (2.56, 5.12)]),
        (10, 2.56, [(0.0, 0.4)]),
        (1, 2.56, [(0.0, 0.04)]),
        (50, 0.64, [(0.0, 0.64), (0.64, 1.28), (1.28, 2.0)]),
    ],
)
def test_a_rest_shorter_than_the_window_joins_the_clip_before(
    tmp_path: Path, frames: int, clip_seconds: float, bounds: list[tuple[float, float]]
) -> None:
    path = write_video(tmp_path / "v.mp4", ramp(frames))
    segments = video.cut("s", item(path), Cutting(None, 1, 0, clip_seconds=clip_seconds))
    assert [(s.start, s.end) for s in segments] == [pytest.approx(bound, abs=1e-6) for bound in bounds]
    assert [s.position for s in segments] == list(range(len(bounds)))
    first = segments[0]
    assert first.content_hash == digest("video", item(path).content_hash, f"{first.start}", f"{first.end}")
    assert len(list(video.read(segments))) == len(bounds)


def test_a_short_video_repeats_its_last_frame_and_falls_silent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mov", [40, 60, 80], sound=tone(0.12, 48_000), sound_codec="pcm_s16le")
    (clip,) = clips(path)
    assert levels(clip) == pytest.approx([40, 60] + [80] * 14, abs=4)
    assert clip.sound is not None
    assert np.abs(clip.sound[:5_000]).max() == pytest.approx(0.5, abs=0.05)
    assert not clip.sound[6_000:].any()


def test_a_silent_file_has_no_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", ramp(30))
    assert [clip.sound for clip in clips(path)] == [None]
    assert video.probe(str(path))["sound"] is False
    assert video.probe(str(path))["sound_sample_rate"] is None


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_frames_are_those_shown_at_their_time_whatever_the_rate(tmp_path: Path, name: str) -> None:
    times = [0.0, 0.1, 0.9, 1.0, 1.21, 1.25, 1.5, 1.52, 2.5]
    path = write_video(tmp_path / name, [20 * (index + 1) for index in range(9)], times=times)
    segments = video.cut("s", item(path), CUTTING)
    start = (segments[0].start + segments[0].end) / 2 - 0.32
    instants = [start + (index + 0.5) / 25 for index in range(CLIP_FRAMES)]
    expected = [20 * sum(time <= instant for time in times) for instant in instants]
    (clip,) = video.read(segments)
    assert isinstance(clip, VideoClip)
    assert levels(clip) == pytest.approx(expected, abs=4)


def test_sound_is_that_of_the_window(tmp_path: Path) -> None:
    seconds = np.arange(4 * 48_000) / 48_000
    sound = (0.2 * seconds).astype(np.float32)
    path = write_video(tmp_path / "v.mov", ramp(100), sound=sound, sound_codec="pcm_s16le")
    for clip, centre in zip(clips(path), (1.28, 3.28), strict=True):
        opens = round((centre - 0.32) * 48_000)
        np.testing.assert_allclose(clip.sound, sound[opens : opens + CLIP_SOUND_SAMPLES], atol=1e-3)


def test_chosen_clips_equal_those_of_a_full_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", ramp(90), sound=tone(3.6, 48_000))
    segments = video.cut("s", item(path), Cutting(None, 1, 0, clip_seconds=0.8))
    everything = list(video.read(segments))
    (chosen,) = video.read(segments[2:3])
    np.testing.assert_array_equal(chosen.frames, everything[2].frames)  # type: ignore[union-attr]
    np.testing.assert_array_equal(chosen.sound, everything[2].sound)  # type: ignore[union-attr, arg-type]


def test_a_phone_held_upright_gives_upright_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [100] * 20)
    payload = bytearray(path.read_bytes())
    matrix = payload.index(b"tkhd") + 44
    # The matrix that phones write for a quarter turn clockwise (ISO/IEC 14496-12, 8.3.2).
    payload[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(payload)
    attributes = video.probe(str(path))
    assert (attributes["width"], attributes["height"]) == (48, 64)
    (clip,) = clips(path)
    assert clip.frames.shape == (CLIP_FRAMES, 64, 48, 3)
    bright, dark = clip.frames[0, :, -20:].mean(), clip.frames[0, :, :20].mean()
    assert bright - dark == pytest.approx(20, abs=4)


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (256, 341)), ((320, 720), (576, 256)), ((64, 48), (48, 64))]
)
def test_large_frames_are_scaled_down(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    path = write_video(tmp_path / "v.mp4", [100] * 5, size=size)
    assert clips(path)[0].frames.shape == (CLIP_FRAMES, *expected, 3)


@pytest.mark.parametrize("name", ["v.mp4", "faststart.mp4", "v.mkv", "v.webm", "v.avi"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_files_cut_short_are_rejected(tmp_path: Path, name: str, share: float) -> None:
    codec = {"v.webm": "libvpx-vp9", "v.avi": "mpeg4"}.get(name, "libx264")
    options = {"movflags": "faststart"} if name == "faststart.mp4" else {}
    noise = np.random.default_rng(0).integers(0, 235, 120).tolist()
    path = write_video(tmp_path / name, noise, codec=codec, options=options)
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(RejectedError, match=r"cut short|duration is zero"):
        video.cut("s", item(path), CUTTING)


def test_frames_beyond_the_limit_are_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [100] * 5)
    limits = DecodingSettings(max_frame_pixels=64 * 48 - 1)
    cutting = dataclasses.replace(CUTTING, decoding=limits)
    for attempt in (lambda uri: video.probe(uri, limits), lambda uri: video.cut("s", item(uri), cutting)):
        with pytest.raises(RejectedError, match=r"too large frames, 64 x 48: .* decoding\.max_frame_pixels = 3071"):
            attempt(str(path))


@pytest.mark.parametrize("payload", [b"", b"\x00\x00\x00\x18ftypisom" + bytes(200), b"\x1a\x45\xdf\xa3" + bytes(200)])
def test_signatures_without_a_video_are_rejected(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "v").write_bytes(payload)
    for attempt in (video.probe, lambda uri: video.cut("s", item(uri), CUTTING)):
        with pytest.raises(RejectedError):
            attempt(str(tmp_path / "v"))


def test_a_clock_that_jumps_is_damage_not_thousands_of_clips(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [100, 120, 140], times=[0.0, 0.04, 90_000.0])
    with pytest.raises(RejectedError, match="its clock jumps by 90000 s"):
        video.cut("s", item(path), CUTTING)


def test_clips_shorter_than_the_window_are_the_users_mistake(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [100] * 5)
    with pytest.raises(PlatformError, match=r"clip_seconds is 0\.5; set it to 0\.64 or more"):
        video.cut("s", item(path), Cutting(None, 1, 0, clip_seconds=0.5))


def test_the_code_version_follows_the_clip_alone() -> None:
    version = code_version("video", CUTTING)
    assert version == code_version("video", Cutting("/nowhere", 1, 0, 5.0))
    assert version != code_version("video", Cutting(None, 1, 0, clip_seconds=3.0))


def test_any_file_system_serves(tmp_path: Path) -> None:
    url = f"memory://{uuid4().hex}/s/v.mp4"
    made = write_video(tmp_path / "v.mp4", ramp(40), sound=tone(1.6, 48_000))
    fsspec.url_to_fs(url)[0].pipe_file(url, made.read_bytes())
    assert len(clips(url)) == 1
