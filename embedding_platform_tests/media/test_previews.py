"""Previews: the right moment of a video, the loudness of the right seconds, and what cannot be shown."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import RejectedError
from embedding_platform.media import previews
from embedding_platform.media.previews import LONG_SIDE, WAVE_BARS, image_preview, sound_preview, video_preview
from embedding_platform_tests.media.made import picture, tone, write_sound, write_video


def opened(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload))


def test_a_large_image_becomes_a_small_jpeg_of_the_same_shape(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(size=(2000, 1000)))
    shown = opened(image_preview(str(tmp_path / "a.png")))
    assert (shown.format, shown.size) == ("JPEG", (LONG_SIDE, LONG_SIDE // 2))
    left, right = shown.getpixel((10, 10)), shown.getpixel((LONG_SIDE - 10, 10))
    assert (left[0] > 200, right[2] > 200) == (True, True)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixel_can_be_shown(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.tiff").write_bytes(picture(mode=mode, format="TIFF"))
    assert opened(image_preview(str(tmp_path / "a.tiff"))).mode == "RGB"


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 2.5, 3.9])
def test_a_video_shows_the_picture_of_that_second(tmp_path: Path, seconds: float) -> None:
    levels = [40 + frame for frame in range(100)]
    write_video(tmp_path / "a.mp4", levels)
    shown = np.asarray(opened(video_preview(str(tmp_path / "a.mp4"), seconds))).mean()
    # The upper half of a frame is 20 levels brighter.
    assert shown == pytest.approx(40 + 10 + seconds * 25, abs=2)


def test_beyond_its_end_a_video_shows_its_last_picture(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [20] * 20 + [200] * 5)
    assert np.asarray(opened(video_preview(str(tmp_path / "a.mp4"), 60.0))).mean() > 150


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_bars_stand_where_the_sound_is(tmp_path: Path, suffix: str) -> None:
    samples = np.concatenate([np.zeros(2 * 44_100, np.float32), tone(2.0, 44_100)])
    path = tmp_path / f"a.{suffix}"
    write_sound(path, samples, codec="flac" if suffix == "flac" else "pcm_s16le")
    for start, end, loud in ((0.0, 4.0, 0.5), (1.0, 3.0, 0.5), (2.5, 3.5, 1.0), (0.0, 1.5, 0.0)):
        peaks = previews._peaks(str(path), start, end, previews.USUAL_LIMITS)
        assert (peaks > 0.3).mean() == pytest.approx(loud, abs=0.03)
    shown = opened(sound_preview(str(path), 0.0, 4.0))
    assert (shown.format, shown.mode, shown.width) == ("PNG", "RGBA", WAVE_BARS * 8)
    alpha = np.asarray(shown)[..., 3] > 0
    assert alpha[:, : shown.width // 2 - 8].sum() * 5 < alpha[:, shown.width // 2 + 8 :].sum()


@pytest.mark.parametrize(
    "show", [image_preview, lambda uri: video_preview(uri, 1.0), lambda uri: sound_preview(uri, 0, 1)]
)
def test_what_cannot_be_decoded_is_rejected(tmp_path: Path, show) -> None:
    (tmp_path / "a.bin").write_bytes(b"neither picture nor sound")
    with pytest.raises(RejectedError):
        show(str(tmp_path / "a.bin"))
    with pytest.raises(RejectedError, match="no longer there"):
        show(str(tmp_path / "b.bin"))
