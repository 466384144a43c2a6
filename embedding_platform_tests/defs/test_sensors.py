"""The media sensors, called directly, and in a run of what they request."""

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from fsspec.implementations.memory import MemoryFileSystem

from embedding_platform.definitions import build_definitions
from embedding_platform.defs import sensors
from embedding_platform.defs.jobs import FRESH, NIGHTLY, PRIORITY_TAG, REPAIR
from embedding_platform.defs.runs_of_sources import CHANGED_TAG, LastRun
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import classify_source, reconcile_files
from embedding_platform.runs import run_sources
from embedding_platform.settings import ListingSettings
from embedding_platform.sights import Sight
from embedding_platform.storage import file_system, write_bytes
from embedding_platform.watching import Look
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.running_platform import PATIENCE_SECONDS, wait_until

AT_ONCE = {"quiet_seconds": 0}
"""Settings of a listing that waits for no file to be quiet."""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "media").mkdir()
    opened = open_platform(tmp_path, spaces=["text/minilm", "image/clip"], listing=AT_ONCE)
    yield opened
    close_directory(opened.settings.milvus_uri)


@pytest.fixture
def texts(platform: Platform) -> Path:
    source = Path(platform.settings.media_url) / "letters"
    source.mkdir()
    (source / "one.txt").write_text("The harvest was good this year.")
    return source


class Ticks:
    """One sensor, tick after tick, with the cursor that each leaves to the next."""

    def __init__(self, platform: Platform, instance: dg.DagsterInstance, modality: str = "text") -> None:
        defined = build_definitions(platform).sensors or []
        (self.sensor,) = [sensor for sensor in defined if sensor.name == f"{modality}_media"]
        self.platform, self.instance = platform, instance
        self.cursor: str | None = None

    def __call__(self) -> dg.SensorResult | dg.SkipReason:
        resources = {"platform": self.platform}
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor, resources=resources) as context:
            result = self.sensor(context)
            self.cursor = result.cursor if isinstance(result, dg.SensorResult) else context.cursor
        return result


def tick(platform: Platform, instance: dg.DagsterInstance, modality: str = "text") -> dg.SensorResult | dg.SkipReason:
    return Ticks(platform, instance, modality)()


def reason(result: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason), result
    return result.skip_message or ""


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


def classified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that platforms classify from then on, one after the other."""
    looked: list[str] = []

    def counted(store: str, media_root: str, source: str, *others: Any) -> dict[str, dict[str, str]]:
        looked.append(source)
        return classify_source(store, media_root, source, *others)

    monkeypatch.setattr("embedding_platform.platform.classify_source", counted)
    return looked


def test_nothing_is_requested_while_nothing_changes(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    list(run_sources(platform, instance))
    assert isinstance(tick(platform, instance), dg.SkipReason)


def test_a_source_is_classified_again_only_when_its_files_or_its_listings_change(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = classified(monkeypatch)
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


def test_a_vanished_source_whose_failure_was_mended_loses_its_partition(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    (texts.parent / "other").mkdir()
    shutil.rmtree(texts)
    instance.add_dynamic_partitions("text_sources", ["letters"])
    instance.report_run_failed(
        create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    )
    assert "1 failed or cancelled, left for later" in reason(tick(platform, instance)), "not while it stands"
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
    guarded = open_platform(platform.settings.base, listing={"large_source": 1, **AT_ONCE})
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
    allowed = open_platform(
        platform.settings.base, listing={"large_source": 1, "allow_emptied": ["letters"], **AT_ONCE}
    )
    assert set(requested(tick(allowed, instance))) == {"letters", "other"}


def fail_on_milvus(platform: Platform) -> Platform:
    """The same media and store, with a Milvus that nobody serves."""
    broken = {"uri": "http://127.0.0.1:9", "timeout_seconds": 1}
    return open_platform(platform.settings.base, milvus=broken, listing=AT_ONCE)


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


def cancel(instance: dg.DagsterInstance, job: str = "text_sync", **tags: str) -> None:
    """A run of the letters that somebody cancels, as those of a backfill are."""
    run = create_run_for_test(instance, job_name=job, tags={"dagster/partition": "letters", **tags})
    instance.report_run_canceled(run)


def test_a_cancelled_run_is_no_reason_for_another(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    list(run_sources(platform, instance))
    cancel(instance)
    assert "1 as listed" in reason(tick(platform, instance))


def test_what_was_cancelled_stays_so_for_a_while_though_it_is_still_to_be_done(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.add_dynamic_partitions("text_sources", ["letters"])
    cancel(instance)
    assert "1 failed or cancelled, left for later" in reason(tick(platform, instance))
    with monkeypatch.context() as later:
        later.setattr(sensors, "SECONDS_TO_RETRY", 0.0)
        assert set(requested(tick(platform, instance))) == {"letters"}
    (texts / "two.txt").write_text("It came after that.")
    assert set(requested(tick(platform, instance))) == {"letters"}


def test_a_failure_is_not_mended_by_cancelling_the_next_run(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run_sources(platform, instance))
    instance.report_run_failed(
        create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    )
    cancel(instance)
    assert "1 failed or cancelled, left for later" in reason(tick(platform, instance))
    monkeypatch.setattr(sensors, "SECONDS_TO_RETRY", 0.0)
    (request,) = tick(platform, instance).run_requests
    assert request.tags["embedding_platform/background"] == "failed"


def test_no_run_is_requested_beside_one_that_is_going(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    create_run_for_test(
        instance, job_name="text_sync", tags={"dagster/partition": "letters"}, status=dg.DagsterRunStatus.STARTED
    )
    assert requested(tick(platform, instance)) == {}, "its partition alone is added"
    instance.add_dynamic_partitions("text_sources", ["letters"])
    assert "1 at work" in reason(tick(platform, instance))


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


def write_sources(platform: Platform, count: int) -> list[str]:
    names = [f"source{number:04}" for number in range(count)]
    for name in names:
        folder = Path(platform.settings.media_url) / name
        folder.mkdir()
        (folder / "note.txt").write_text(f"This is the note of {name}.")
    return names


def queue(instance: dg.DagsterInstance, result: dg.SensorResult | dg.SkipReason) -> list[dg.DagsterRun]:
    """Do with a tick's result what the daemon does: add the partitions, and make the runs."""
    assert isinstance(result, dg.SensorResult), result
    for change in result.dynamic_partitions_requests or []:
        assert isinstance(change, dg.AddDynamicPartitionsRequest)
        instance.add_dynamic_partitions("text_sources", list(change.partition_keys))
    return [
        create_run_for_test(
            instance,
            job_name="text_sync",
            tags={**request.tags, "dagster/partition": request.partition_key},
        )
        for request in result.run_requests or []
    ]


def test_a_thousand_new_sources_all_get_their_partition_and_the_first_of_them_a_run(
    platform: Platform,
    instance: dg.DagsterInstance,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensors, "SECONDS_TO_LOOK", PATIENCE_SECONDS)
    names = write_sources(platform, 1000)
    ticks = Ticks(platform, instance)
    runs = queue(instance, ticks())
    logged = "1000 of 1000 sources looked at: 1000 new; 50 runs requested, 950 left to later ticks"
    assert capfd.readouterr().err.count(f"INFO - {logged}\n") == 1
    assert instance.get_dynamic_partitions("text_sources") == names
    assert len(runs) == sensors.MOST_RUNS_WAITING
    assert len(ticks.cursor or "") < 1000
    told = reason(ticks())
    assert "1000 of 1000 sources looked at: 50 at work, 950 changed" in told
    assert "0 runs requested, 950 left to later ticks" in told


def test_names_that_keep_changing_keep_no_other_from_its_turn(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "MOST_RUNS_WAITING", 2)
    names = write_sources(platform, 6)
    ticks, order = Ticks(platform, instance), []
    for _ in range(4):
        runs = queue(instance, ticks())
        order += [run.tags["dagster/partition"] for run in runs]
        for run in runs:
            # Each has its run, whose listing is old again at once.
            source = run.tags["dagster/partition"]
            instance.report_runless_asset_event(dg.AssetMaterialization(["text", "files"], partition=source))
            instance.delete_run(run.run_id)
    assert order == [*names, *names[:2]]


def test_room_in_the_queue_bounds_what_a_tick_requests(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "MOST_RUNS_WAITING", 3)
    write_sources(platform, 5)
    ticks = Ticks(platform, instance)
    first, *_ = queue(instance, ticks())
    assert "5 of 5 sources looked at: 3 at work, 2 changed; 0 runs requested, 2 left to later ticks" in reason(ticks())
    instance.delete_run(first.run_id)
    assert len(requested(ticks())) == 1


def test_fresh_files_pass_a_run_that_waits_in_the_background(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    waiting = create_run_for_test(
        instance,
        job_name="text_sync",
        tags={"dagster/partition": "letters", PRIORITY_TAG: str(NIGHTLY)},
    )
    (run,) = queue(instance, tick(platform, instance))
    assert run.tags[PRIORITY_TAG] == str(FRESH)
    assert "1 at work" in reason(tick(platform, instance))
    for one in (run, waiting):
        instance.delete_run(one.run_id)
    begun = {"dagster/partition": "letters", PRIORITY_TAG: str(NIGHTLY)}
    create_run_for_test(instance, job_name="text_sync", tags=begun, status=dg.DagsterRunStatus.STARTED)
    assert "1 at work" in reason(tick(platform, instance)), "one that has begun is waited for"


def changed_at(result: dg.SensorResult | dg.SkipReason) -> str | None:
    """When the media changed that the one run is requested for, as its tag tells."""
    assert isinstance(result, dg.SensorResult), result
    (request,) = result.run_requests or []
    return request.tags.get(CHANGED_TAG)


def test_a_run_is_told_when_its_media_changed_and_tells_how_long_readers_waited_from_then_on(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    written = os.stat(texts / "one.txt").st_ctime
    result = tick(platform, instance)
    assert changed_at(result) == f"{written:.3f}"
    instance.add_dynamic_partitions("text_sources", ["letters"])
    job = build_definitions(platform).resolve_job_def("text_sync")
    (request,) = result.run_requests
    run = job.execute_in_process(instance=instance, partition_key="letters", tags=request.tags)
    (collection,) = run.asset_materializations_for_node("text__minilm__collection")
    from_request, from_change = (
        collection.metadata[name].value for name in ("seconds_to_searchable", "seconds_from_change_to_searchable")
    )
    assert from_change > from_request > 0
    (texts / "two.txt").write_text("It came by a clock that is ahead of ours.")
    ahead = {**request.tags, CHANGED_TAG: "99999999999.000"}
    run = job.execute_in_process(instance=instance, partition_key="letters", tags=ahead)
    (collection,) = run.asset_materializations_for_node("text__minilm__collection")
    assert "seconds_to_searchable" in collection.metadata
    assert "seconds_from_change_to_searchable" not in collection.metadata


def test_what_failed_has_waited_since_its_media_changed(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "SECONDS_TO_RETRY", 0.0)
    result = tick(platform, instance)
    instance.add_dynamic_partitions("text_sources", ["letters"])
    job = build_definitions(fail_on_milvus(platform)).resolve_job_def("text_sync")
    for priority in (FRESH, REPAIR):
        (request,) = result.run_requests
        assert request.tags[PRIORITY_TAG] == str(priority)
        assert changed_at(result) == f"{os.stat(texts / 'one.txt').st_ctime:.3f}"
        job.execute_in_process(instance=instance, partition_key="letters", tags=request.tags, raise_on_error=False)
        result = tick(platform, instance)
    reconcile_files(platform.store, platform.settings.media_url, "text", "letters")
    list(run_sources(platform, instance))
    replaced = open_platform(platform.settings.base, generations={"text/minilm": 1}, listing=AT_ONCE)
    result = tick(replaced, instance)
    assert requested(result).keys() == {"letters"}, "a new collection is asked for"
    assert changed_at(result) is None, "but no media have changed"


@pytest.mark.parametrize("change", ["moved here with its folder", "gone", "written"])
def test_files_that_are_older_than_a_look_that_did_not_meet_them_tell_no_change(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, tmp_path: Path, change: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old.txt").write_text("Written before anybody looked.")
    (texts / "two.txt").write_text("The winter came early.")
    list(run_sources(platform, instance))
    assert "1 as listed" in reason(tick(platform, instance))
    if change == "written":
        (texts / "three.txt").write_text("The spring was late.")
    elif change == "gone":
        (texts / "two.txt").unlink()
    else:
        (tmp_path / "elsewhere").rename(texts / "moved")
    assert (changed_at(tick(platform, instance)) is not None) == (change == "written")


@pytest.mark.parametrize(
    ("sight", "priority", "told"),
    [
        (Sight("state", True, True, 1e6, 1e6 - 5), FRESH, "999995.000"),
        (Sight("state", True, True, 1e6, 1e6 + 5), FRESH, ""),
        (Sight("state", True, True, 1e6, 1e6 - sensors.MOST_SECONDS_UNNOTICED - 1), FRESH, ""),
        (Sight("state", True, True, 1e6, 1e6 - 5, other_at=1e6 - 10), FRESH, "999995.000"),
        (Sight("state", True, True, 1e6, 1e6 - 5, other_at=1e6 - 4), FRESH, ""),
        (Sight("state", True, True, 1e6), FRESH, ""),
        (Sight("state", True, False, 1e6, 1e6 - 5), REPAIR, ""),
    ],
    ids=["young", "still to come", "old", "since the last look", "before the last look", "unknown", "as listed"],
)
def test_a_change_is_told_where_its_time_can_be_that_of_the_media(sight: Sight, priority: int, told: str) -> None:
    candidate = sensors._Candidate("letters", Look(sight, "", False, False), priority, "new")
    assert sensors._changed_at(candidate, LastRun()) == told
    failed = LastRun(state="state", changed_at="7.000", stopped_at=1e6)
    assert sensors._changed_at(candidate, failed) == "7.000", "over the same media"
    assert sensors._changed_at(candidate, replace(failed, state="other")) == told
    assert sensors._changed_at(candidate, replace(failed, stopped_at=None)) == told


def test_what_a_collection_lacks_is_requested_in_the_background(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    reconcile_files(platform.store, platform.settings.media_url, "text", "letters")
    (request,) = tick(platform, instance).run_requests
    assert request.tags[PRIORITY_TAG] == str(REPAIR)
    assert request.tags["embedding_platform/background"] == "not in a collection"


def test_a_run_of_the_web_ui_over_some_assets_of_a_source_is_waited_for(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    instance.add_dynamic_partitions("text_sources", ["letters"])
    create_run_for_test(
        instance,
        job_name="__ASSET_JOB",
        tags={"dagster/partition": "letters"},
        asset_selection=frozenset({dg.AssetKey(["text", "minilm", "embeddings"])}),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert "1 at work" in reason(tick(platform, instance))


def test_a_failed_run_of_the_graph_is_taken_up(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run_sources(platform, instance))
    run = create_run_for_test(
        instance,
        job_name="__ASSET_JOB",
        tags={"dagster/partition": "letters"},
        asset_selection=frozenset({dg.AssetKey(["text", "minilm", "collection"])}),
    )
    instance.report_run_failed(run)
    assert "1 failed or cancelled, left for later" in reason(tick(platform, instance))
    monkeypatch.setattr(sensors, "SECONDS_TO_RETRY", 0.0)
    assert set(requested(tick(platform, instance))) == {"letters"}


def test_a_failure_that_a_later_run_mended_is_no_reason_for_another(
    platform: Platform, texts: Path, instance: dg.DagsterInstance
) -> None:
    (failed,) = run_sources(fail_on_milvus(platform), instance)
    assert not failed.succeeded
    list(run_sources(platform, instance))
    assert "1 as listed" in reason(tick(platform, instance))


def test_a_source_that_was_just_written_is_left_to_be_quiet(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = open_platform(platform.settings.base, listing={"quiet_seconds": 60, "longest_wait_seconds": 600})
    clock = set_clock(monkeypatch, os.stat(texts / "one.txt").st_ctime + 1)
    ticks = Ticks(patient, instance)
    for seconds in (0, 30):
        clock.seconds += seconds
        result = ticks()
        assert requested(result) == {}, "its partition is there, its run comes when nothing has changed for a minute"
    clock.seconds += 30
    assert set(requested(ticks())) == {"letters"}


class Clock:
    """Stands in for the module `time`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def time(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Clock:
    """The clock of ticks and of looks, which stands still."""
    clock = Clock(seconds)
    for module in ("defs.sensors", "platform", "sights"):
        monkeypatch.setattr(f"embedding_platform.{module}.time", clock)
    return clock


def growing(seconds: float) -> Sight:
    """What is seen then of a source that changes all the time."""
    return Sight(str(seconds), True, True, looked_at=seconds, changed_at=seconds)


@pytest.mark.parametrize("loses_its_cursor", [False, True])
def test_a_copy_that_keeps_growing_waits_but_not_for_ever(
    platform: Platform,
    texts: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    loses_its_cursor: bool,
) -> None:
    patient = open_platform(platform.settings.base, listing={"quiet_seconds": 10, "longest_wait_seconds": 100})
    instance.add_dynamic_partitions("text_sources", ["letters"])
    clock = set_clock(monkeypatch, os.stat(texts / "one.txt").st_ctime)
    ticks, waited = Ticks(patient, instance), 0
    while not isinstance(ticks(), dg.SensorResult):
        assert json.loads(ticks.cursor or "")["waiting"]
        clock.seconds += 30
        waited += 30
        if loses_its_cursor and waited == 60:
            ticks.cursor = "{lost"
        # The clock of the sensor runs ahead of the file's, which is written just now.
        monkeypatch.setattr(Platform, "sight", lambda *_: growing(clock.seconds))
    assert waited == (180 if loses_its_cursor else 120)


def test_a_copy_that_keeps_growing_has_waited_though_the_queue_had_no_room_for_it(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = open_platform(platform.settings.base, listing={"quiet_seconds": 10, "longest_wait_seconds": 100})
    instance.add_dynamic_partitions("text_sources", ["letters"])
    clock = set_clock(monkeypatch, os.stat(texts / "one.txt").st_ctime)
    monkeypatch.setattr(Platform, "sight", lambda *_: growing(clock.seconds))
    monkeypatch.setattr(sensors, "MOST_RUNS_WAITING", 0)
    ticks = Ticks(patient, instance)
    assert "1 changing, left to be quiet" in reason(ticks())
    clock.seconds += 120
    assert "0 runs requested, 1 left to later ticks" in reason(ticks())
    monkeypatch.setattr(sensors, "MOST_RUNS_WAITING", 1)
    clock.seconds += 30
    assert set(requested(ticks())) == {"letters"}
    assert not json.loads(ticks.cursor or "")["waiting"]


def test_what_one_modality_has_looked_at_is_no_quieter_when_another_takes_it_later(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = open_platform(platform.settings.base, spaces=["text/minilm", "image/clip"], listing={"quiet_seconds": 10})
    instance.add_dynamic_partitions("text_sources", ["letters"])
    clock = set_clock(monkeypatch, os.stat(texts / "one.txt").st_ctime + 5)
    of_texts, of_images = Ticks(patient, instance), Ticks(patient, instance, "image")
    assert "1 as listed" in reason(of_images())
    # Copying went on after that look.
    clock.seconds += 7
    assert "1 changing, left to be quiet" in reason(of_texts())
    clock.seconds += 30
    assert set(requested(of_texts())) == {"letters"}


@dataclass(frozen=True)
class Bucket:
    """Media on an object store, which tells no time that copying does not carry over."""

    root: str

    def write(self, path: str, text: str) -> None:
        fs, folder = file_system(self.root)
        fs.pipe_file(f"{folder}/{path}", text.encode())

    def remove(self, path: str) -> None:
        fs, folder = file_system(self.root)
        fs.rm(f"{folder}/{path}", recursive=True)


@pytest.fixture
def bucket() -> Bucket:
    made = Bucket(f"memory://{uuid4().hex}/media")
    made.write("letters/one.txt", "The harvest was good this year.")
    made.write("notes/one.txt", "Sow in March.")
    return made


def test_on_an_object_store_media_that_come_change_and_go_are_noticed(
    tmp_path: Path, bucket: Bucket, instance: dg.DagsterInstance
) -> None:
    platform = open_platform(tmp_path, spaces=["text/minilm"], media_root=bucket.root, listing=AT_ONCE)
    ticks = Ticks(platform, instance)
    assert set(requested(ticks())) == {"letters", "notes"}
    list(run_sources(platform, instance))
    assert "2 as listed" in reason(ticks())
    for path, text in (("two.txt", "The winter came early."), ("one.txt", "The harvest was poor this year.")):
        bucket.write(f"letters/{path}", text)
        assert set(requested(ticks())) == {"letters"}, path
        list(run_sources(platform, instance, sources=["letters"]))
        assert "2 as listed" in reason(ticks())
    bucket.remove("letters")
    assert set(requested(ticks())) == {"letters"}
    job = build_definitions(platform).resolve_job_def("text_sync")
    assert job.execute_in_process(instance=instance, partition_key="letters").success
    (change,) = ticks().dynamic_partitions_requests
    assert isinstance(change, dg.DeleteDynamicPartitionsRequest)
    assert list(change.partition_keys) == ["letters"]
    close_directory(platform.settings.milvus_uri)


def test_on_an_object_store_a_source_is_quiet_when_it_looks_the_same_for_long(
    tmp_path: Path, bucket: Bucket, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {"quiet_seconds": 60, "longest_wait_seconds": 600}
    platform = open_platform(tmp_path, spaces=["text/minilm"], media_root=bucket.root, listing=listing)
    instance.add_dynamic_partitions("text_sources", ["letters", "notes"])
    clock = set_clock(monkeypatch, 1_800_000_000.0)
    ticks = Ticks(platform, instance)
    assert "2 changing, left to be quiet" in reason(ticks())
    clock.seconds += 30
    bucket.write("letters/two.txt", "It is still being copied.")
    assert "2 changing, left to be quiet" in reason(ticks())
    for source in ("notes", "letters"):
        clock.seconds += 30
        (run,) = queue(instance, ticks())
        assert run.tags["dagster/partition"] == source


def look(state: str = "state", changed_at: float | None = None) -> Look:
    return Look(Sight(state, True, True, 1000.0, changed_at), "", False, False)


PATIENT = ListingSettings(quiet_seconds=10, longest_wait_seconds=100)


@pytest.mark.parametrize(
    ("met", "before", "waits"),
    [
        (look(changed_at=995), None, True),
        (look(changed_at=985), None, False),
        (look(changed_at=985), sensors._Waiting("another", 999, 999), False),
        (look(changed_at=2000), None, True),
        (look(changed_at=2000), sensors._Waiting("state", 985, 985), False),
        (look(), None, True),
        (look(), sensors._Waiting("state", 995, 950), True),
        (look(), sensors._Waiting("state", 985, 950), False),
        (look(), sensors._Waiting("another", 985, 950), True),
        (look(), sensors._Waiting("another", 985, 899), False),
        (look(), sensors._Waiting("state", 2000, 2000), True),
    ],
    ids=[
        "written just now",
        "quiet",
        "quiet, seen changing before",
        "of a clock ahead of ours",
        "of a clock ahead of ours, unchanged for long",
        "of no known time",
        "unchanged, but not for long",
        "unchanged for long",
        "changed since",
        "always changing",
        "before the clock was set back",
    ],
)
def test_a_source_is_quiet_when_its_files_are_old_or_look_the_same_for_long(
    met: Look, before: "sensors._Waiting | None", waits: bool
) -> None:
    assert (sensors._waiting(met, before, PATIENT) is not None) == waits
    assert sensors._waiting(met, before, ListingSettings(quiet_seconds=0)) is None


def test_a_cursor_stays_small_however_many_sources_wait() -> None:
    waiting = {f"{number:012}": sensors._Waiting("0" * 12, number, number) for number in range(5000)}
    written = sensors._Cursor(waiting, told="").written()
    assert len(written) < 20_000
    kept = sensors._Cursor.read(written).waiting
    assert kept == dict(list(waiting.items())[: sensors.MOST_REMEMBERED]), "those that wait longest"


def test_what_waits_is_remembered_over_ticks_that_did_not_look_at_it() -> None:
    waiting = {
        sensors._short("away"): sensors._Waiting("0" * 12, 900, 900),
        sensors._short("met"): sensors._Waiting("0" * 12, 900, 900),
        sensors._short("old"): sensors._Waiting("0" * 12, 900, 900 - sensors.SECONDS_OF_MEMORY),
    }
    carried = sensors._carried(sensors._Cursor(waiting), {"met": look()}, 1000.0)
    assert set(carried) == {sensors._short("away")}


@pytest.mark.parametrize(
    "written", [None, "", "{lost", "[]", "7", '{"waiting": {"a": 1}}', '{"waiting": {"a": [1, "b", 2]}}']
)
def test_a_lost_cursor_is_an_empty_one(written: str | None) -> None:
    assert sensors._Cursor.read(written) == sensors._Cursor()


def test_a_source_that_takes_long_to_look_at_holds_up_no_tick_and_no_source_before_it(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (texts.parent / "slow").mkdir()
    (texts.parent / "slow" / "one.txt").write_text("On a disk that takes its time.")
    is_asked, answers, sight = threading.Event(), threading.Event(), Platform.sight

    def slow(self: Platform, modality: str, source: str) -> Sight:
        if source == "slow":
            is_asked.set()
            answers.wait(PATIENCE_SECONDS)
        return sight(self, modality, source)

    monkeypatch.setattr(Platform, "sight", slow)
    monkeypatch.setattr(sensors, "SECONDS_TO_LOOK", 0.1)
    ticks = Ticks(platform, instance)

    def requesting() -> dg.SensorResult | None:
        result = ticks()
        return result if isinstance(result, dg.SensorResult) else None

    (run,) = queue(instance, wait_until(requesting, "the letters are looked at"))
    assert run.tags["dagster/partition"] == "letters"
    assert is_asked.wait(PATIENCE_SECONDS)
    assert "1 of 2 sources looked at: nothing to tell; still looking, now at slow" in reason(ticks())
    # That its run has ended makes an old look no new reason.
    instance.delete_run(run.run_id)
    answers.set()
    monkeypatch.setattr(sensors, "SECONDS_TO_LOOK", 60.0)
    assert set(requested(ticks())) == {"slow"}


def test_a_fault_while_looking_fails_the_tick_and_not_the_next_one(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = Ticks(platform, instance)
    with monkeypatch.context() as broken:
        broken.setattr(threading, "excepthook", lambda told: None)
        broken.setattr(Platform, "sight", lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="text source letters broke off"):
            ticks()
    assert set(requested(ticks())) == {"letters"}


def test_a_problem_that_stands_is_logged_once_and_stays_in_the_reason(
    platform: Platform, texts: Path, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    guarded = open_platform(platform.settings.base, listing={"large_source": 1, **AT_ONCE})
    reconcile_files(guarded.store, guarded.settings.media_url, "text", "letters")
    (texts / "one.txt").unlink()
    ticks = Ticks(guarded, instance)
    for _ in range(3):
        assert "1 not to be read; letters: source letters under" in reason(ticks())
    assert capfd.readouterr().err.count("WARNING - letters: source letters under") == 1


@pytest.fixture(params=["folder", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of media of two sources, one of which has a folder of its own."""
    root = str(tmp_path / "lake") if request.param == "folder" else f"memory://{uuid4().hex}/lake"
    for path in ("letters/one.txt", "letters/old/two.txt", "notes/one.txt"):
        write_bytes(f"{root}/{path}", b"Sow in March.")
    return root


def listed(monkeypatch: pytest.MonkeyPatch, root: str) -> list[str]:
    """The folders under a root that are listed from then on, one after the other, relative to it."""
    _, top = file_system(root)
    found: list[str] = []
    scan, ls, find = os.scandir, MemoryFileSystem.ls, MemoryFileSystem.find

    def told(path: Any) -> None:
        if f"{path}/".startswith(f"{top}/"):
            found.append(str(path)[len(top) + 1 :])

    def counted_scan(path: Any = ".") -> Any:
        told(path)
        return scan(path)

    def counted_ls(self: MemoryFileSystem, path: str, *others: Any, **named: Any) -> Any:
        told(self._strip_protocol(path))
        return ls(self, path, *others, **named)

    def counted_find(self: MemoryFileSystem, path: str, *others: Any, **named: Any) -> Any:
        told(self._strip_protocol(path))
        return find(self, path, *others, **named)

    monkeypatch.setattr(os, "scandir", counted_scan)
    monkeypatch.setattr(MemoryFileSystem, "ls", counted_ls)
    monkeypatch.setattr(MemoryFileSystem, "find", counted_find)
    return found


def test_ticks_of_all_modalities_list_and_classify_each_source_once_between_them(
    tmp_path: Path, lake: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = open_platform(tmp_path, media_root=lake, listing=AT_ONCE)
    assert len(platform.modalities) == 5
    sensors_of_all = [Ticks(platform, instance, modality) for modality in platform.modalities]
    walked, looked = listed(monkeypatch, lake), classified(monkeypatch)
    # A bucket lists at once all that is below a source.
    letters = ["letters"] if "://" in lake else ["letters", "letters/old"]
    folders = ["", *letters, "notes"]

    def ticks_of_all(*changed: str) -> list[str]:
        """Tick all sensors once, and tell for which sources a run of texts is requested."""
        results = {ticks.sensor.name: ticks() for ticks in sensors_of_all}
        assert sorted(walked) == folders
        assert sorted(looked) == sorted(changed)
        walked.clear()
        looked.clear()
        return sorted(str(source) for source in requested(results["text_media"]))

    assert ticks_of_all("letters", "notes") == ["letters", "notes"]
    assert ticks_of_all() == ["letters", "notes"], "nothing is read of what is as it was"
    write_bytes(f"{lake}/notes/two.txt", b"Reap in August.")
    assert ticks_of_all("notes") == ["letters", "notes"]
    reconcile_files(platform.store, lake, "text", "notes")
    walked.clear()
    assert ticks_of_all("notes") == ["letters", "notes"], "it is listed, and in no collection"

    # A run replaces a listing between the ticks of one round: its source is looked at once more.
    first, *others = sensors_of_all
    first()
    reconcile_files(platform.store, lake, "text", "letters")
    walked.clear()
    for ticks in others:
        ticks()
    assert sorted(walked) == letters
    assert looked == ["letters"]

    # What serves one platform serves no other in the process.
    walked.clear()
    tick(open_platform(tmp_path, media_root=lake, listing=AT_ONCE), instance)
    assert sorted(walked) == folders
