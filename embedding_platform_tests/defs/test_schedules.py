"""The schedules, called directly: rounds that are bounded, fair and go on, and those that the settings add."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test, freeze_time

from embedding_platform.definitions import build_definitions
from embedding_platform.defs import schedules
from embedding_platform.defs.jobs import NIGHTLY, PRIORITY_TAG
from embedding_platform.platform import Platform
from embedding_platform_tests.conftest import open_platform

NIGHT = datetime(2026, 1, 2, 2, tzinfo=UTC)


def scheduled(platform: Platform) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.name: schedule for schedule in build_definitions(platform).schedules or []}


def tick(
    platform: Platform, instance: dg.DagsterInstance, name: str, at: datetime = NIGHT
) -> Sequence[dg.RunRequest] | str:
    """What the schedule requests, or why it requests nothing."""
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
        result = scheduled(platform)[name](context)
    if isinstance(result, dg.SkipReason):
        return result.skip_message or ""
    return [result] if isinstance(result, dg.RunRequest) else result


def queue(instance: dg.DagsterInstance, requests: Sequence[dg.RunRequest] | str, at: datetime) -> list[str]:
    """Make the requested runs, as the daemon does; returns their sources."""
    assert not isinstance(requests, str), requests
    with freeze_time(at):
        for request in requests:
            create_run_for_test(
                instance,
                job_name="text_sync",
                tags={**request.tags, "dagster/partition": request.partition_key},
                asset_selection=frozenset(request.asset_selection) if request.asset_selection else None,
            )
    return [str(request.partition_key) for request in requests]


def end_runs(instance: dg.DagsterInstance) -> None:
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED])):
        instance.report_run_canceled(run)


def test_there_are_three_usual_ones_and_all_of_them_run_without_a_click(platform: Platform) -> None:
    found = scheduled(platform)
    assert set(found) == {
        *(f"{modality}_nightly" for modality in platform.modalities),
        "hourly_probe",
        "weekly_maintenance",
    }
    assert {schedule.default_status for schedule in found.values()} == {dg.DefaultScheduleStatus.RUNNING}


def test_a_round_meets_each_source_once_a_few_at_a_time_those_first_that_were_listed_longest_ago(
    platform: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MOST_RUNS_WAITING", 2)
    instance.add_dynamic_partitions("text_sources", ["a", "b", "c", "d", "e"])
    for source in ("d", "a"):
        instance.report_runless_asset_event(dg.AssetMaterialization(["text", "files"], partition=source))
    met, at = [], NIGHT
    while not isinstance(requests := tick(platform, instance, "text_nightly", at), str):
        assert {request.tags[PRIORITY_TAG] for request in requests} == {str(NIGHTLY)}
        met.append(queue(instance, requests, at + timedelta(seconds=1)))
        told = tick(platform, instance, "text_nightly", at + timedelta(minutes=10))
        assert isinstance(told, str)
        assert "waiting or at work" in told or "each of 5 sources has had a run" in told
        end_runs(instance)
        at += timedelta(minutes=10)
    assert met == [["b", "c"], ["e", "d"], ["a"]]
    assert requests == "each of 5 sources has had a run since 2026-01-02 02:00 UTC"
    tomorrow = tick(platform, instance, "text_nightly", NIGHT + timedelta(days=1))
    assert [request.partition_key for request in tomorrow] == ["b", "c"]


def test_a_source_that_the_sensor_ran_since_is_not_run_again(platform: Platform, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("text_sources", ["early", "late", "by_hand"])
    # The daemon makes a run without a choice of assets, the command line one with an empty choice.
    for source, minutes, chosen in (("early", -1, None), ("late", 1, None), ("by_hand", 1, frozenset())):
        with freeze_time(NIGHT + timedelta(minutes=minutes)):
            create_run_for_test(
                instance, job_name="text_sync", tags={"dagster/partition": source}, asset_selection=chosen
            )
    requests = tick(platform, instance, "text_nightly", NIGHT + timedelta(minutes=10))
    assert [request.partition_key for request in requests] == ["early"]


def test_a_round_that_was_missed_begins_at_the_next_tick(platform: Platform, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("text_sources", ["letters"])
    (request,) = tick(platform, instance, "text_nightly", NIGHT + timedelta(hours=9))
    assert request.run_key == "text_nightly/2026-01-02T02:00:00+00:00/letters"


def test_without_sources_there_is_nothing_to_do(platform: Platform, instance: dg.DagsterInstance) -> None:
    assert tick(platform, instance, "text_nightly") == "no text sources yet"


def test_a_source_that_is_not_there_is_named_in_every_reason(platform: Platform, instance: dg.DagsterInstance) -> None:
    names = {"some": ["letters", "leters"], "none": ["leters"]}
    rounds = [
        {"name": name, "does": "reconcile", "cron": "0 2 * * *", "modalities": ["text"], "sources": sources}
        for name, sources in names.items()
    ]
    more = open_platform(platform.settings.base, schedules=rounds)
    told = "; no text source is called leters, as schedule {} names it"
    assert tick(more, instance, "text_none") == "no text sources yet" + told.format("none")
    instance.add_dynamic_partitions("text_sources", ["letters"])
    assert tick(more, instance, "text_none") == "no text sources chosen" + told.format("none")
    queue(instance, tick(more, instance, "text_some"), NIGHT + timedelta(seconds=1))
    met = tick(more, instance, "text_some", NIGHT + timedelta(minutes=10))
    assert met == "each of 1 sources has had a run since 2026-01-02 02:00 UTC" + told.format("some")


def test_settings_add_rounds_of_some_sources_and_probes_of_some_spaces(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    more = open_platform(
        platform.settings.base,
        timezone="Europe/Berlin",
        schedules=[
            {
                "name": "letters",
                "does": "reconcile",
                "cron": "0 * * * *",
                "modalities": ["text"],
                "sources": ["letters"],
            },
            {"name": "pictures", "does": "reconcile", "cron": "0 3 * * *", "spaces": ["image/clip"]},
            {"name": "clip", "does": "probe", "cron": "*/10 * * * *", "spaces": ["image/clip"]},
        ],
    )
    found = scheduled(more)
    assert set(found) - set(scheduled(platform)) == {"text_letters", "image_pictures", "clip_probe"}
    assert {schedule.execution_timezone for schedule in found.values()} == {"Europe/Berlin"}
    instance.add_dynamic_partitions("text_sources", ["letters", "notes"])
    instance.add_dynamic_partitions("image_sources", ["shapes"])
    (letters,) = tick(more, instance, "text_letters")
    assert letters.partition_key == "letters"
    assert letters.asset_selection is None, "the whole chain"
    (pictures,) = tick(more, instance, "image_pictures")
    assert {key.to_user_string() for key in pictures.asset_selection or ()} == {
        "image/files",
        "image/segments",
        "image/clip/embeddings",
        "image/clip/collection",
        "image/clip/published",
    }
    (clip,) = tick(more, instance, "clip_probe")
    assert {key.asset_key.to_user_string() for key in clip.asset_check_keys or ()} == {"image/clip/published"}


def test_a_run_over_another_space_does_not_count_for_a_round_of_this_one(
    platform: Platform, instance: dg.DagsterInstance
) -> None:
    one = {"name": "clip", "does": "reconcile", "cron": "0 2 * * *", "spaces": ["image/clip"]}
    other = {"name": "resnet", "does": "reconcile", "cron": "0 2 * * *", "spaces": ["image/resnet50"]}
    more = open_platform(platform.settings.base, schedules=[one, other])
    instance.add_dynamic_partitions("image_sources", ["shapes"])
    later = NIGHT + timedelta(minutes=10)
    with freeze_time(later):
        create_run_for_test(
            instance,
            job_name="image_sync",
            tags={"dagster/partition": "shapes"},
            asset_selection=frozenset(schedules._assets("image", [more.space("image/resnet50")])),
        )
    assert "each of 1 sources has had a run" in str(tick(more, instance, "image_resnet", later))
    for name in ("image_clip", "image_nightly"):
        assert len(tick(more, instance, name, later)) == 1


@pytest.mark.parametrize("name", ["hourly_probe", "weekly_maintenance"])
def test_one_tick_is_one_run(platform: Platform, instance: dg.DagsterInstance, name: str) -> None:
    (request,) = tick(platform, instance, name)
    (again,) = tick(platform, instance, name)
    assert request.run_key == again.run_key == NIGHT.isoformat()
