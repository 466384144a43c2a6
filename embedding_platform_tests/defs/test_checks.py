"""Checks in runs: what fails shows as failed, with numbers, the worst offenders and what to do."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from embedding_platform import layout, storage
from embedding_platform.definitions import build_definitions
from embedding_platform.defs import checks, freshness
from embedding_platform.defs.check_specs import CHECKS
from embedding_platform.defs.freshness import MOST_LOOKED_AT, Listings, last_listings
from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.increments import index_of
from embedding_platform.inference.golden import GoldenReport
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.partitions import Removed
from embedding_platform.platform import Platform
from embedding_platform.reconcile.distribution import Change
from embedding_platform.reconcile.drift import Drift
from embedding_platform.reconcile.duplicates import Repetition
from embedding_platform.reconcile.publication import Gate, PublicationReport
from embedding_platform.runs import run_sources
from embedding_platform.settings import QualitySettings
from embedding_platform.vectors.store import append
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.reconcile.small_lake import Lake, collect, write_image

QUALITY = QualitySettings()
STILL = Change(5, 0.5, 1.0, {}, {}, 0, [], True)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    for number in range(5):
        lake.write(f"n{number}", number)
    return lake


def verdicts_on(lake: Lake, change: Change = STILL, **changes: Any) -> dict[str, dg.AssetCheckResult]:
    _, _, report = lake.run()
    judged = replace(report.judged, **changes.pop("judged", {}))
    report = replace(report, judged=judged, **changes)
    repetition = Repetition(report.duplicates, report.segments, QUALITY.max_duplicate_share, 0)
    offending = checks.offending_contents(report, change, repetition, QUALITY)
    paths = {segment.content_hash: segment.path for segment in lake.live().segments_of(offending)}
    found = checks.of_embeddings(report, lake.space, QUALITY, None, change, repetition, paths, "one")
    return {str(verdict.check_name): verdict for verdict in found}


def rows_of(verdict: dg.AssetCheckResult) -> list[Mapping[str, Any]]:
    return [record.data for record in verdict.metadata["worst"].records]


def value(verdict: dg.AssetCheckResult, name: str) -> Any:
    return verdict.metadata[name].value


def test_sound_vectors_pass_every_check_with_their_thresholds(lake: Lake) -> None:
    found = verdicts_on(lake)
    assert [name for name, verdict in found.items() if not verdict.passed] == []
    assert not any("worst" in verdict.metadata or "what_to_do" in verdict.metadata for verdict in found.values())
    assert value(found["norm"], "expected") == "0.999 to 1.001"
    assert value(found["norm"], "most_allowed") == QUALITY.max_failed_share
    assert value(found["duplicates"], "most_allowed") == QUALITY.max_duplicate_share


@pytest.mark.parametrize("fault", ["dimension", "finite", "zero", "norm"])
def test_a_stored_vector_with_a_fault_is_named_by_its_file(lake: Lake, fault: str) -> None:
    lake.run()
    content = lake.live().sample().contents[0]
    verdict = verdicts_on(lake, judged={"faults": {fault: [content]}}, faults={fault: [content]})[fault]
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.ERROR
    ((path, named),) = [tuple(row.values()) for row in rows_of(verdict)]
    assert (lake.media / "one" / path).exists()
    assert named == content
    assert "Remove the shards" in value(verdict, "what_to_do")


def test_a_vector_that_was_left_out_is_named_by_its_file_and_reason(lake: Lake) -> None:
    reject = ("n0.txt", "/n0.txt", "c", "zero: the model gave the zero vector")
    verdict = verdicts_on(lake, rejected=[reject], faults={"zero": ["c"]})["zero"]
    assert not verdict.passed, "one of five is more than max_failed_share"
    assert rows_of(verdict) == [{"path": "n0.txt", "reason": reject[3]}]


def test_copies_are_named_with_how_many_there_are(lake: Lake) -> None:
    text = lake.path("n0").read_text()
    for number in range(9):
        lake.path(f"copy{number}").write_text(text)
    verdict = verdicts_on(lake)["duplicates"]
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    (row,) = rows_of(verdict)
    assert row["segments"] == "10"
    assert value(verdict, "accept_with") == "embedding-platform accept text/small --source one"
    assert (lake.media / "one" / row["content of"]).read_text() == text


def test_what_has_no_vector_is_named(lake: Lake) -> None:
    lake.run()
    content = lake.live().sample().contents[0]
    verdict = verdicts_on(lake, missing=[content])["count"]
    assert not verdict.passed
    assert value(verdict, "missing") == 1
    assert rows_of(verdict)[0]["content hash"] == content


def test_a_collapsed_model_is_shown_with_files_that_it_takes_for_one(lake: Lake) -> None:
    for number in range(5, 12):
        lake.write(f"n{number}", number)
    lake.encoder.spoil = lambda content, vector: np.ones_like(vector)
    verdict = verdicts_on(lake)["collapse"]
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.ERROR
    assert value(verdict, "distance") < value(verdict, "floor") == QUALITY.min_cosine_distance
    rows = rows_of(verdict)
    assert len(rows) == checks.MOST_NAMED
    for row in rows:
        assert row["content of"] != row["and of"]
        assert (lake.media / "one" / row["content of"]).exists()
        assert float(row["cosine"]) > 0.999


def test_a_moved_distribution_warns_with_figures_limits_and_files(lake: Lake) -> None:
    lake.run()
    content = lake.live().sample().contents[0]
    figures, limits = (
        {"shift": 0.3, "spread_change": 0.0, "norm_change": 0.0},
        dict.fromkeys(("shift", "spread_change", "norm_change"), 0.1),
    )
    moved = replace(STILL, figures=figures, limits=limits, accepted=7, outliers=[(content, -0.2)])
    verdict = verdicts_on(lake, moved)["distribution"]
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    assert (value(verdict, "shift"), value(verdict, "shift_limit"), value(verdict, "accepted_changes")) == (0.3, 0.1, 7)
    (row,) = rows_of(verdict)
    assert row["cosine"] == "-0.200"
    assert (lake.media / "one" / row["farthest from the former centre"]).exists()
    assert value(verdict, "accept_with") == "embedding-platform accept text/small --source one"


def test_a_spoilt_increment_warns_though_all_vectors_are_where_they_were(lake: Lake) -> None:
    lake.run()
    content = lake.live().sample().contents[0]
    figures, limits = {"shift": 0.001, "increment_alikeness": 0.99}, {"shift": 0.1, "increment_alikeness": 0.95}
    spoilt = replace(STILL, figures=figures, limits=limits, outliers=[(content, 0.2)], arrived=200)
    verdict = verdicts_on(lake, spoilt)["distribution"]
    assert (verdict.passed, verdict.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (value(verdict, "increment_vectors"), value(verdict, "increment_alikeness_limit")) == (200, 0.95)
    assert "increment alikeness 0.9900 of at most 0.9500" in str(verdict.description)
    assert len(rows_of(verdict)) == 1


def test_recall_that_falls_short_names_what_was_searched_with(lake: Lake, tmp_path: Path) -> None:
    lake.run()
    report = collect(connect(str(tmp_path / "lite")), lake)
    close_directory(str(tmp_path / "lite"))
    content = lake.live().sample().contents[0]
    short = replace(report, recall=replace(report.recall, at_10=0.5, worst=((content, 0.25),)))
    found = checks.of_collection(short, QUALITY, {content: "n0.txt"})
    (verdict,) = (verdict for verdict in found if verdict.check_name == "recall")
    assert not verdict.passed
    assert rows_of(verdict) == [{"searched with": "n0.txt", "recall": "0.250"}]
    assert "embedding-platform tune" in value(verdict, "what_to_do")
    assert {verdict.check_name for verdict in found} == {check.name for check in CHECKS["collection"]}
    sound = checks.of_collection(report, QUALITY, {})
    assert all(verdict.passed and "worst" not in verdict.metadata for verdict in sound)


def test_rows_that_others_touched_are_named_with_what_was_done(lake: Lake, tmp_path: Path) -> None:
    lake.run()
    report = collect(connect(str(tmp_path / "lite")), lake)
    close_directory(str(tmp_path / "lite"))
    drift = Drift(dropped=1, added=1, named=(("a", "dropped"), ("x", "added")))
    found = {one.check_name: one for one in checks.of_collection(replace(report, drift=drift), QUALITY, {})}
    assert not found["tampering"].passed
    assert found["tampering"].severity == dg.AssetCheckSeverity.WARN
    assert [tuple(row.values()) for row in rows_of(found["tampering"])] == [("a", "dropped"), ("x", "added")]
    assert "rows just written are found" in str(found["index"].description)
    idle = replace(report, sync=replace(report.sync, upserted=0))
    found = {one.check_name: one for one in checks.of_collection(idle, QUALITY, {})}
    assert "no row had to be written" in str(found["index"].description)


def test_names_in_tables_are_cut(lake: Lake) -> None:
    reject = ("x" * 5000, "/x", "v", "y" * 5000)
    (row,) = rows_of(checks.of_rejects([reject], 1, QUALITY))
    assert {len(cell) for cell in row.values()} == {checks.MOST_CELL_CHARACTERS}


def test_of_many_sources_that_are_behind_all_are_counted_and_some_named() -> None:
    behind = {f"s{number}": "not in new" for number in range(500)}
    report = PublicationReport("text_small", "new", "new", moved=False, behind=behind)
    (verdict, *_) = checks.of_published(report, Listings(0, {}), QUALITY)
    assert value(verdict, "behind") == 500
    assert "; 497 more sources" in str(verdict.description)
    assert len(rows_of(verdict)) == checks.MOST_EXAMPLES
    waiting = replace(report, previous="old", behind={}, waiting={"s1": "Milvus differs"}, unread=480)
    (verdict, *_) = checks.of_published(waiting, Listings(0, {}), QUALITY)
    assert "s1: Milvus differs, and 480 more were not looked at" in str(verdict.description)


def test_the_gate_the_alias_and_the_model_have_a_verdict_each() -> None:
    waiting = PublicationReport("text_small", "new", "old", moved=False, waiting={"letters": "2 items are not cut yet"})
    found = {verdict.check_name: verdict for verdict in checks.of_published(waiting, Listings(0, {}), QUALITY)}
    assert [name for name, verdict in found.items() if not verdict.passed] == ["gate", "alias"]
    assert rows_of(found["gate"]) == [{"source": "letters", "reason": "2 items are not cut yet"}]
    assert "points to old, and not to new" in str(found["alias"].description)
    assert found["golden"].description == "the model was not asked: the alias waits, see the check gate"
    behind = replace(waiting, previous="new", waiting={}, behind={"letters": "not in new"})
    found = {verdict.check_name: verdict for verdict in checks.of_published(behind, Listings(0, {}), QUALITY)}
    assert [name for name, verdict in found.items() if not verdict.passed] == ["gate"]
    assert found["golden"].description == "the model was not asked: the alias had not to move"
    moved = replace(waiting, waiting={}, moved=True, gate=Gate(5, 1.0, 1.0, 0.9999, None), removed=Removed(0, 0))
    found = {verdict.check_name: verdict for verdict in checks.of_published(moved, Listings(0, {}), QUALITY)}
    assert all(verdict.passed for verdict in found.values())
    assert value(found["golden"], "worst_cosine") == 0.9999
    again = replace(moved, gate=Gate(5, 1.0, 1.0, None, None))
    found = {verdict.check_name: verdict for verdict in checks.of_published(again, Listings(0, {}), QUALITY)}
    assert found["golden"].description == "the model passed here before, and was not asked again"


@pytest.mark.parametrize(
    ("golden", "told"),
    [
        (None, "no model was loaded"),
        (GoldenReport(0, None, True, 0.9999), "first vectors"),
        (GoldenReport(9, 0.99995, False, 0.9999), "worst cosine 0.999950 of 9 inputs"),
    ],
)
def test_the_model_has_a_verdict_whether_it_was_loaded_or_not(golden: GoldenReport | None, told: str) -> None:
    assert told in str(checks._of_golden("embeddings", golden).description)


def test_every_check_that_is_specified_has_a_verdict(lake: Lake) -> None:
    found = verdicts_on(lake)
    assert set(found) == {check.name for check in CHECKS["embeddings"]}
    report = PublicationReport("a", "b", None, moved=True)
    found_published = {verdict.check_name for verdict in checks.of_published(report, Listings(0, {}), QUALITY)}
    assert found_published == {check.name for check in CHECKS["published"]}


# Freshness


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets the clock to so many hours after the test began."""
    began = time.time()
    return lambda hours: monkeypatch.setattr(freshness.time, "time", lambda: began + hours * 3600)


def listed(instance: dg.DagsterInstance, *sources: str) -> None:
    instance.add_dynamic_partitions("text_sources", [*dict.fromkeys(sources)])
    for source in sources:
        event = dg.AssetMaterialization(asset_key=["text", "files"], partition=source)
        instance.report_runless_asset_event(event)


def freshness_of(instance: dg.DagsterInstance) -> dg.AssetCheckResult:
    report = PublicationReport("a", "b", None, moved=True)
    found = checks.of_published(report, last_listings(instance, "text"), QUALITY)
    (verdict,) = (verdict for verdict in found if verdict.check_name == "freshness")
    return verdict


def test_sources_that_were_just_listed_are_fresh_and_later_they_are_not(instance: dg.DagsterInstance, at) -> None:
    listed(instance, "letters", "notes")
    assert freshness_of(instance).passed
    at(35)
    assert freshness_of(instance).passed
    at(37)
    verdict = freshness_of(instance)
    assert not verdict.passed
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    assert value(verdict, "hours_of_oldest") == pytest.approx(37, abs=0.1)
    assert [row["source"] for row in rows_of(verdict)] == ["letters", "notes"]


def test_only_the_last_listing_of_a_source_counts(instance: dg.DagsterInstance, at) -> None:
    listed(instance, "letters", "notes", "letters")
    oldest = list(last_listings(instance, "text").oldest)
    assert oldest == ["notes", "letters"], "the one that was not listed for longest comes first"


def test_a_source_that_was_never_listed_is_not_fresh(instance: dg.DagsterInstance) -> None:
    listed(instance, "letters")
    instance.add_dynamic_partitions("text_sources", ["new"])
    verdict = freshness_of(instance)
    assert rows_of(verdict) == [{"source": "new", "listed": "never"}]


def test_a_source_that_is_gone_is_not_looked_at(instance: dg.DagsterInstance, at) -> None:
    listed(instance, "letters", "gone")
    instance.delete_dynamic_partition("text_sources", "gone")
    assert set(last_listings(instance, "text").oldest) == {"letters"}


def test_of_many_sources_only_the_oldest_are_looked_at(instance: dg.DagsterInstance, at) -> None:
    listed(instance, *(f"s{number}" for number in range(MOST_LOOKED_AT + 5)))
    listings = last_listings(instance, "text")
    assert listings.sources == MOST_LOOKED_AT + 5
    assert list(listings.oldest) == [f"s{number}" for number in range(MOST_LOOKED_AT)]
    at(99)
    assert str(freshness_of(instance).description).startswith(f"at least {MOST_LOOKED_AT} of")


def test_no_source_at_all_is_fresh(instance: dg.DagsterInstance) -> None:
    assert freshness_of(instance).passed


# In a run


@pytest.fixture
def images(tmp_path: Path) -> Platform:
    for number in range(3):
        write_image(tmp_path / "media" / "cats" / f"{number}.png", number)
    return open_platform(tmp_path, spaces=["image/resnet50"])


def run_of(platform: Platform, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions("image_sources", ["cats"])
    job = build_definitions(platform).resolve_job_def("image_sync")
    return job.execute_in_process(instance=instance, partition_key="cats", raise_on_error=False)


def test_a_failure_that_a_check_stands_for_shows_as_that_check(
    images: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_model(*_: object) -> None:
        numbers = {"compared": 9, "worst_cosine": 0.5, "floor": 0.9999}
        raise UnsoundError("other vectors than before; go back", "golden", numbers, ["image of 9x9: 0.500000"])

    monkeypatch.setattr(Platform, "encoder", other_model)
    result = run_of(images, instance)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.description == "other vectors than before; go back"
    (verdict,) = (found for found in result.get_asset_check_evaluations() if found.check_name == "golden")
    assert not verdict.passed
    assert verdict.partition == "cats"
    assert verdict.metadata["worst_cosine"].value == 0.5
    assert [record.data["worst"] for record in verdict.metadata["worst"].records] == ["image of 9x9: 0.500000"]
    assert "generations" in verdict.metadata["what_to_do"].value
    assert not [
        event for event in result.get_asset_materialization_events() if event.asset_key.path[-1] == "embeddings"
    ]
    (run,) = run_sources(images, instance, ["image"])
    assert run.failures == ("image/resnet50/embeddings: check golden failed: other vectors than before; go back",)


def test_vectors_that_moved_warn_and_are_not_accepted_by_the_run_that_brought_them(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    folder = tmp_path / "media" / "letters"
    folder.mkdir(parents=True)
    platform = open_platform(tmp_path, spaces=["text/minilm"])
    instance.add_dynamic_partitions("text_sources", ["letters"])
    job = build_definitions(platform).resolve_job_def("text_sync")
    wanted = [dg.AssetKey(path.split("/")) for path in ("text/files", "text/segments", "text/minilm/embeddings")]

    def run_over(sentence: str) -> dg.ExecuteInProcessResult:
        for number in range(12):
            (folder / f"{number}.txt").write_text(sentence.format(number))
        return job.execute_in_process(instance=instance, partition_key="letters", asset_selection=wanted)

    run_over("Letter number {} tells of ships that came to the harbour.")
    space = platform.space("text/minilm")
    url = layout.distribution_url(platform.store, space.key, platform.fingerprint(space), "letters")
    accepted = json.loads(storage.read_bytes(url) or b"")["accepted"]
    assert len(accepted) == 1
    result = run_over("Take {} eggs, butter and flour, and bake the cake for an hour.")
    assert result.success, "it is a warning"
    (verdict,) = (found for found in result.get_asset_check_evaluations() if found.check_name == "distribution")
    assert (verdict.passed, verdict.severity) == (False, dg.AssetCheckSeverity.WARN)
    named = {record.data["farthest from the former centre"] for record in verdict.metadata["worst"].records}
    assert named <= {path.name for path in folder.iterdir()}
    assert verdict.metadata["accept_with"].value == "embedding-platform accept text/minilm --source letters"
    kept = json.loads(storage.read_bytes(url) or b"")
    assert kept["accepted"] == accepted
    assert kept["waiting"]["data_version"] != accepted[0]["data_version"]


def test_a_stored_vector_that_is_spoilt_fails_its_check_while_others_are_embedded(
    images: Platform, instance: dg.DagsterInstance
) -> None:
    assert run_of(images, instance).success
    live = images.live(images.space("image/resnet50"), "cats")
    shards = storage.table_names(live.folder)
    (stored,) = live.vectors(index_of(pa.array(live.sample().contents)))
    spoilt = np.where(np.arange(len(stored.hashes))[:, None] == 0, np.nan, stored.vectors)
    append(live.folder, list(stored.hashes), spoilt, live.fingerprint, "run", "cpu")
    storage.remove_shards(live.folder, shards)
    write_image(Path(images.settings.media_url) / "cats" / "new.png", 9)

    result = run_of(images, instance)
    assert not result.success
    (verdict,) = (found for found in result.get_asset_check_evaluations() if found.check_name == "finite")
    assert not verdict.passed
    assert [record.data["content hash"] for record in verdict.metadata["worst"].records] == [stored.hashes[0]]
    (embeddings,) = (
        event.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == "embeddings"
    )
    assert embeddings.metadata["embedded"].value == 1
    assert embeddings.metadata["mean_norm"].value == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "error", [PlatformError("no disk; free some"), UnsoundError("not here; mend it", "no_check_of_files")]
)
def test_another_failure_is_one_line_and_no_check(
    images: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, error: PlatformError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("embedding_platform.platform.reconcile_files", fail)
    result = run_of(images, instance)
    (failure,) = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.description == str(error)
    assert result.get_asset_check_evaluations() == []
