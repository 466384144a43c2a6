"""Media files for benchmarks, drawn from a seed: photographs, recordings and clips as lakes hold them."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZES = ((640, 480), (500, 375), (375, 500), (800, 600))
"""Width and height of photographs, as in ImageNet and COCO."""

RECORDING_SECONDS = (30.0, 12.0, 6.5, 21.0)
CLIP_SECONDS = 0.64
"""One window of the Perceiver: 16 frames at 25 a second."""


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of quality 90 with edges, gradients and grain."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = SIZES[number % len(SIZES)]
        path = folder / f"{number:04}.jpg"
        Image.fromarray(_scene(rng, width, height)).save(path, quality=90)
        paths.append(path)
    return paths


def recordings(folder: Path, count: int) -> list[Path]:
    """FLAC files at 44.1 kHz, stereo: gliding tones, pauses and noise, up to Whisper's 30 s."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        seconds = RECORDING_SECONDS[number % len(RECORDING_SECONDS)]
        time = np.arange(int(44_100 * seconds)) / 44_100
        pitch = rng.uniform(90, 400) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time))
        voiced = np.sin(2 * np.pi * rng.uniform(0.3, 1.5) * time) > -0.3
        tone = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / 44_100) * voiced
        sound = tone + rng.normal(0, 0.01, len(time))
        path = folder / f"{number:04}.flac"
        _write_sound(path, np.stack([sound, 0.8 * sound]).astype(np.float32))
        paths.append(path)
    return paths


def clips(folder: Path, count: int) -> list[Path]:
    """MP4 files (H.264 and AAC) of 320 x 240 at 25 frames a second, one clip long."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:04}.mp4"
        _write_clip(path, np.random.default_rng(number))
        paths.append(path)
    return paths


def _scene(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([np.sin(rows / rng.uniform(20, 200) + columns / rng.uniform(20, 200)) for _ in range(3)], -1)
    picture = 127.5 + 60 * picture
    for _ in range(12):
        centre, radius = rng.uniform(0, [height, width]), rng.uniform(10, 120)
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        picture[inside] = rng.uniform(0, 255, 3) + 15 * np.sin(columns[inside] / rng.uniform(2, 30))[:, None]
    return (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)


def _write_sound(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=44_100, layout="stereo")
        whole = np.ascontiguousarray((samples * 32_767).astype(np.int16).T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="stereo")
        frame.sample_rate = 44_100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def _write_clip(path: Path, rng: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=25)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        scene = _scene(rng, 480, 320)
        for place in range(round(CLIP_SECONDS * 25)):
            offset = round(place * rng.uniform(0.9, 1.1))
            view = np.ascontiguousarray(scene[offset : offset + 240, offset : offset + 320])
            for packet in video.encode(av.VideoFrame.from_ndarray(view, format="rgb24")):
                container.mux(packet)
        time = np.arange(int(48_000 * CLIP_SECONDS)) / 48_000
        tone = (0.4 * np.sin(2 * np.pi * rng.uniform(100, 900) * time)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for stream, last in ((sound, frame), (video, None), (sound, None)):
            for packet in stream.encode(last):
                container.mux(packet)
