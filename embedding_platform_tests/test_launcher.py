"""The run launcher: Dagster loads it by dagster.yaml, and it tells dead runs from living ones."""

import os
import socket
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test

from embedding_platform import launcher
from embedding_platform.defs.jobs import BACKGROUND_TAG
from embedding_platform.launcher import PROCESS_TAG, MonitoredRunLauncher, process_tags

ROOT = Path(__file__).parents[1]


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The instance of the project's dagster.yaml, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(ROOT)) as opened:
        yield opened


def test_the_projects_instance_uses_it_with_run_monitoring(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, MonitoredRunLauncher)
    assert instance.run_monitoring_enabled
    assert instance.run_launcher.supports_check_run_worker_health
    assert instance.run_retries_enabled
    assert not instance.telemetry_enabled


def test_a_run_whose_process_died_before_it_began_is_noticed_within_a_minute(instance: dg.DagsterInstance) -> None:
    waits = instance.run_monitoring_start_timeout_seconds
    assert 30 < waits + instance.run_monitoring_poll_interval_seconds <= 60


def test_backfills_and_background_runs_leave_a_place_for_fresh_files(instance: dg.DagsterInstance) -> None:
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    limits = {limit["key"]: limit["limit"] for limit in queue.tag_concurrency_limits}
    assert limits["dagster/backfill"] + limits[BACKGROUND_TAG] < queue.max_concurrent_runs


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({}, WorkerStatus.UNKNOWN),
        (process_tags(), WorkerStatus.RUNNING),
        ({PROCESS_TAG: f"{socket.gethostname()}:{2**22 + 1}:0.0"}, WorkerStatus.FAILED),
        ({PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}:0.0"}, WorkerStatus.FAILED),
        ({PROCESS_TAG: f"{socket.gethostname()}:1:0.0"}, WorkerStatus.FAILED),
        ({PROCESS_TAG: "elsewhere:1:0.0"}, WorkerStatus.RUNNING),
        ({PROCESS_TAG: "no process"}, WorkerStatus.UNKNOWN),
    ],
    ids=[
        "of nobody",
        "of this process",
        "of a dead process",
        "of a number that this process has now",
        "of a number that another user's process has now",
        "of another machine",
        "of another version",
    ],
)
def test_a_dead_run_is_told_from_a_living_one(
    instance: dg.DagsterInstance, tags: dict[str, str], status: WorkerStatus
) -> None:
    run = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert instance.run_launcher.check_run_worker_health(run).status == status


def test_a_run_whose_code_server_is_away_is_dead_once_that_had_time_to_return(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {".dagster/grpc_info": '{"host": "localhost", "port": 1}'}
    run = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    monkeypatch.setattr(launcher, "SECONDS_TO_RETURN", 0.0)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
