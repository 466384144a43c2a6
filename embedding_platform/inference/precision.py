"""Does a runtime give the model's vectors? Compared with float32 torch once per model and machine, and recorded."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.records import (
    CLIP_FRAME_RATE,
    CLIP_FRAMES,
    CLIP_SAMPLE_RATE,
    CLIP_SOUND_SAMPLES,
    SAMPLE_RATE,
    Content,
    Sound,
    VideoClip,
    digest,
)
from embedding_platform.spaces import Role


@dataclass(frozen=True)
class Floor:
    """The least cosine, and the least mean of cosines, to the float32 vectors of the same contents."""

    worst: float
    mean: float


FLOORS: Mapping[str, Floor] = {
    "float32": Floor(0.9999, 0.9999),
    "bfloat16": Floor(0.99, 0.995),
    "float16": Floor(0.99, 0.995),
}


@dataclass(frozen=True)
class PrecisionRecord:
    """What was measured before, one JSON file for each model, role, runtime and machine below `folder`.

    Without a folder nothing is kept, and every process measures again.
    """

    folder: str = ""

    def holds(self, facts: Mapping[str, str]) -> bool:
        """Whether the runtime that `facts` tell was found sound on this machine."""
        return bool(self.folder) and storage.read_bytes(self._url(facts)) is not None

    def check(self, facts: Mapping[str, str], expected: np.ndarray, found: np.ndarray) -> None:
        """Compare vectors [n, d] of the same contents; record what was measured.

        Raises:
            PlatformError: if a cosine, or their mean, is below the floor of the precision.
        """
        measured = cosines(expected, found)
        worst, mean = float(measured.min()), float(measured.mean())
        floor = FLOORS[facts["precision"]]
        # Written so that a NaN fails.
        if not (worst >= floor.worst and mean >= floor.mean):
            raise PlatformError(
                f"{facts['model']} in {facts['precision']} by {facts['runtime']} on {facts['machine']} gives "
                f"{facts['role']} vectors of cosine {worst:.4f} at worst and {mean:.4f} in the mean to float32, below "
                f"{floor.worst} and {floor.mean}; set precision to float32, or runtime to torch"
            )
        if self.folder:
            figures = {**facts, "cosine_worst": worst, "cosine_mean": mean, "samples": len(measured)}
            storage.write_bytes(self._url(facts), json.dumps(figures, indent=2).encode())

    def _url(self, facts: Mapping[str, str]) -> str:
        return f"{self.folder}/{digest(*(f'{name}={value}' for name, value in sorted(facts.items())))[:32]}.json"


def machine(device: str) -> str:
    """What the device is called by its maker: the name of the GPU, or of the processor."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":")[2].strip() for line in file if line.startswith(("model name", "flags"))]
    except OSError:
        return platform.processor() or platform.machine()
    # Processors of one name differ in what they compute in hardware.
    return f"{lines[0]}, flags {digest(*lines[1:2])[:8]}" if lines else platform.machine()


def sample_contents(role: Role) -> Sequence[Content]:
    """A few contents of the role, unlike each other and the same every time.

    Drawn from RandomState, whose stream numpy has frozen (NEP 19): golden vectors are kept for years.
    """
    return {"text": _texts, "image": _images, "audio": _sounds, "video": _clips}[role]()


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines float64 [n] of vectors [n, d] and [n, d], row by row."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def _texts() -> list[Content]:
    return [
        "harbour",
        "A red circle on a white ground.",
        "How do volcanoes erupt?",
        "Grüße aus Köln, 数据 and naïve cafés.",
        "The invoice of 12 March, number 2041, is still open; please pay it within fourteen days.",
        "Penguins swim well and fly badly. " * 6,
        "def mean(values): return sum(values) / len(values)",
        "When the tide goes out, the boats lie on the sand and children look for crabs between them. " * 12,
    ]


def _images() -> list[Content]:
    from PIL import Image

    rng = np.random.RandomState(7)
    images: list[Content] = []
    for height, width in ((240, 320), (480, 360), (224, 224), (600, 800)):
        rows, columns = np.mgrid[0:height, 0:width]
        waves = [np.sin(rows / rng.uniform(5, 90) + columns / rng.uniform(5, 90)) for _ in range(3)]
        pixels = 127.5 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 9, (height, width, 3))
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


def _sounds() -> list[Content]:
    rng = np.random.RandomState(8)
    sounds: list[Content] = []
    for seconds, pitch in ((0.8, 220.0), (4.0, 440.0), (29.5, 880.0)):
        time = np.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
        tone = 0.4 * np.sin(2 * np.pi * pitch * time * (1 + 0.1 * np.sin(time)))
        sounds.append(Sound((tone + rng.normal(0, 0.02, len(time))).astype(np.float32)))
    return sounds


def _clips() -> list[Content]:
    rng = np.random.RandomState(9)
    rows, columns = np.mgrid[0:180, 0:240]
    clips: list[Content] = []
    for speed in (2.0, 40.0):
        frames = [
            127.5 + 100 * np.sin((columns + speed * place)[..., None] / (11, 17, 29) + rows[..., None] / 23)
            for place in range(CLIP_FRAMES)
        ]
        time = np.arange(CLIP_SOUND_SAMPLES) / CLIP_SAMPLE_RATE
        sound = 0.4 * np.sin(2 * np.pi * 9 * speed * time * CLIP_FRAME_RATE) + rng.normal(0, 0.02, len(time))
        clips.append(VideoClip(np.stack(frames).astype(np.uint8), sound.clip(-1, 1).astype(np.float32)))
    return clips
