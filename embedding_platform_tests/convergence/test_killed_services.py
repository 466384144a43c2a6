"""kill -9 of what runs beside each other: the process of a run, the daemon, the web server, the local Milvus."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from embedding_platform.defs.runs_of_sources import CHANGED_TAG
from embedding_platform_tests.running_platform import PATIENCE_SECONDS, RunningPlatform, running_project, wait_until

pytestmark = pytest.mark.long

FROM_EMBEDDINGS = {f"text__minilm__{stage}" for stage in ("embeddings", "collection", "published")}

UNFINISHED = ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]


@pytest.fixture(scope="module")
def web_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with running_project(tmp_path_factory.mktemp("project")) as running:
        yield running


def begun(web_ui: RunningPlatform, source: str, step: str) -> tuple[str, psutil.Process]:
    """The run that the sensor requests of a new source, and its process, once the step of it has begun."""
    web_ui.write(source, "note.txt", f"The {source} sailed at dawn with a cargo of lemons.")
    wanted = {"tags": [{"key": "dagster/partition", "value": source}]}
    run_id = wait_until(lambda: web_ui.runs(**wanted), "the sensor has requested a run")[-1]["runId"]
    worker = wait_until(lambda: web_ui.worker(run_id), "its process tells its number", every=0.1)

    def has_begun() -> bool:
        steps = {one["stepKey"]: one["status"] for one in web_ui.run(run_id)["stepStats"]}
        return steps.get(step) == "IN_PROGRESS"

    wait_until(has_begun, f"{step} has begun", every=0.1)
    return str(run_id), worker


def await_retry(web_ui: RunningPlatform, source: str, killed: str) -> dict[str, object]:
    """The run that takes up the one that was killed, once it has succeeded."""
    wanted = {"tags": [{"key": "dagster/partition", "value": source}]}

    def retried() -> list[str]:
        return [run["runId"] for run in web_ui.runs(**wanted) if run["parentRunId"] == killed]

    (run_id,) = wait_until(retried, "the run is taken up")
    return web_ui.await_run(run_id, "SUCCESS")


def claimed(web_ui: RunningPlatform) -> int:
    """Places in pools that some run holds."""
    pools = web_ui.ask("{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId } } } }")
    return sum(len(pool["claimedSlots"]) for pool in pools["concurrencyLimits"])


def assert_searchable_once(web_ui: RunningPlatform, source: str) -> None:
    wait_until(lambda: not web_ui.runs(statuses=UNFINISHED), "no run is left over")
    assert web_ui.stored("text/minilm", source) == 1
    assert f"{source}/note.txt" in web_ui.search(f"the {source} with lemons")
    assert claimed(web_ui) == 0


def test_a_run_whose_process_is_killed_is_taken_up_at_its_step(web_ui: RunningPlatform) -> None:
    run_id, worker = begun(web_ui, "brig", "text__minilm__embeddings")
    worker.kill()
    killed = web_ui.await_run(run_id, "FAILURE")
    assert {"key": "dagster/will_retry", "value": "true"} in killed["tags"]
    retry = await_retry(web_ui, "brig", run_id)
    changed_at = next(tag for tag in killed["tags"] if tag["key"] == CHANGED_TAG)
    assert changed_at in retry["tags"], "so that its wait holds that of the killed run"
    assert {step["stepKey"] for step in retry["stepStats"]} == FROM_EMBEDDINGS, "files and segments are not done again"
    assert_searchable_once(web_ui, "brig")
    told = f"run {run_id[:8]} of text_sync failed: source brig text/minilm/embeddings: "
    wait_until(lambda: told in web_ui.log(), "the failure is told in one line")
    line = next(line for line in web_ui.log().splitlines() if told in line)
    assert "terminated by signal 9" in line
    assert line.endswith("nothing to do: it is started again from this step")


def test_a_run_outlasts_that_its_code_is_loaded_anew(web_ui: RunningPlatform) -> None:
    run_id, worker = begun(web_ui, "ketch", "text__minilm__embeddings")
    worker.suspend()
    web_ui.reload()
    before = web_ui.log().count(f"Checking run {run_id}")
    wait_until(
        lambda: web_ui.log().count(f"Checking run {run_id}") > before + 2 or web_ui.run(run_id)["status"] != "STARTED",
        "run monitoring has looked thrice",
    )
    assert web_ui.run(run_id)["status"] == "STARTED"
    worker.resume()
    web_ui.await_run(run_id, "SUCCESS")
    assert len(web_ui.runs(tags=[{"key": "dagster/partition", "value": "ketch"}])) == 1, "nothing is retried beside it"
    assert_searchable_once(web_ui, "ketch")


@pytest.mark.parametrize("service", ["daemon", "web server", "code location embedding_platform"])
def test_a_run_survives_that_a_service_is_killed_and_started_again(web_ui: RunningPlatform, service: str) -> None:
    source = service.split()[0]
    begun(web_ui, source, "text__minilm__embeddings")
    os.kill(web_ui.parts()[service], signal.SIGKILL)
    wait_until(lambda: f"{source}/note.txt" in web_ui.search(f"the {source} with lemons"), "it is searchable")
    wait_until(web_ui.answers, "the web UI answers")
    assert_searchable_once(web_ui, source)


def test_a_run_is_taken_up_after_everything_died_at_once(web_ui: RunningPlatform) -> None:
    run_id, _ = begun(web_ui, "cutter", "text__minilm__embeddings")
    assert web_ui.process is not None
    everything = web_ui.everybody()
    for process in everything:
        process.suspend()
    for process in everything:
        process.kill()
    web_ui.process.wait(PATIENCE_SECONDS)
    assert web_ui.milvus_note.exists(), "nobody had the time to tidy up"
    web_ui.start()
    killed = web_ui.await_run(run_id, "FAILURE")
    assert {"key": "dagster/will_retry", "value": "true"} in killed["tags"]
    retry = await_retry(web_ui, "cutter", run_id)
    assert {step["stepKey"] for step in retry["stepStats"]} == FROM_EMBEDDINGS
    assert_searchable_once(web_ui, "cutter")


def test_a_local_milvus_that_is_killed_in_a_run_is_replaced_and_the_run_goes_on_or_is_made_again(
    web_ui: RunningPlatform,
) -> None:
    begun(web_ui, "yawl", "text__minilm__embeddings")
    pid = web_ui.milvus_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "yawl/note.txt" in web_ui.search("the yawl with lemons"), "it is searchable")
    assert web_ui.milvus_pid() != pid
    assert_searchable_once(web_ui, "yawl")
