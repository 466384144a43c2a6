"""The probes of what is published, and the weekly maintenance, as runs of their jobs."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from embedding_platform.definitions import build_definitions
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.reconcile.upkeep import FEWEST_SHARDS
from embedding_platform.runs import run_sources
from embedding_platform.storage import table_names
from embedding_platform_tests.conftest import open_platform

TEXTS = {f"{number}.txt": f"Letter number {number} tells of {number} ships." for number in range(8)}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, dg.DagsterInstance]]:
    """A platform with one published source, in as many shards as it has texts."""
    folder = tmp_path_factory.mktemp("indexed")
    source = folder / "media" / "letters"
    source.mkdir(parents=True)
    for name, text in TEXTS.items():
        (source / name).write_text(text)
    platform = open_platform(folder, spaces=["text/minilm"], batch={"chunk": 1, "text": 8})
    with dg.instance_for_test() as instance:
        (run,) = run_sources(platform, instance)
        assert run.succeeded
        yield platform, instance
    close_directory(platform.settings.milvus_uri)


def probed(platform: Platform, instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    result = build_definitions(platform).resolve_job_def("probe").execute_in_process(instance=instance)
    assert result.success
    found = result.get_asset_check_evaluations()
    assert {check.asset_key.to_user_string() for check in found} == {"text/minilm/published"}
    assert not any(check.blocking for check in found)
    return {check.check_name: check for check in found}


def test_what_is_published_is_searched_through_its_alias_against_exact_search(indexed) -> None:
    platform, instance = indexed
    checks = probed(platform, instance)
    assert all(check.passed for check in checks.values())
    recall = checks["probe_recall"].metadata
    assert recall["recall_at_10"].value == 1.0
    assert recall["searched"].value == "letters"
    assert recall["rows"].value == len(TEXTS)
    assert checks["probe_freshness"].metadata["behind"].value == 0
    assert checks["failed_sources"].metadata["failed"].value == 0


def test_rows_that_went_missing_since_are_met_by_the_next_probe(indexed) -> None:
    platform, instance = indexed
    target = platform.target(platform.space("text/minilm"))
    live = platform.live(platform.space("text/minilm"), "letters")
    platform.milvus.delete(target.collection, ids=list(live.versions.index[:4]))
    try:
        check = probed(platform, instance)["probe_recall"]
        assert not check.passed
        assert check.severity == dg.AssetCheckSeverity.WARN
        assert "recall@10 is" in (check.description or "")
        assert "embedding-platform tune" in check.metadata["what_to_do"].value
        (row,) = check.metadata["worst"].value.records
        assert row.data["source"] == "letters"
        assert float(row.data["recall@10"]) < 1.0
    finally:
        (run,) = run_sources(platform, instance)
    assert run.of("collection", "dropped_by_others") == 4
    assert probed(platform, instance)["probe_recall"].passed


def test_a_source_that_is_listed_and_not_placed_is_behind_and_stale_after_a_while(indexed) -> None:
    platform, instance = indexed
    late = Path(platform.settings.media_url) / "letters" / "late.txt"
    late.write_text("It came by the last ship.")
    reconcile_files(platform.store, platform.settings.media_url, "text", "letters")
    try:
        patient = probed(platform, instance)["probe_freshness"]
        assert patient.passed
        assert patient.metadata["behind"].value == 1
        strict = open_platform(platform.settings.base, spaces=["text/minilm"], alerts={"stale_seconds": 1e-3})
        stale = probed(strict, instance)["probe_freshness"]
        assert not stale.passed
        assert "letters for" in (stale.description or "")
        assert "no source is held whole" in (probed(platform, instance)["probe_recall"].description or "")
    finally:
        late.unlink()
        list(run_sources(platform, instance))


def cancel(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    instance.report_run_canceled(run)


def test_sources_whose_last_run_failed_are_listed_until_one_succeeds(indexed) -> None:
    platform, instance = indexed
    broken = open_platform(platform.settings.base, spaces=["text/minilm"], milvus={"uri": "http://127.0.0.1:9"})
    job = build_definitions(broken).resolve_job_def("text_sync")
    assert not job.execute_in_process(instance=instance, partition_key="letters", raise_on_error=False).success
    check = probed(platform, instance)["failed_sources"]
    assert not check.passed
    assert "embedding-platform run" in check.metadata["what_to_do"].value
    (row,) = check.metadata["worst"].value.records
    assert row.data["source"] == "letters"
    assert row.data["asset"] == "text/minilm/collection"
    assert "127.0.0.1:9" in row.data["reason"]
    cancel(instance)
    assert probed(platform, instance)["failed_sources"].metadata["failed"].value == 1, "nothing is mended by that"
    list(run_sources(platform, instance))
    assert probed(platform, instance)["failed_sources"].passed
    cancel(instance)
    assert probed(platform, instance)["failed_sources"].passed, "somebody did not want it to go on"


def test_the_modalitys_job_leaves_the_probes_to_their_own(indexed) -> None:
    platform, _ = indexed
    names = {node.name for node in build_definitions(platform).resolve_job_def("text_sync").nodes}
    assert "text_minilm_probe" not in names
    assert "text__minilm__published" in names


def maintained(platform: Platform, instance: dg.DagsterInstance) -> dict[str, dict[str, dg.MetadataValue]]:
    result = build_definitions(platform).resolve_job_def("maintenance").execute_in_process(instance=instance)
    assert result.success
    return {
        event.materialization.asset_key.to_user_string(): dict(event.materialization.metadata)
        for event in result.get_asset_materialization_events()
    }


def test_small_files_are_joined_and_nothing_is_embedded_for_it(indexed) -> None:
    platform, instance = indexed
    space = platform.space("text/minilm")
    folder = platform.live(space, "letters").folder
    assert len(table_names(folder)) >= max(FEWEST_SHARDS, len(TEXTS))
    before = platform.live(space, "letters").data_version
    compacted = maintained(platform, instance)["upkeep/compacted"]
    assert compacted["joined_shards"].value >= len(TEXTS)
    assert len(table_names(folder)) == 1
    assert platform.live(space, "letters").data_version == before
    (run,) = run_sources(platform, instance)
    assert run.did_nothing
    assert maintained(platform, instance)["upkeep/compacted"]["joined_shards"].value == 0


def test_what_may_be_pruned_is_reported_and_left_alone(indexed) -> None:
    platform, instance = indexed
    assert maintained(platform, instance)["upkeep/prunable"]["things"].value == 0
    kept = platform.target(platform.space("text/minilm")).collection
    later = open_platform(
        platform.settings.base,
        spaces=["text/minilm"],
        generations={"text/minilm": 1},
        retention={"collections": 0},
    )
    (run,) = run_sources(later, instance)
    assert run.succeeded
    for _ in range(2):
        report = maintained(later, instance)["upkeep/prunable"]
        rows = [record.data for record in report["prunable"].value.records]
        assert {row["kind"] for row in rows} == {"collection", "vectors", "notes"}
        assert kept in {row["name"] for row in rows}
        assert report["rows"].value == len(TEXTS)
