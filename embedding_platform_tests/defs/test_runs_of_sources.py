"""What the runs of a source tell of it, whoever launched them."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.test_utils import create_run_for_test, freeze_time

from embedding_platform.defs.runs_of_sources import (
    CHANGED_TAG,
    LastRun,
    Met,
    ever_failed,
    last_run,
    media_changed_at,
    stopped_lately,
)

SUCCESS, FAILURE, CANCELED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED

SPACE = ("text/minilm/embeddings", "text/minilm/collection", "text/minilm/published")


def make_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, *assets: str, source: str = "letters") -> str:
    """A run that ended so: of the job of texts, or as the graph launches one over some assets."""
    run = create_run_for_test(
        instance,
        job_name=IMPLICIT_ASSET_JOB_NAME if assets else "text_sync",
        tags={"dagster/partition": source},
        asset_selection=frozenset(map(dg.AssetKey.from_user_string, assets)) if assets else None,
    )
    if status == FAILURE:
        instance.report_run_failed(run)
    elif status == CANCELED:
        instance.report_run_canceled(run)
    else:
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name)
        instance.report_dagster_event(event, run.run_id)
    return run.run_id


def test_a_source_without_runs_has_no_last_one(instance: dg.DagsterInstance) -> None:
    assert last_run(instance, "text", "letters") == LastRun()


@pytest.mark.parametrize(
    ("written", "told"),
    [("1764510000.125", 1764510000.125), ("1764510000", 1764510000.0), ("", None), ("lately", None), ("nan", None)],
)
def test_a_run_tells_when_its_media_changed_where_its_tag_is_a_time(written: str, told: float | None) -> None:
    assert media_changed_at(dg.DagsterRun("text_sync", tags={CHANGED_TAG: written})) == told
    assert media_changed_at(dg.DagsterRun("text_sync")) is None


@pytest.mark.parametrize(
    ("runs", "failed"),
    [
        ([(FAILURE,)], True),
        ([(FAILURE, *SPACE)], True),
        ([(FAILURE,), (SUCCESS,)], False),
        ([(FAILURE, *SPACE), (SUCCESS,)], False),
        ([(FAILURE, *SPACE), (SUCCESS, *SPACE)], False),
        ([(FAILURE, *SPACE), (SUCCESS, SPACE[0])], True),
        ([(FAILURE,), (SUCCESS, *SPACE)], True),
        ([(FAILURE,), (CANCELED,)], True),
        ([(SUCCESS,), (CANCELED,)], False),
        ([(FAILURE,), (SUCCESS,), (CANCELED,)], False),
        ([(SUCCESS,), (FAILURE, "image/clip/collection")], False),
    ],
    ids=[
        "of the job",
        "of the graph",
        "run again",
        "of the graph, then the job",
        "of the graph, launched again",
        "of the graph, then some of its assets",
        "of the job, then some of its assets",
        "then cancelled",
        "cancelled alone",
        "run again, then cancelled",
        "of another modality",
    ],
)
def test_a_failure_stands_until_a_run_over_as_much_succeeds(
    instance: dg.DagsterInstance, runs: list[tuple[dg.DagsterRunStatus, *tuple[str, ...]]], failed: bool
) -> None:
    made = [make_run(instance, status, *assets) for status, *assets in runs]
    assert last_run(instance, "text", "letters").failed == (made[0] if failed else "")


def test_the_newest_run_is_told_whoever_launched_it(instance: dg.DagsterInstance) -> None:
    make_run(instance, FAILURE)
    of_graph = make_run(instance, CANCELED, *SPACE)
    last = last_run(instance, "text", "letters")
    assert (last.run_id, last.stopped_at is not None) == (of_graph, True)
    of_job = make_run(instance, SUCCESS)
    last = last_run(instance, "text", "letters")
    assert (last.run_id, last.stopped_at) == (of_job, None)


def test_a_failure_is_never_forgotten_by_the_inventory(instance: dg.DagsterInstance) -> None:
    with freeze_time(datetime.now(UTC) - timedelta(days=90)):
        make_run(instance, FAILURE, *SPACE)
        make_run(instance, CANCELED, source="cancelled")
    assert ever_failed(instance, "text") == {"letters"}
    assert ever_failed(instance, "image") == set()
    assert stopped_lately(instance, "text", (datetime.now(UTC) - timedelta(days=1)).timestamp()) == set()
    assert stopped_lately(instance, "text", (datetime.now(UTC) - timedelta(days=91)).timestamp()) == {
        "letters",
        "cancelled",
    }


def test_a_round_reads_each_run_once_however_long_it_lasts(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get_run_records = dg.DagsterInstance.get_run_records

    def counted(self: dg.DagsterInstance, *given: object) -> object:
        records = get_run_records(self, *given)
        read.extend(record.dagster_run.tags["dagster/partition"] for record in records)
        return records

    monkeypatch.setattr(dg.DagsterInstance, "get_run_records", counted)
    night = datetime(2026, 1, 2, 2, tzinfo=UTC)
    met = Met("text", set())
    for hours, source in ((-1, "before"), (1, "a"), (2, "b")):
        with freeze_time(night + timedelta(hours=hours)):
            make_run(instance, SUCCESS, source=source)
    assert met.since(instance, night.timestamp()) == {"a", "b"}
    with freeze_time(night + timedelta(hours=3)):
        make_run(instance, SUCCESS, source="c")
    assert met.since(instance, night.timestamp()) == {"a", "b", "c"}
    assert met.since(instance, night.timestamp()) == {"a", "b", "c"}
    assert sorted(read) == ["a", "b", "b", "c", "c"], "but for the newest"
    tomorrow = night + timedelta(days=1)
    assert met.since(instance, tomorrow.timestamp()) == set()
