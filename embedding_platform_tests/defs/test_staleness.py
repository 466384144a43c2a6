"""What Dagster calls out of date: nothing after runs without changes, and after a change exactly what it reaches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from embedding_platform.definitions import build_definitions
from embedding_platform.defs.upkeep import GROUP as UPKEEP
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.runs import run_sources
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.reconcile.small_lake import write_image

SPACE = "image/resnet50"
SOURCES = ("cats", "dogs")


@dataclass(frozen=True)
class Place:
    folder: Path
    platform: Platform
    dagster: dg.DagsterInstance

    def run(self, *sources: str) -> None:
        assert all(run.succeeded for run in run_sources(self.platform, self.dagster, ["image"], sources))

    def stale(self, definitions: dg.Definitions | None = None) -> set[tuple[str, str | None]]:
        """Assets of the modality and their partitions that Dagster shows as out of date."""
        graph = (definitions or build_definitions(self.platform)).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(self.dagster, graph, LoadingContextForTest(self.dagster))
        every = [
            (key, partition)
            for key in graph.get_all_asset_keys()
            if graph.get(key).group_name != UPKEEP
            for partition in (SOURCES if graph.get(key).is_partitioned else (None,))
        ]
        return {
            (key.to_user_string(), partition)
            for key, partition in every
            if resolver.get_status(key, partition) is not StaleStatus.FRESH
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("stale")
    for number in range(6):
        write_image(folder / "media" / SOURCES[number % 2] / f"{number}.png", number)
    platform = open_platform(folder, spaces=[SPACE])
    with dg.instance_for_test() as dagster:
        place = Place(folder, platform, dagster)
        place.run()
        yield place
    close_directory(platform.settings.milvus_uri)


def of(*assets: str, source: str | None = "cats") -> set[tuple[str, str | None]]:
    return {(asset, source) for asset in assets}


def test_nothing_is_out_of_date_after_one_run_of_each_source_nor_after_a_second_without_changes(place: Place) -> None:
    assert place.stale() == set()
    place.run()
    assert place.stale() == set()
    place.run("dogs")
    assert place.stale() == set()


def test_a_file_that_was_only_touched_makes_nothing_out_of_date(place: Place) -> None:
    (place.folder / "media" / "cats" / "0.png").touch()
    place.run("cats")
    assert place.stale() == set()


def test_a_change_in_a_source_makes_exactly_what_comes_after_it_out_of_date(place: Place) -> None:
    write_image(place.folder / "media" / "cats" / "new.png", 99)
    files, segments = "image/files", "image/segments"
    embeddings, collection, published = (f"{SPACE}/{stage}" for stage in ("embeddings", "collection", "published"))
    job = build_definitions(place.platform).resolve_job_def("image_sync")
    seen = []
    for asset in (files, segments, embeddings, collection, published):
        key = dg.AssetKey(asset.split("/"))
        assert job.execute_in_process(instance=place.dagster, partition_key="cats", asset_selection=[key]).success
        seen.append(place.stale())
    assert seen == [
        of(segments),
        of(embeddings, collection),
        of(collection),
        of(published, source=None),
        set(),
    ]


def test_another_model_makes_what_it_decides_out_of_date_and_nothing_before(place: Place) -> None:
    other = build_definitions(open_platform(place.folder, spaces=[SPACE], generations={SPACE: 1}))
    decided = (f"{SPACE}/embeddings", f"{SPACE}/collection")
    expected = {place for source in SOURCES for place in of(*decided, source=source)}
    assert place.stale(other) == expected | of(f"{SPACE}/published", source=None)


def test_another_index_makes_collections_out_of_date_and_no_vector(place: Place) -> None:
    other = build_definitions(open_platform(place.folder, spaces=[SPACE], indexes={SPACE: {"type": "FLAT"}}))
    assert place.stale(other) == {(f"{SPACE}/collection", source) for source in SOURCES}


def test_search_by_words_makes_collections_of_text_another_and_no_vector_and_no_other_modality(tmp_path: Path) -> None:
    def versions(search_words: bool) -> dict[str, str | None]:
        platform = open_platform(
            tmp_path, spaces=["text/minilm", "image_text/clip"], milvus={"search_words": search_words}
        )
        specs = build_definitions(platform).resolve_all_asset_specs()
        return {spec.key.to_user_string(): spec.code_version for spec in specs}

    with_words, without = versions(True), versions(False)
    assert with_words.keys() == without.keys()
    assert {key for key, version in with_words.items() if without[key] != version} == {
        "text/minilm/collection",
        "text/minilm/published",
    }
