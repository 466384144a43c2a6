"""Failed runs told in one line each, in the log and to a webhook."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.plan.objects import StepSuccessData
from dagster._core.test_utils import create_run_for_test

from embedding_platform.definitions import build_definitions
from embedding_platform.defs.failures import Failure, failure_of
from embedding_platform.platform import Platform
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.test_alerts import SECRET, Webhook, mute, webhook

__all__ = ["mute", "webhook"]


def fail(platform: Platform, instance: dg.DagsterInstance, job: str = "image_sync") -> dg.DagsterRun:
    instance.add_dynamic_partitions(f"{job.split('_')[0]}_sources", ["shapes"])
    resolved = build_definitions(platform).resolve_job_def(job)
    result = resolved.execute_in_process(instance=instance, partition_key="shapes", raise_on_error=False)
    assert not result.success
    return result.dagster_run


@pytest.fixture
def away(tmp_path: Path) -> Platform:
    """A platform whose media root is not there."""
    return open_platform(tmp_path, spaces=["image/clip"])


def test_a_mistake_is_told_with_source_asset_reason_and_mend(away: Platform, instance: dg.DagsterInstance) -> None:
    failure = failure_of(instance, fail(away, instance))
    assert (failure.source, failure.asset) == ("shapes", "image/files")
    assert failure.reason == f"media_root {away.settings.media_url} is not there"
    assert failure.mend == "create the folder, or set media_root to where the media are"
    assert failure.line == (
        f"run {failure.run_id[:8]} of image_sync failed: source shapes image/files: {failure.reason}; {failure.mend}"
    )


def test_a_check_that_blocks_is_told_by_its_name(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    source = tmp_path / "media" / "shapes"
    source.mkdir(parents=True)
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    strict = open_platform(tmp_path, spaces=["image/clip"], quality={"max_rejected_share": 0})
    failure = failure_of(instance, fail(strict, instance))
    assert failure.asset == "image/files"
    assert failure.reason.startswith("check rejects failed: 1 of 1 rejected")


def test_a_fault_of_ours_is_told_in_one_line(
    away: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_platform.platform.reconcile_files", lambda *given: [][0])
    failure = failure_of(instance, fail(away, instance))
    assert failure.reason == "IndexError: list index out of range"
    assert "\n" not in failure.line


def test_names_and_reasons_that_hold_line_breaks_are_told_in_one_line() -> None:
    failure = Failure(
        "1b2c3d4e5f", "text_sync", "old\nletters", "text/files", "it holds\r\n no\u2028file", "add\tone", False
    )
    assert failure.line == (
        "run 1b2c3d4e of text_sync failed: source old letters text/files: it holds no file; add one"
    )


def test_a_run_whose_process_died_is_told_with_what_dagster_says(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    instance.report_run_failed(run, "the run's process is gone")
    dead = instance.get_run_by_id(run.run_id)
    assert dead is not None
    assert (
        "source letters: the run's process is gone; see the run's page, and run again"
        in failure_of(instance, dead).line
    )
    retried = failure_of(instance, dead.with_tags({**dead.tags, "dagster/will_retry": "true"}))
    assert retried.mend == "nothing to do: it is started again from this step"


def test_a_run_whose_process_was_killed_is_told_with_its_step_and_the_signal(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    for kind, step, message, data in (
        (dg.DagsterEventType.STEP_START, "text__files", "Started", None),
        (dg.DagsterEventType.STEP_SUCCESS, "text__files", "Finished", StepSuccessData(duration_ms=1.0)),
        (dg.DagsterEventType.STEP_START, "text__segments", "Started", None),
        (dg.DagsterEventType.ENGINE_EVENT, None, "It was terminated by signal 9 (SIGKILL).", EngineEventData()),
    ):
        event = DagsterEvent(kind.value, "text_sync", step_key=step, message=message, event_specific_data=data)
        instance.report_dagster_event(event, run.run_id)
    instance.report_run_failed(run)
    dead = instance.get_run_by_id(run.run_id)
    assert dead is not None
    failure = failure_of(instance, dead)
    assert (failure.asset, failure.reason) == ("text/segments", "It was terminated by signal 9 (SIGKILL).")


def test_a_cancelled_run_is_told_as_one(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, job_name="text_sync", tags={"dagster/partition": "letters"})
    instance.report_run_canceled(run)
    cancelled = instance.get_run_by_id(run.run_id)
    assert cancelled is not None
    assert "it was cancelled; nothing is lost" in failure_of(instance, cancelled).line


def tell(platform: Platform, instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> Failure:
    """Let the sensor tell of a failed run."""
    definitions = build_definitions(platform)
    (sensor,) = [sensor for sensor in definitions.sensors or [] if sensor.name == "run_failures"]
    run = fail(platform, instance)
    if tags:
        instance.add_run_tags(run.run_id, tags)
    run = instance.get_run_by_id(run.run_id)
    assert run is not None
    (event,) = [
        record.event_log_entry.dagster_event
        for record in instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    ]
    with dg.build_run_status_sensor_context(
        "run_failures", event, instance, run, resources={"platform": platform}
    ).for_run_failure() as context:
        sensor(context)
    return failure_of(instance, run)


def with_webhook(platform: Platform, address: str, seconds: float = 10.0) -> Platform:
    return open_platform(
        platform.settings.base, spaces=["image/clip"], alerts={"webhook": address, "timeout_seconds": seconds}
    )


def test_the_line_is_logged_and_posted(
    away: Platform, instance: dg.DagsterInstance, webhook: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = tell(with_webhook(away, webhook.address), instance)
    written = capfd.readouterr().err
    assert written.count(f"ERROR - {failure.line}") == 1
    assert SECRET not in written
    (taken,) = webhook.taken
    assert taken["text"] == failure.line
    assert (taken["source"], taken["asset"], taken["mend"]) == ("shapes", "image/files", failure.mend)
    assert taken["run_id"] == failure.run_id


def test_a_run_that_is_started_again_is_logged_alone(
    away: Platform, instance: dg.DagsterInstance, webhook: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = tell(with_webhook(away, webhook.address), instance, {"dagster/will_retry": "true"})
    assert f"ERROR - {failure.line}" in capfd.readouterr().err
    assert webhook.taken == []


def test_a_dead_webhook_is_one_warning_and_the_line_stays(
    away: Platform, instance: dg.DagsterInstance, mute: str, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = tell(with_webhook(away, mute, 0.3), instance)
    written = capfd.readouterr().err
    assert f"ERROR - {failure.line}" in written
    assert written.count("WARNING - the webhook did not take an alert: TimeoutError") == 1
    assert SECRET not in written
