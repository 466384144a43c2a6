"""Searches while models change hands: the collection's own model answers, or one line says why not."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.inference import golden
from embedding_platform.inference.golden import GOLDEN
from embedding_platform.milvus.connection import close_directory
from embedding_platform.models.loading import resolve
from embedding_platform.platform import Platform
from embedding_platform.records import vectors_schema
from embedding_platform.runs import run_sources
from embedding_platform.search import Searcher
from embedding_platform.spaces import MODEL_SETS
from embedding_platform_tests.conftest import open_platform

KEY = "image/resnet50"


@dataclass(frozen=True)
class Lake:
    folder: Path
    dagster: dg.DagsterInstance

    def platform(self, model: str = "mine", **settings: object) -> Platform:
        models = {KEY: str(self.folder / model)}
        return open_platform(self.folder, spaces=[KEY], models=models, runtime="torch", **settings)

    def found(self, platform: Platform) -> list[str]:
        picture = self.folder / "media" / "photos" / "1.png"
        return [hit.path for hit in Searcher(platform).search(picture, KEY, limit=1)]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Three pictures, indexed by a model of one's own, and a retrained one beside it."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("lake")
    (folder / "media" / "photos").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in range(3):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "media" / "photos" / f"{name}.png")
    (starter,) = (space for space in MODEL_SETS["starter"] if space.key == KEY)
    for name, factor in (("mine", 1.01), ("retrained", 1.02)):
        shutil.copytree(resolve(starter.model), folder / name)
        weights = load_file(folder / name / "model.safetensors")
        weights["embedder.embedder.convolution.weight"] *= factor
        save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
    with dg.instance_for_test() as instance:
        lake = Lake(folder, instance)
        assert all(run.succeeded for run in run_sources(lake.platform(), instance))
        yield lake
    close_directory(lake.platform().settings.milvus_uri)


def test_a_model_of_ones_own_answers_until_its_successor_is_published(lake: Lake) -> None:
    former, latter = lake.platform(), lake.platform("retrained")
    assert former.fingerprint(former.space(KEY)) != latter.fingerprint(latter.space(KEY))
    assert lake.found(former) == lake.found(latter) == ["1.png"]


def test_a_former_generation_and_precision_answer_too(lake: Lake) -> None:
    later = lake.platform(generations={KEY: 2}, precision="bfloat16")
    assert later.space(KEY).generation == 2
    assert lake.found(later) == ["1.png"]


def test_a_former_model_that_is_no_longer_as_it_was_is_said_to_be(lake: Lake) -> None:
    shutil.move(lake.folder / "mine", lake.folder / "elsewhere")
    try:
        with pytest.raises(PlatformError, match=r"is published with .*/mine .*, which is no longer there as it was"):
            lake.found(lake.platform("retrained"))
    finally:
        shutil.move(lake.folder / "elsewhere", lake.folder / "mine")


def test_the_golden_vectors_of_a_run_are_met_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "_compared", {})
    report = lake.platform().golden(lake.platform().space(KEY))
    assert report.compared == len(golden.golden_contents("image"))
    assert report.worst_cosine == pytest.approx(1.0, abs=1e-4)
    assert not report.written


def test_held_out_queries_are_encoded_by_the_spaces_model_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = lake.platform(quality={"queries": {KEY: "media/photos"}})
    space = platform.space(KEY)
    vectors = platform.held_out(space)
    assert vectors is not None
    assert (vectors.shape, vectors.dtype) == ((3, 256), np.float32)
    stored = storage.read_shards(
        layout.vectors_folder(platform.store, KEY, platform.fingerprint(space), "photos"), vectors_schema(256)
    )
    # The pictures are those that were indexed, so that the queries are their vectors.
    cosines = vectors @ np.array(stored["vector"].to_pylist(), np.float32).T
    assert sorted(cosines.max(axis=1)) == pytest.approx([1.0] * 3, abs=1e-4)
    monkeypatch.setattr(Platform, "encoder", lambda *arguments, **named: pytest.fail("a model was loaded"))
    np.testing.assert_array_equal(platform.held_out(space), vectors)
    assert lake.platform().held_out(space) is None


def test_a_run_whose_model_gives_other_vectors_embeds_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = lake.platform()
    fingerprint = platform.fingerprint(platform.space(KEY))
    url = layout.golden_url(platform.store, fingerprint)
    kept = storage.read_table(url, GOLDEN)
    backwards = [{**row, "vector": row["vector"][::-1]} for row in kept.to_pylist()]
    turned = pa.Table.from_pylist(backwards, schema=GOLDEN)
    storage.write_table(url, turned)
    monkeypatch.setattr(golden, "_compared", {})
    Image.new("RGB", (32, 32), "red").save(lake.folder / "media" / "photos" / "new.png")
    (failed,) = run_sources(platform, lake.dagster)
    assert not failed.succeeded
    (reason,) = failed.failures
    assert f"{KEY} gives other vectors than on " in reason
    assert f"set generations: {{{KEY}: 1}} to embed anew" in reason

    anew = lake.platform(generations={KEY: 1})
    (run,) = run_sources(anew, lake.dagster)
    assert run.succeeded
    assert run.of("embeddings", "embedded") == 4
    assert lake.found(anew) == ["1.png"]
    assert storage.read_table(url, GOLDEN).equals(turned)
