"""`embedding-platform up`: it starts everything, says what is wrong beforehand, and loses nothing when it is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import text

from embedding_platform.runs import instance
from embedding_platform.up import _open_door, _write_note
from embedding_platform_tests.milvus_server import ends
from embedding_platform_tests.running_platform import PATIENCE_SECONDS, RunningPlatform, make_project, wait_until
from embedding_platform_tests.test_cli import call

FULL = 2
"""SQLite then syncs its log at each commit, so that a power cut takes back none that was acknowledged."""

PARTS = ["code location embedding_platform", "web server", "daemon"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """One `up` for the tests of this module, ended by one Ctrl-C that leaves nobody behind."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    platform = RunningPlatform(folder)
    platform.start()
    try:
        yield platform
    finally:
        everybody, sockets = platform.everybody(), platform.note()["sockets"]
        assert os.path.isdir(sockets)
        assert platform.interrupt() == 0
        assert all(ends(process.pid) for process in everybody)
        assert not (folder / ".embedding_platform" / "milvus.server.json").exists()
        assert (folder / ".dagster" / "up.json").read_text() == ""
        assert not os.path.exists(sockets)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningPlatform:
    """A project folder in which this process is."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return RunningPlatform(tmp_path)


@pytest.fixture(autouse=True)
def _no_home_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


@contextmanager
def searching(project: RunningPlatform) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A search page over the project: its process, and its address."""
    command = [sys.executable, "-m", "embedding_platform.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, cwd=project.folder, env=project.surroundings(), stdout=subprocess.PIPE, text=True
    ) as page:
        assert page.stdout is not None
        line = page.stdout.readline()
        assert line.startswith("search at http://"), line
        try:
            yield page, line.split()[2].rstrip(";")
        finally:
            page.terminate()


def asked(address: str, words: str) -> str:
    """What a search page answers, or "" while it cannot."""
    with suppress(urllib.error.HTTPError):
        return urllib.request.urlopen(f"{address}/api/search?words={words}", timeout=60).read().decode()
    return ""


def own_words(running: RunningPlatform) -> list[str]:
    return [line for line in running.log().splitlines() if line.startswith("embedding-platform: ")]


def test_all_parts_run_and_the_note_tells_where(running: RunningPlatform) -> None:
    assert list(running.parts()) == PARTS
    assert all(psutil.pid_exists(pid) for pid in [*running.parts().values(), running.milvus_pid()])
    assert running.note()["address"] == running.address
    assert running.note()["pid"] == running.process.pid
    assert running.answers()


def test_a_second_start_says_in_one_line_what_runs_and_changes_nothing(running: RunningPlatform) -> None:
    before, said = running.parts(), own_words(running)
    second = running.call("up", "--port", str(running.port))
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    for told in (running.address, f"(pid {running.process.pid})", *(f"{name} (pid {before[name]})" for name in PARTS)):
        assert told in second.stderr
    assert running.parts() == before
    assert own_words(running) == said
    assert running.answers()


@pytest.mark.long
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_killed_is_started_again_and_said_so(running: RunningPlatform, name: str) -> None:
    before = running.parts()
    left = psutil.Process(before[name]).children(recursive=True)
    os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: running.parts()[name] != before[name], f"{name} is started again")
    after = running.parts()
    assert {other: pid for other, pid in after.items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    told = f"{name} (pid {before[name]}) was killed by SIGKILL; started again as pid {after[name]}"
    wait_until(lambda: told in running.log(), "it is said")
    assert all(ends(process.pid) for process in left)
    wait_until(running.answers, "the web UI answers")


@pytest.mark.long
def test_a_milvus_lite_server_that_is_killed_is_started_again_and_said_so(running: RunningPlatform) -> None:
    before = running.milvus_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: running.milvus_pid() != before, "another serves")
    told = f"Milvus Lite server (pid {before}) ended with status -9; started again as pid {running.milvus_pid()}"
    wait_until(lambda: told in running.log(), "it is said")


@pytest.mark.long
def test_a_search_page_and_the_web_ui_serve_one_milvus_in_turn(project: RunningPlatform) -> None:
    project.write("letters", "bees.txt", "Bees dance to tell where the flowers are.")
    with searching(project) as (page, _):
        theirs = project.milvus_pid()
        project.start()
        try:
            assert project.milvus_pid() == theirs
            wait_until(lambda: "letters/bees.txt" in project.search("insects"), "it is found")
            page.terminate()
            assert page.wait(PATIENCE_SECONDS) == 0
            assert project.milvus_pid() != theirs
            assert "letters/bees.txt" in project.search("insects")
            project.write("letters", "storm.txt", "A storm tore the roof from the lighthouse.")
            wait_until(lambda: "letters/storm.txt" in project.search("a tempest"), "the next run writes to it too")
        finally:
            project.end()
    assert not project.milvus_note.exists()


@pytest.mark.long
def test_a_web_ui_starts_again_after_a_search_page_has_taken_its_milvus_over(project: RunningPlatform) -> None:
    project.write("letters", "bees.txt", "Bees dance to tell where the flowers are.")
    project.start()
    try:
        wait_until(lambda: "letters/bees.txt" in project.search("insects"), "it is found")
        with searching(project) as (_, address):
            assert project.interrupt() == 0
            wait_until(lambda: "bees.txt" in asked(address, "insects"), "the page serves its Milvus itself")
            theirs = project.milvus_pid()
            project.start()
            assert project.milvus_pid() == theirs
            assert "bees.txt" in asked(address, "insects")
    finally:
        project.end()


@pytest.mark.long
def test_what_dagster_writes_is_on_disk_when_it_says_so(running: RunningPlatform, monkeypatch) -> None:
    monkeypatch.chdir(running.folder)
    with instance() as dagster:
        run = create_run_for_test(dagster)
        connections = [
            dagster.run_storage.connect(),
            dagster.schedule_storage.connect(),
            dagster.event_log_storage.index_connection(),
            dagster.event_log_storage.run_connection(run.run_id),
        ]
        for connecting in connections:
            with connecting as connection:
                assert connection.execute(text("pragma journal_mode")).scalar() == "wal"
                assert connection.execute(text("pragma synchronous")).scalar() == FULL
        dagster.delete_run(run.run_id)


@pytest.mark.parametrize(
    ("host", "is_open"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)]
)
def test_a_web_ui_that_other_machines_reach_is_warned_of(host: str, is_open: bool) -> None:
    assert _open_door(host).startswith(f"host {host} lets other machines in") == is_open
    assert bool(_open_door(host)) == is_open


def test_a_taken_port_is_said_with_who_has_it_before_anything_is_started(project: RunningPlatform) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", project.port))
        listening.listen()
        told = call("up", "--port", str(project.port))
    assert (told.exit_code, told.output.count("\n")) == (2, 1), told.output
    assert f"port {project.port} of 127.0.0.1 is taken by " in told.output
    assert f"(pid {os.getpid()}); stop that, or choose another with --port" in told.output
    assert not (project.folder / ".embedding_platform").exists()
    assert not (project.folder / ".dagster" / "storage").exists()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("dagster.yaml", "no dagster.yaml in this folder; change to the project's folder"),
        ("workspace.yaml", "no workspace.yaml in this folder; change to the project's folder"),
    ],
)
def test_a_folder_that_is_no_project_gets_one_line(project: RunningPlatform, missing: str, said: str) -> None:
    (project.folder / missing).unlink()
    told = call("up")
    assert (told.exit_code, told.output.count("\n")) == (2, 1), told.output
    assert said in told.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("storage: {nosuch: {}}\n", "nosuch"),
        ("storage: [\n", "dagster.yaml"),
        ("storage: {sqlite: {base_dir: {env: NO_SUCH_VARIABLE}}}\n", "NO_SUCH_VARIABLE"),
    ],
    ids=["no storage", "no YAML", "no variable"],
)
def test_a_wrong_dagster_yaml_gets_one_line(project: RunningPlatform, content: str, said: str) -> None:
    (project.folder / "dagster.yaml").write_text(content)
    told = call("up", "--port", str(project.port))
    assert (told.exit_code, told.output.count("\n")) == (2, 1), told.output
    assert said in told.output
    assert "dagster.yaml names: " in told.output


def test_a_wrong_workspace_gets_one_line_and_leaves_nothing_running(project: RunningPlatform) -> None:
    (project.folder / "workspace.yaml").write_text("load_from: [{nosuch: 1}]\n")
    told = call("up", "--port", str(project.port))
    assert told.exit_code == 2
    assert "workspace.yaml is no workspace of Dagster" in told.output.splitlines()[-1]
    assert not (project.folder / ".embedding_platform" / "milvus.server.json").exists()
    assert (project.folder / ".dagster" / "up.json").read_text() == ""


@pytest.mark.parametrize("born", [0.0, None], ids=["reused pid", "dead pid"])
def test_a_note_of_a_process_that_is_gone_is_taken_over(project: RunningPlatform, born: float | None) -> None:
    pid = os.getpid() if born is not None else 2**22 + 1
    note = {
        "address": project.address,
        "pid": pid,
        "since": "yesterday",
        "folder": str(project.folder),
        "sockets": str(project.folder / "embedding-platform-x"),
        "parts": [["daemon", pid, 0.0]],
    }
    (project.folder / "embedding-platform-x").mkdir()
    (project.folder / ".dagster").mkdir()
    (project.folder / ".dagster" / "up.json").write_text(json.dumps(note))
    # Far enough to see that the note does not stop it, and no further.
    (project.folder / "dagster.yaml").write_text("storage: {nosuch: {}}\n")
    told = call("up", "--port", str(project.port)).output.splitlines()
    assert f"the start of yesterday (pid {pid}) ended without stopping; taking its place" in told[0]
    assert "nosuch" in told[1]
    assert len(told) == 2
    assert not (project.folder / "embedding-platform-x").exists()


@pytest.mark.parametrize("content", ['{"address": "http://127', "[]", '{"pid": 1}', '"a word"'])
def test_half_a_note_keeps_nobody_from_starting(project: RunningPlatform, content: str) -> None:
    (project.folder / ".dagster").mkdir()
    (project.folder / ".dagster" / "up.json").write_text(content)
    (project.folder / "dagster.yaml").write_text("storage: {nosuch: {}}\n")
    (told,) = call("up", "--port", str(project.port)).output.splitlines()
    assert "nosuch" in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_note_that_a_full_disk_does_not_take_stops_nothing() -> None:
    note = os.open("/dev/full", os.O_RDWR)
    _write_note(note, {"pid": 1}, [])
    os.close(note)


@pytest.mark.long
@pytest.mark.parametrize("killed", ["everything", "up alone"])
def test_a_run_that_was_killed_with_everything_else_is_failed_and_retried_by_the_next_start(
    project: RunningPlatform, killed: str
) -> None:
    letters = project.folder / "media" / "letters"
    letters.mkdir()
    for number in range(100):
        (letters / f"{number}.txt").write_text(f"Letter {number} tells of the sea and of number {number}. " * 30)
    (letters / "bees.txt").write_text("Bees dance to tell where the flowers are.")
    project.start()
    try:
        wait_until(lambda: _statuses() == ["STARTED"], "a run is going")
        wait_until(lambda: _is_embedding(), "it embeds")
        everybody = project.everybody()
        for process in everybody if killed == "everything" else everybody[:1]:
            process.kill()
        assert project.process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
        assert all(ends(process.pid) for process in everybody)

        project.start()
        wait_until(lambda: _statuses() == ["FAILURE", "SUCCESS"], "the retry has succeeded")
        assert re.search(r"the start of .* \(pid \d+\) ended without stopping; taking its place", project.log())
        assert project.call("status").returncode == 0
        assert "letters/bees.txt" in project.search("insects")
        assert project.call("trace", "letters/99.txt").returncode == 0
        with instance() as dagster:
            (retry, failed) = dagster.get_runs()
            assert retry.root_run_id == failed.run_id
            assert not list(dagster.event_log_storage.get_concurrency_run_ids())
    finally:
        project.end()


def _statuses() -> list[str]:
    """Of all runs, the first one first."""
    with instance() as dagster:
        return [run.status.value for run in reversed(dagster.get_runs())]


def _is_embedding() -> bool:
    time.sleep(0.2)
    with instance() as dagster:
        (run,) = dagster.get_runs()
        started = dagster.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
        return any((entry.step_key or "").endswith("embeddings") for entry in started)
