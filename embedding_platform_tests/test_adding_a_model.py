"""What docs/add-a-model.md promises: a new model is one entry of the catalogue, and everything grows from it."""

import shutil
from types import MappingProxyType

import dagster as dg
import numpy as np
from PIL import Image

from embedding_platform import settings, spaces
from embedding_platform.definitions import build_definitions
from embedding_platform.runs import run_sources
from embedding_platform.search import Searcher
from embedding_platform.spaces import MODEL_SETS, Model, Space
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.models.small_models import save_sentence_transformer


def test_a_model_is_added_by_one_entry(tmp_path, monkeypatch, folders, instance):
    save_sentence_transformer(tmp_path / "narrow", {"query": "query: ", "document": ""})
    narrow = Model(
        family="sentence_transformer",
        location=str(tmp_path / "narrow"),
        dimension=48,
        roles=("text",),
        licence="MIT",
        source="class token, normalised",
        max_tokens=64,
    )
    clip_like = Model(
        family="clip",
        location=str(shutil.copytree(folders("clip"), tmp_path / "clip")),
        dimension=24,
        roles=("image", "text"),
        licence="MIT",
        source="projected tokens",
        max_tokens=77,
    )
    added = (Space("text", "narrow", narrow), Space("image", "clip_like", clip_like))
    catalogue = MappingProxyType({**MODEL_SETS, "starter": (*MODEL_SETS["starter"], *added)})
    for module in (spaces, settings):
        monkeypatch.setattr(module, "MODEL_SETS", catalogue)
    (tmp_path / "media" / "notes").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "media" / "notes" / f"note-{number}.txt").write_text(f"note {number} about the harbour")
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "media" / "notes" / f"{number}.png")

    platform = open_platform(tmp_path, spaces=["text/narrow", "image/clip_like"])
    runs = list(run_sources(platform, instance))
    assert [(run.modality, run.succeeded, run.of("embeddings", "embedded")) for run in runs] == [
        ("text", True, 3),
        ("image", True, 3),
    ]
    graph = build_definitions(platform).resolve_asset_graph()
    assert dg.AssetKey(["text", "narrow", "published"]) in graph.get_all_asset_keys()
    hits = Searcher(platform).search_spaces("note 1 about the harbour", limit=3)
    assert {key: len(found) for key, found in hits.items()} == {"text/narrow": 3, "image/clip_like": 3}
    network_words = platform.encoder(added[0]).prepare("text", "harbour", "query")["input_ids"]
    assert len(network_words) == len(platform.encoder(added[0]).prepare("text", "harbour")["input_ids"]) + 2
