import wave
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media import audio
from embedding_platform.media.cutting import Cutting, code_version, cut, read
from embedding_platform.records import SAMPLE_RATE, Segment, Sound, digest

from .made import CUTTING, item, tone, write_sound

FORMATS = [
    ("a.wav", "pcm_s16le", 44_100),
    ("a.wav", "pcm_f32le", 96_000),
    ("a.wav", "pcm_u8", 8_000),
    ("a.flac", "flac", 48_000),
    ("a.mp3", "libmp3lame", 44_100),
    ("a.ogg", "libopus", 48_000),
    ("a.m4a", "aac", 44_100),
    ("a.aac", "aac", 44_100),
    ("a.aiff", "pcm_s16be", 22_050),
    ("a.webm", "libopus", 48_000),
]


def by_seconds(window: float) -> Cutting:
    return Cutting(None, 64, 0, audio_window_seconds=window)


def samples_of(segments: list[Segment]) -> list[np.ndarray]:
    sounds = list(read("audio", segments))
    assert all(isinstance(sound, Sound) and sound.rate == SAMPLE_RATE for sound in sounds)
    return [sound.samples for sound in sounds if isinstance(sound, Sound)]


def hertz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * SAMPLE_RATE / len(samples))


@pytest.mark.parametrize(("name", "codec", "rate"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_decodes_to_the_tone_it_holds(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int
) -> None:
    path = write_sound(tmp_path / name, tone(2.0, rate, hertz=1000), rate=rate, codec=codec, channels=channels)
    attributes = audio.probe(str(path))
    assert attributes["sample_rate"] == rate
    assert attributes["channels"] == channels
    assert attributes["duration_seconds"] == pytest.approx(2.0, abs=0.2)
    segments = cut("audio", "s", item(path), CUTTING)
    (samples,) = samples_of(segments)
    assert (samples.dtype, samples.ndim) == (np.float32, 1)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.1)
    assert hertz(samples) == pytest.approx(1000, abs=2)
    # Codecs ring at the ends of a tone.
    assert np.abs(samples[4_000:-8_000]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("seconds", "window", "ends"),
    [
        (2.0, 30.0, [2.0]),
        (2.0, 1.0, [1.0, 2.0]),
        (2.5, 1.0, [1.0, 2.0, 2.5]),
        (2.1, 1.0, [1.0, 2.0, 2.1]),
        (2.05, 1.0, [1.0, 2.0]),
        (0.02, 30.0, [0.02]),
        (1.0, 0.3, [0.3, 0.6, 0.9, 1.0]),
    ],
)
def test_windows_follow_each_other(tmp_path: Path, seconds: float, window: float, ends: list[float]) -> None:
    path = write_sound(tmp_path / "a.wav", tone(seconds, 16_000), rate=16_000)
    segments = audio.cut("s", item(path), by_seconds(window))
    assert [segment.end for segment in segments] == pytest.approx(ends, abs=1e-9)
    assert [segment.start for segment in segments] == pytest.approx([0.0, *ends[:-1]], abs=1e-9)
    assert [segment.position for segment in segments] == list(range(len(ends)))
    first = segments[0]
    assert first.content_hash == digest("audio", item(path).content_hash, f"{first.start}", f"{first.end}")


def test_windows_joined_are_the_file_sample_by_sample(tmp_path: Path) -> None:
    ramp = (np.arange(40_000) % 30_000 / 32_768).astype(np.float32)
    path = write_sound(tmp_path / "a.wav", ramp, rate=16_000)
    segments = audio.cut("s", item(path), by_seconds(0.7))
    pieces = samples_of(segments)
    assert [len(piece) for piece in pieces] == [11_200, 11_200, 11_200, 6_400]
    np.testing.assert_allclose(np.concatenate(pieces), ramp, atol=1 / 32_768)
    chosen = samples_of([segments[1], segments[3]])
    np.testing.assert_array_equal(chosen[0], pieces[1])
    np.testing.assert_array_equal(chosen[1], pieces[3])


def test_silence_is_sound(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", np.zeros(16_000, np.float32), rate=16_000, codec="flac")
    (samples,) = samples_of(audio.cut("s", item(path), CUTTING))
    assert not np.any(samples)


@pytest.mark.parametrize(("name", "codec", "rate"), [entry for entry in FORMATS if entry[0] != "a.aac"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_files_cut_short_are_rejected(tmp_path: Path, name: str, codec: str, rate: int, share: float) -> None:
    path = write_sound(tmp_path / name, tone(6.0, rate), rate=rate, codec=codec)
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(RejectedError, match="cut short"):
        audio.cut("s", item(path), CUTTING)


def test_mp3_of_variable_rate_without_a_length_is_not_taken_for_cut_short(tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros(20 * 16_000, np.float32), np.random.default_rng(0).normal(0, 0.2, 160_000)])
    path = write_sound(
        tmp_path / "a.mp3",
        sound.astype(np.float32),
        rate=16_000,
        codec="libmp3lame",
        options={"write_xing": "0"},
    )
    assert audio.cut("s", item(path), CUTTING)[-1].end == pytest.approx(30.0, abs=0.2)


def test_zero_duration_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    for attempt in (audio.probe, lambda uri: audio.cut("s", item(uri), CUTTING)):
        with pytest.raises(RejectedError, match="duration is zero"):
            attempt(str(path))


@pytest.mark.parametrize(
    "payload", [b"", b"ID3" + bytes(500), b"fLaC" + bytes(100), b"RIFF\x24\x00\x00\x00WAVE" + bytes(32)]
)
def test_signatures_without_sound_are_rejected(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "a").write_bytes(payload)
    for attempt in (audio.probe, lambda uri: audio.cut("s", item(uri), CUTTING)):
        with pytest.raises(RejectedError):
            attempt(str(tmp_path / "a"))


def test_a_file_that_shrank_since_it_was_cut_is_rejected(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone(3.0, 16_000), rate=16_000)
    segments = audio.cut("s", item(path), by_seconds(1.0))
    write_sound(path, tone(1.5, 16_000), rate=16_000)
    contents = audio.read(segments)
    next(contents)
    with pytest.raises(RejectedError, match="has changed since it was cut"):
        next(contents)


@pytest.mark.parametrize("window", [0.0, -1.0, 30.5])
def test_a_window_that_the_model_cannot_take_is_the_users_mistake(tmp_path: Path, window: float) -> None:
    path = write_sound(tmp_path / "a.wav", tone(0.5, 16_000), rate=16_000)
    with pytest.raises(PlatformError, match="set it between"):
        audio.cut("s", item(path), by_seconds(window))


def test_the_code_version_follows_the_window_alone() -> None:
    assert code_version("audio", by_seconds(30.0)) == code_version("audio", Cutting("/nowhere", 1, 0, 30.0, 9.0))
    assert code_version("audio", by_seconds(30.0)) != code_version("audio", by_seconds(29.0))
    assert code_version("audio", CUTTING) != code_version("video", CUTTING)


def test_any_file_system_serves(tmp_path: Path) -> None:
    url = f"memory://{uuid4().hex}/s/a.m4a"
    made = write_sound(tmp_path / "a.m4a", tone(1.0, 44_100), codec="aac")
    fsspec.url_to_fs(url)[0].pipe_file(url, made.read_bytes())
    assert len(list(audio.read(audio.cut("s", item(url), CUTTING)))) == 1
