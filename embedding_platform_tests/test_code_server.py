"""The server of a code location: it knows its runs after a reload, and does not outlive the code that it serves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget

from embedding_platform import launcher
from embedding_platform_tests.milvus_server import ends
from embedding_platform_tests.running_platform import PATIENCE_SECONDS, wait_until

CODE = """
import time
from pathlib import Path
import dagster as dg

@dg.op
def waits():
    while not Path("go_on").exists():
        time.sleep(0.05)

@dg.job(executor_def=dg.in_process_executor)
def waiting():
    waits()

definitions = dg.Definitions(jobs=[waiting])
"""


@dataclass
class Served:
    """A server of the code above, in an instance with our launcher."""

    process: "subprocess.Popen[bytes]"
    workspace: WorkspaceProcessContext

    def children(self, *words: str) -> list[psutil.Process]:
        """The processes below the server's that have one of the words in their command lines."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for process in below:
            with suppress(psutil.NoSuchProcess):
                if any(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "small.py").write_text(CODE)
    place = tmp_path / "s"
    command = [sys.executable, "-m", "embedding_platform.code_server", "--socket", place, "--python-file", "small.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    launcher = {"module": "embedding_platform.launcher", "class": "MonitoredRunLauncher"}
    target = GrpcServerTarget(host="localhost", port=None, socket=str(place), location_name="small")
    with dg.instance_for_test(overrides={"run_launcher": launcher}) as instance:
        process = subprocess.Popen(
            [*map(str, command), "--log-level", "error"], cwd=tmp_path, env=environment, start_new_session=True
        )
        try:
            wait_until(place.exists, "the server listens", every=0.1)
            with WorkspaceProcessContext(instance, target) as workspace:
                yield Served(process, workspace)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_run_is_alive_after_a_reload_and_dead_once_its_server_is(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, context = served.workspace.instance, served.workspace.create_request_context()
    location = context.get_code_location("small")
    (repository,) = location.get_repositories().values()
    job = repository.get_full_job("waiting")
    run = create_run_for_test(
        instance, "waiting", remote_job_origin=job.get_remote_origin(), job_code_origin=job.get_python_origin()
    )
    instance.launch_run(run.run_id, context)

    def status() -> dg.DagsterRunStatus:
        return instance.get_run_by_id(run.run_id).status

    def health() -> WorkerStatus:
        return instance.run_launcher.check_run_worker_health(run).status

    wait_until(lambda: status() == dg.DagsterRunStatus.STARTED, "the run has started", every=0.1)
    (first,) = served.children("api grpc")
    assert health() == WorkerStatus.RUNNING
    location.client.reload_code(timeout=60)
    assert health() == WorkerStatus.RUNNING
    first.kill()
    assert ends(first.pid)
    monkeypatch.setattr(launcher, "SECONDS_TO_RETURN", 0.0)
    assert health() == WorkerStatus.FAILED
    assert served.process.poll() is None, "it holds newer code than that of the run"
    (tmp_path / "go_on").touch()
    wait_until(lambda: status() == dg.DagsterRunStatus.SUCCESS, "the orphan is through", every=0.1)


def test_it_ends_when_the_code_that_it_serves_does(served: Served) -> None:
    (code,) = served.children("api grpc")
    code.kill()
    assert served.process.wait(PATIENCE_SECONDS) == 1
