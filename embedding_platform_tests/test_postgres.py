"""Dagster's runs, events and schedules in a real PostgreSQL, by the block that dagster.yaml offers."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData
from dagster._core.test_utils import create_run_for_test
from dagster._serdes import serialize_value

from embedding_platform.launcher import PROCESS_TAG
from embedding_platform.milvus.connection import close_directory
from embedding_platform.runs import fail_dead_runs, instance, run_sources
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.postgres_server import PASSWORD, PostgresServer
from embedding_platform_tests.running_platform import ROOT, RunningPlatform, make_project, wait_until

VARIABLE = "DAGSTER_POSTGRES_URL"


def with_postgres(text: str) -> str:
    """dagster.yaml with its PostgreSQL block, word for word, in the place of the one for SQLite."""
    offered = re.search(r"^# storage:\n(?:#   .*\n)+", text, re.MULTILINE)
    assert offered is not None
    block = re.sub("^# ", "", offered[0], flags=re.MULTILINE)
    changed, count = re.subn(r"^storage:\n(?:  .*\n)+", block, text.replace(offered[0], ""), flags=re.MULTILINE)
    assert count == 1
    return changed


@pytest.fixture
def project(tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, this process in it, whose dagster.yaml names an empty database."""
    make_project(tmp_path)
    (tmp_path / "dagster.yaml").write_text(with_postgres((ROOT / "dagster.yaml").read_text()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv(VARIABLE, postgres.new_database())
    return tmp_path


@pytest.fixture
def dagster(project: Path) -> Iterator[dg.DagsterInstance]:
    with instance() as opened:
        yield opened


def test_runs_events_and_schedules_are_in_the_database_and_the_password_nowhere(dagster: dg.DagsterInstance) -> None:
    for storage in (dagster.run_storage, dagster.event_log_storage, dagster.schedule_storage):
        assert type(storage).__module__.startswith("dagster_postgres.")
    assert PASSWORD in os.environ[VARIABLE]
    # What the web UI shows, and what Dagster puts on the command lines of its processes.
    for shown in (dagster.info_str(), serialize_value(dagster.get_ref()), repr(dagster.run_storage)):
        assert VARIABLE in shown or "postgres" in shown.lower()
        assert PASSWORD not in shown


def test_a_source_goes_from_files_to_published_and_a_second_run_finds_it_done(
    dagster: dg.DagsterInstance, project: Path
) -> None:
    (project / "media" / "letters").mkdir()
    (project / "media" / "letters" / "storm.txt").write_text("A storm tore the roof from the lighthouse.")
    platform = open_platform(project, spaces=["text/minilm"])
    try:
        (first,) = run_sources(platform, dagster, ["text"])
        assert first.succeeded, first.failures
        assert first.of("collection", "upserted") == 1
        (second,) = run_sources(platform, dagster, ["text"])
        assert second.did_nothing
    finally:
        close_directory(platform.settings.milvus_uri)
    with instance() as again:
        assert [run.run_id for run in again.get_runs()] == [second.run_id, first.run_id]
        assert {run.tags["dagster/partition"] for run in again.get_runs()} == {"letters"}
        assert list(again.get_dynamic_partitions("text_sources")) == ["letters"]
        key = dg.AssetKey(["text", "minilm", "collection"])
        materialized = again.fetch_materializations(key, limit=10).records
        assert [record.run_id for record in materialized] == [second.run_id, first.run_id]
    assert not (project / ".dagster" / "storage").exists()


def test_a_sensor_that_was_switched_off_stays_off_with_its_cursor(dagster: dg.DagsterInstance) -> None:
    location = GrpcServerCodeLocationOrigin(host="localhost", port=4000, location_name="embedding_platform")
    origin = RemoteInstigatorOrigin(
        repository_origin=RemoteRepositoryOrigin(code_location_origin=location, repository_name="__repository__"),
        instigator_name="text_media",
    )
    data = SensorInstigatorData(cursor="seen: 7")
    dagster.add_instigator_state(InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.STOPPED, data))
    with instance() as again:
        (kept,) = again.all_instigator_state()
    assert (kept.name, kept.status) == ("text_media", InstigatorStatus.STOPPED)
    assert kept.instigator_data.cursor == "seen: 7"


def test_a_killed_run_frees_its_place_in_a_pool(dagster: dg.DagsterInstance) -> None:
    gone = {PROCESS_TAG: f"{socket.gethostname()}:{2**22 + 1}:0.0"}
    run = create_run_for_test(dagster, tags=gone, status=dg.DagsterRunStatus.STARTED)
    pools = dagster.event_log_storage
    pools.initialize_concurrency_limit_to_default("gpu")
    assert pools.claim_concurrency_slot("gpu", run.run_id, "text__minilm__embeddings").is_claimed
    assert not pools.claim_concurrency_slot("gpu", "next", "text__minilm__embeddings").is_claimed
    pools.free_concurrency_slots_for_run("next")
    fail_dead_runs(dagster)
    assert dagster.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert pools.claim_concurrency_slot("gpu", "next", "text__minilm__embeddings").is_claimed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: "", f'environment variable "{VARIABLE}"'),
        pytest.param(
            lambda url: url.replace(PASSWORD, "another-secret"),
            "password authentication failed",
            marks=pytest.mark.long,
        ),
        pytest.param(lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused", marks=pytest.mark.long),
        (lambda url: url.replace("+psycopg2", "+nosuch"), "nosuch"),
    ],
    ids=["no variable", "wrong password", "no server", "no driver"],
)
def test_a_database_that_cannot_be_reached_is_one_line_without_the_password(project, monkeypatch, change, said) -> None:
    changed = change(os.environ[VARIABLE])
    if changed:
        monkeypatch.setenv(VARIABLE, changed)
    else:
        monkeypatch.delenv(VARIABLE)
    told = RunningPlatform(project).call("run")
    assert told.returncode == 2, told.stderr
    line = told.stderr.splitlines()[-1]
    assert line.startswith("embedding-platform: Dagster cannot open what ")
    assert said in line
    assert PASSWORD not in told.stderr
    assert "another-secret" not in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.long
def test_up_runs_several_sources_at_once_and_retries_one_whose_process_was_killed(project: Path) -> None:
    several = re.sub(r"max_concurrent_runs: \d+", "max_concurrent_runs: 4", (project / "dagster.yaml").read_text())
    (project / "dagster.yaml").write_text(several)
    names = [f"letters{number}" for number in range(4)]
    for name in names:
        (project / "media" / name).mkdir()
        for number in range(40):
            content = f"Letter {number} of {name} tells of the sea. " * 30
            (project / "media" / name / f"{number}.txt").write_text(content)
    running = RunningPlatform(project)
    running.start()
    try:
        going: set[str] = set()
        with instance() as dagster:

            def several_are_going() -> bool:
                going.update(
                    run.run_id for run in dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
                )
                return len(going) >= 2

            wait_until(several_are_going, "several runs are going")
            run_id, worker = wait_until(lambda: _worker(dagster, going), "a worker tells its number")
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: dagster.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE, "it is failed")
            wait_until(lambda: _succeeded(dagster) == set(names), "every source has succeeded")
            assert dagster.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
            wait_until(lambda: not list(dagster.event_log_storage.get_concurrency_run_ids()), "the pools are free")
        assert "letters3/" in running.search("letter 7 of letters3")
    finally:
        running.end()
    assert PASSWORD not in running.log()
    plain = os.environ[VARIABLE].replace("+psycopg2", "")
    with psycopg2.connect(plain) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from job_ticks")
        assert cursor.fetchone()[0] > 0, "the sensors' ticks are in the database"
        cursor.execute("select event from event_logs union all select run_body from runs")
        assert not any(PASSWORD in row[0] for row in cursor.fetchall())


def _succeeded(dagster: dg.DagsterInstance) -> set[str]:
    runs = dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
    return {run.tags["dagster/partition"] for run in runs}


def _worker(dagster: dg.DagsterInstance, run_ids: set[str]) -> tuple[str, int] | None:
    """A run that is going, and the number of its process."""
    for run_id in run_ids:
        run = dagster.get_run_by_id(run_id)
        for entry in dagster.all_logs(run_id):
            started = re.search(r"Started process for run \(pid: (\d+)\)", entry.message)
            if started and run is not None and run.status == dg.DagsterRunStatus.STARTED:
                return run_id, int(started[1])
    return None
