"""From sample media in five modalities to published collections, and what a change to the media changes."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from PIL import Image

from embedding_platform.definitions import build_definitions
from embedding_platform.lineage import trace_row
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory
from embedding_platform.milvus.schema import alias_name, collection_name, partition_name
from embedding_platform.milvus.sync import read_rows
from embedding_platform.models.loading import resolve
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.records import segment_id
from embedding_platform.runs import SourceRun, run_sources
from embedding_platform.search import Searcher
from embedding_platform.spaces import MODALITIES
from embedding_platform.starter.sample_media import SAMPLE_QUESTIONS, make_sample_media, make_sample_queries
from embedding_platform_tests.conftest import open_platform


@dataclass(frozen=True)
class Lake:
    """A platform over the sample media, its Dagster instance, and what the first run said."""

    folder: Path
    platform: Platform
    dagster: dg.DagsterInstance
    first: list[SourceRun]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    folder = tmp_path_factory.mktemp("lake")
    make_sample_media(str(folder / "media"))
    make_sample_queries(str(folder / "queries"))
    platform = open_platform(folder)
    with dg.instance_for_test() as dagster:
        yield Lake(folder, platform, dagster, list(run_sources(platform, dagster)))
    close_directory(platform.settings.milvus_uri)


def rows(platform: Platform) -> dict[tuple[str, str], str]:
    """Version by (space, row id) of all that is published."""
    found = {}
    for space in platform.spaces:
        for source in listed_sources(platform.store, space.modality):
            versions = read_rows(platform.milvus, platform.target(space).partition(source))
            found |= {(space.key, row_id): version for row_id, version in versions.items()}
    return found


def test_every_asset_of_every_space_materializes_and_every_run_succeeds(lake: Lake) -> None:
    assert [run.failures for run in lake.first if not run.succeeded] == []
    done = {asset for run in lake.first for asset in run.metadata}
    specs = build_definitions(lake.platform).resolve_all_asset_specs()
    assert done == {spec.key.to_user_string() for spec in specs if spec.group_name in MODALITIES}


def test_every_space_is_published_with_good_recall(lake: Lake) -> None:
    for space in lake.platform.spaces:
        published = alias_target(lake.platform.milvus, alias_name(space.key))
        assert published == lake.platform.target(space).collection
    recalls = [
        metadata["recall_at_10"]
        for run in lake.first
        for asset, metadata in run.metadata.items()
        if asset.endswith("/collection")
    ]
    assert recalls
    assert min(recalls) >= lake.platform.settings.quality.min_recall


@pytest.mark.parametrize("question", SAMPLE_QUESTIONS, ids=lambda question: f"{question.modality}-{question.answer}")
def test_search_finds_the_right_thing_first(lake: Lake, question) -> None:
    searcher = Searcher(lake.platform)
    query = question.query if question.kind == "text" else lake.folder / "queries" / question.query
    role = "text" if question.kind == "text" else searcher.file_query(str(query)).role
    space = next(one.key for one in searcher.spaces() if one.modality == question.modality and role in one.roles)
    hits = searcher.search(query, space, limit=3)
    assert hits[0].path.rsplit("/", 1)[-1].startswith(question.answer), [hit.path for hit in hits]


def test_a_hit_leads_back_to_its_file_and_run(lake: Lake) -> None:
    hits = Searcher(lake.platform).search("how do volcanoes erupt", "text/minilm")
    (found,) = trace_row(lake.platform, hits[0].id)
    assert found.file is not None
    assert found.file.uri == hits[0].uri
    assert found.file.path == hits[0].path
    assert found.provenance.fingerprint == lake.platform.fingerprint(lake.platform.space("text/minilm"))
    assert found.run_id in {run.run_id for run in lake.first}


def test_a_second_run_embeds_nothing_and_writes_nothing_and_draws_nothing(lake: Lake) -> None:
    before = stored_files(lake.folder)
    again = list(run_sources(lake.platform, lake.dagster))
    assert all(run.succeeded and run.did_nothing for run in again)
    assert stored_files(lake.folder) == before
    assert pictures_of(again) == {}


PICTURES = {
    "text": {"excerpts", "norms", "map", "neighbours"},
    "image": {"contact_sheet", "norms", "map", "neighbours"},
    "image_text": {"contact_sheet", "norms", "map", "neighbours"},
    "audio": {"waveforms", "norms", "map", "neighbours"},
    "video": {"key_frames", "norms", "map", "neighbours"},
}


def pictures_of(runs: list[SourceRun]) -> dict[str, dict[str, str]]:
    """Pictures by name, of each modality that shows any."""
    names = set().union(*PICTURES.values(), {"not_drawn"})
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for metadata in run.metadata.values():
            shown = {name: str(value) for name, value in metadata.items() if name in names}
            if shown:
                found.setdefault(run.modality, {}).update(shown)
    return found


def test_what_is_new_is_shown_in_small_pictures(lake: Lake) -> None:
    shown = pictures_of(lake.first)
    assert {modality: set(pictures) for modality, pictures in shown.items()} == PICTURES
    for pictures in shown.values():
        for name, picture in pictures.items():
            assert len(picture.encode()) < 50_000
            assert "cannot be drawn" not in picture
            assert name in ("excerpts", "neighbours") or "](data:image/" in picture
        assert pictures["neighbours"].count("**") >= 2 * 9, "a score of each neighbour"
    for modality in ("image", "audio", "video"):
        assert shown[modality]["neighbours"].count("](data:image/") >= 9


OFTEN_ABSENT = {
    "files": {"rejects", "rejects_list", "rejects_table", "dagster/column_schema"},
    "segments": {"rejects", "rejects_list", "rejects_table", "dagster/column_schema", "not_drawn"},
    "embeddings": {
        *("rejects", "rejects_list", "rejects_table"),
        *("dagster/column_schema", "fingerprint", "licence"),
    },
    "collection": {
        *("dagster/column_schema", "fingerprint"),
        *("held_out_recall_at_10", "held_out_recall_at_100", "seconds_from_change_to_searchable"),
    },
    "published": {"dagster/column_schema", "fingerprint", "overlap_at_10"},
}
"""What is explained and that a first run of sound media does not show: rejects, what stands beside the asset's
description, and what is measured where something is given, there was a model before, or a sensor noticed the change."""


@pytest.mark.parametrize("stage", OFTEN_ABSENT)
def test_a_run_shows_every_number_that_is_explained_and_no_other(lake: Lake, stage: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "metadata.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    rows = re.findall(r"^\| (`.+?) \|(?: (.+?) \|)?", sections["Every asset"], re.MULTILINE)
    cells = [names for names, stages in rows if stages == "all" or stage in stages.split(", ")]
    cells += re.findall(r"^\| (`.+?) \|", sections[stage], re.MULTILINE)
    explained = {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}
    shown = {
        name
        for run in lake.first
        for asset, metadata in run.metadata.items()
        if asset.endswith(f"/{stage}")
        for name in metadata
    }
    assert explained - shown == OFTEN_ABSENT[stage]
    assert shown <= explained


def test_how_long_readers_waited_is_told(lake: Lake) -> None:
    for run in lake.first:
        for asset, metadata in run.metadata.items():
            if asset.endswith("/collection"):
                assert metadata["seconds_to_searchable"] >= metadata["seconds_written"] > 0
                assert metadata["rows_per_second"] > 0


def stored_files(folder: Path) -> dict[Path, tuple[int, int]]:
    store = folder / ".embedding_platform" / "store"
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file()}


def test_exactly_the_changed_rows_change(lake: Lake) -> None:
    media = lake.folder / "media"
    before = rows(lake.platform)
    removed = sorted((media / "shapes").iterdir())[0]
    edited = media / "handbook" / "lineage.txt"
    added = media / "shapes" / "a-new-picture.png"
    kept = {path: path.read_bytes() for path in (removed, edited)}
    removed.unlink()
    edited.write_text("Penguins cannot fly. They swim after fish in the cold seas of the south.", encoding="utf-8")
    Image.new("RGB", (64, 64), "orange").save(added)
    touched = ("shapes", "handbook")
    try:
        runs = list(run_sources(lake.platform, lake.dagster, (), touched))
        after = rows(lake.platform)
        assert all(run.succeeded for run in runs)
        gone, come = before.keys() - after.keys(), after.keys() - before.keys()
        changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
        passages = {("text/minilm", segment_id("handbook", edited.name, "text", place)) for place in range(100)}
        assert gone - passages == in_image_spaces(removed)
        assert come - passages == in_image_spaces(added)
        assert changed
        assert changed <= passages
        told = pd.DataFrame([metadata for run in runs for metadata in collection_counts(run)])
        assert told["new"].sum() == len(come)
        assert told["stale"].sum() == len(changed)
        assert told["orphaned"].sum() == len(gone)
        hits = Searcher(lake.platform).search("penguins", "text/minilm")
        assert (hits[0].path, hits[0].text[:8]) == ("lineage.txt", "Penguins")
    finally:
        added.unlink()
        for path, payload in kept.items():
            path.write_bytes(payload)
    restored = list(run_sources(lake.platform, lake.dagster, (), touched))
    assert rows(lake.platform).keys() == before.keys()
    assert sum(run.of("embeddings", "embedded") for run in restored) == 0, "vectors of former contents are reused"


def in_image_spaces(file: Path) -> set[tuple[str, str]]:
    return {(space, segment_id("shapes", file.name, "image", 0)) for space in ("image/resnet50", "image/clip")}


def collection_counts(run: SourceRun) -> list[dict[str, object]]:
    return [
        {name: metadata[name] for name in ("new", "stale", "orphaned", "unchanged")}
        for asset, metadata in run.metadata.items()
        if asset.endswith("/collection")
    ]


def test_a_source_that_vanishes_leaves_nothing_behind(lake: Lake) -> None:
    media = lake.folder / "media"
    shutil.copytree(media / "shapes", media / "copies")
    list(run_sources(lake.platform, lake.dagster, ["image"], ["copies"]))
    assert "copies" in lake.dagster.get_dynamic_partitions("image_sources")
    shutil.rmtree(media / "copies")
    runs = list(run_sources(lake.platform, lake.dagster, ["image"], ["copies"]))
    assert all(run.succeeded for run in runs)
    assert "copies" not in lake.dagster.get_dynamic_partitions("image_sources")
    for space in lake.platform.spaces:
        if space.modality == "image":
            collection = lake.platform.target(space).collection
            assert partition_name("copies") not in lake.platform.milvus.list_partitions(collection)


def test_content_that_is_already_embedded_is_not_embedded_again_elsewhere(lake: Lake) -> None:
    media = lake.folder / "media"
    shutil.copytree(media / "clips", media / "more-clips")
    try:
        (run,) = run_sources(lake.platform, lake.dagster, ["video"], ["more-clips"])
        assert run.of("embeddings", "embedded") == 0
        assert run.of("embeddings", "reused") == run.of("embeddings", "new") > 0
    finally:
        shutil.rmtree(media / "more-clips")
        list(run_sources(lake.platform, lake.dagster, ["video"], ["more-clips"]))


def test_another_model_is_a_migration_and_the_alias_moves_when_every_source_is_complete(lake: Lake) -> None:
    from safetensors.numpy import load_file, save_file

    space = lake.platform.space("image/resnet50")
    alias, former = alias_name(space.key), collection_name(space.key, lake.platform.fingerprint(space))
    retrained = lake.folder / "retrained"
    shutil.copytree(resolve(space.model), retrained)
    weights = load_file(retrained / "model.safetensors")
    weights["embedder.embedder.convolution.weight"] *= 1.01
    save_file(weights, retrained / "model.safetensors", {"format": "pt"})
    changed = open_platform(lake.folder, models={space.key: str(retrained)})
    latter = collection_name(space.key, changed.fingerprint(changed.space(space.key)))
    assert latter != former
    first, *others = changed.sources()["image"]
    searcher, picture = Searcher(changed), lake.folder / "queries" / "pictures" / "0.png"

    (run,) = run_sources(changed, lake.dagster, ["image"], [first])
    assert run.succeeded
    assert run.metadata["image/resnet50/published"]["waiting"] == len(others) > 0
    assert alias_target(changed.milvus, alias) == former
    assert searcher.search(picture, space.key), "readers go on with the former model"

    assert all(run.succeeded for run in run_sources(changed, lake.dagster, ["image"], others))
    assert alias_target(changed.milvus, alias) == latter
    hits = searcher.search(picture, space.key)
    assert hits[0].model == str(retrained)

    back = list(run_sources(lake.platform, lake.dagster, ["image"]))
    assert sum(run.of("embeddings", "embedded") for run in back) == 0
    assert alias_target(lake.platform.milvus, alias) == former
