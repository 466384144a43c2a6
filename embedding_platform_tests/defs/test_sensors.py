"""The media sensors and the nightly schedules, called directly, and in a run of what they request."""

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from embedding_platform.definitions import build_definitions
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.runs import run_sources
from embedding_platform_tests.conftest import open_platform


@pytest.fixture
def texts(platform: Platform) -> Path:
    source = Path(platform.settings.media_url) / "letters"
    source.mkdir()
    (source / "one.txt").write_text("The harvest was good this year.")
    return source


def tick(platform: Platform, instance: dg.DagsterInstance, modality: str = "text") -> dg.SensorResult | dg.SkipReason:
    sensors = build_definitions(platform).sensors or []
    (sensor,) = [sensor for sensor in sensors if sensor.name == f"{modality}_media"]
    with dg.build_sensor_context(instance=instance, resources={"platform": platform}) as context:
        return sensor(context)


def requested(result: dg.SensorResult | dg.SkipReason) -> Mapping[str | None, str | None]:
    assert isinstance(result, dg.SensorResult), result
    return {request.partition_key: request.run_key for request in result.run_requests or []}


def test_a_new_source_gets_its_partition_and_a_run(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    result = tick(platform, instance)
    assert set(requested(result)) == {"letters"}
    (change,) = result.dynamic_partitions_requests
    assert isinstance(change, dg.AddDynamicPartitionsRequest)
    assert list(change.partition_keys) == ["letters"]


def test_only_the_modalities_that_a_source_holds_get_it(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    assert isinstance(tick(platform, instance, "image"), dg.SkipReason)


def test_one_difference_is_requested_once_and_a_later_one_again(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    first = requested(tick(platform, instance))
    assert requested(tick(platform, instance)) == first, "the same run key is launched once by Dagster"
    (texts / "two.txt").write_text("The winter came early.")
    assert requested(tick(platform, instance)) != first


def test_nothing_is_requested_while_nothing_changes(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    list(run_sources(platform, instance))
    assert isinstance(tick(platform, instance), dg.SkipReason)


def test_a_source_is_classified_again_only_when_its_files_or_its_listings_change(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    seen = Platform.seen

    def counted(self: Platform, modality: str, source: str) -> dict[str, str]:
        looked.append(source)
        return seen(self, modality, source)

    monkeypatch.setattr(Platform, "seen", counted)
    first = requested(tick(platform, instance))
    assert requested(tick(platform, instance)) == first
    assert looked == ["letters"]
    list(run_sources(platform, instance))
    looked.clear()
    for _ in range(3):
        assert isinstance(tick(platform, instance), dg.SkipReason)
    assert looked == ["letters"]
    (texts / "two.txt").write_text("The winter came early.")
    assert set(requested(tick(platform, instance))) == {"letters"}
    assert looked == ["letters"] * 2


@pytest.mark.parametrize("change", ["add", "edit", "remove", "touch"])
def test_each_kind_of_change_is_noticed(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, change: str
) -> None:
    (texts / "two.txt").write_text("The winter came early.")
    list(run_sources(platform, instance))
    if change == "add":
        (texts / "three.txt").write_text("The spring was late.")
    elif change == "edit":
        (texts / "two.txt").write_text("The winter came late, and stayed.")
    elif change == "remove":
        (texts / "two.txt").unlink()
    else:
        os.utime(texts / "two.txt", (1, 1))
    assert set(requested(tick(platform, instance))) == {"letters"}


def test_going_back_and_forth_is_requested_every_time(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    keys = []
    for turn in range(4):
        (texts / "one.txt").write_text("Fair." if turn % 2 else "Foul.")
        keys.append(requested(tick(platform, instance))["letters"])
        list(run_sources(platform, instance))
    assert len(set(keys)) == len(keys)


def test_a_vanished_source_is_emptied_and_then_loses_its_partition(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    (Path(platform.settings.media_url) / "other").mkdir()
    list(run_sources(platform, instance))
    shutil.rmtree(texts)
    assert set(requested(tick(platform, instance))) == {"letters"}
    job = build_definitions(platform).resolve_job_def("text_sync")
    assert job.execute_in_process(instance=instance, partition_key="letters").success
    (change,) = tick(platform, instance).dynamic_partitions_requests
    assert isinstance(change, dg.DeleteDynamicPartitionsRequest)
    assert list(change.partition_keys) == ["letters"]


def test_an_unreachable_media_root_is_a_reason_to_wait_and_to_remove_nothing(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    list(run_sources(platform, instance))
    shutil.rmtree(platform.settings.media_url)
    result = tick(platform, instance)
    assert isinstance(result, dg.SkipReason)
    assert "media_root" in (result.skip_message or "")


def test_a_large_source_that_is_found_empty_gets_no_run_but_a_line_that_says_why(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    guarded = open_platform(platform.settings.base, listing={"large_source": 1})
    reconcile_files(guarded.store, guarded.settings.media_url, "text", "letters")
    instance.add_dynamic_partitions("text_sources", ["letters"])
    shutil.rmtree(texts)
    texts.mkdir()
    other = texts.parent / "other"
    other.mkdir()
    (other / "one.txt").write_text("Another source goes on.")
    assert set(requested(tick(guarded, instance))) == {"other"}
    told = capfd.readouterr().err
    assert "WARNING - letters: source letters under" in told
    assert "listing.allow_emptied" in told
    assert guarded.sources()["text"] == ["letters", "other"]
    allowed = open_platform(platform.settings.base, listing={"large_source": 1, "allow_emptied": ["letters"]})
    assert set(requested(tick(allowed, instance))) == {"letters", "other"}


def fail_on_milvus(platform: Platform) -> Platform:
    """The same media and store, with a Milvus that nobody serves."""
    broken = {"uri": "http://127.0.0.1:9", "timeout_seconds": 1}
    return open_platform(platform.settings.base, milvus=broken)


def test_a_failed_run_is_requested_again_after_a_while_or_when_the_media_changed(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (request,) = tick(platform, instance).run_requests
    instance.add_dynamic_partitions("text_sources", ["letters"])
    job = build_definitions(fail_on_milvus(platform)).resolve_job_def("text_sync")
    result = job.execute_in_process(instance=instance, partition_key="letters", tags=request.tags, raise_on_error=False)
    assert not result.success
    assert isinstance(tick(platform, instance), dg.SkipReason), "not at once"
    with monkeypatch.context() as later:
        later.setattr("embedding_platform.defs.sensors.SECONDS_TO_RETRY", 0.0)
        assert set(requested(tick(platform, instance))) == {"letters"}
    (texts / "two.txt").write_text("The winter came early.")
    assert set(requested(tick(platform, instance))) == {"letters"}


def test_no_run_is_requested_beside_one_that_is_going(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    create_run_for_test(
        instance, job_name="text_sync", tags={"dagster/partition": "letters"}, status=dg.DagsterRunStatus.STARTED
    )
    assert isinstance(tick(platform, instance), dg.SkipReason)


def test_a_source_whose_emptying_failed_keeps_its_partition_until_nothing_is_left(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    (Path(platform.settings.media_url) / "other").mkdir()
    list(run_sources(platform, instance))
    shutil.rmtree(texts)
    (failed,) = run_sources(fail_on_milvus(platform), instance)
    assert not failed.succeeded
    assert instance.get_dynamic_partitions("text_sources") == ["letters"]
    (run,) = run_sources(platform, instance)
    assert run.of("collection", "deleted") == 1
    assert instance.get_dynamic_partitions("text_sources") == []


def test_every_night_each_source_is_reconciled(platform: Platform, texts: Path, instance: dg.DagsterInstance) -> None:
    list(run_sources(platform, instance))
    (schedule,) = [
        schedule for schedule in build_definitions(platform).schedules or [] if schedule.name == "text_nightly"
    ]
    night = datetime(2026, 1, 2, 2, tzinfo=UTC)
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=night) as context:
        requests = list(schedule(context))
    assert [request.partition_key for request in requests] == ["letters"]
