"""The run launcher that notices runs whose process died.

Dagster's default launcher cannot tell, so a run whose worker was killed stays STARTED for
ever. This one asks the run's code server (see `code_server`) whether the worker is still there, so
that run monitoring fails a dead run within seconds and run retries take it up again.
"""

import os
import socket
import time

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value
from grpc import RpcError, StatusCode

from embedding_platform.supervision import Running

PROCESS_TAG = "embedding_platform/process"

SECONDS_TO_RETURN = 30.0
"""How long a code server may be away before its runs are failed: Dagster tries only once to take a
failed run up, which cannot be done without the code."""


def process_tags() -> dict[str, str]:
    """Tags by which a run of the command line, which no launcher started, is known to be alive."""
    this = Running.of("run", os.getpid())
    return {PROCESS_TAG: f"{socket.gethostname()}:{this.pid}:{this.born}"}


def process_is_gone(run: DagsterRun) -> bool:
    """Whether a run of the command line was one of this machine's, and its process has ended."""
    return _health_of_process(run.tags.get(PROCESS_TAG, "")).status == WorkerStatus.FAILED


class MonitoredRunLauncher(DefaultRunLauncher):
    """The default launcher with a health check of its runs."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._unreachable_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Whether run monitoring may ask: yes."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started the run whether its process is alive.

        A server that does not answer is given `SECONDS_TO_RETURN`.
        """
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return _health_of_process(run.tags.get(PROCESS_TAG, ""))
        request = CanCancelExecutionRequest(run_id=run.run_id)
        try:
            reply = client.can_cancel_execution(request, timeout=5)
        except DagsterUserCodeUnreachableError as error:
            if isinstance(error.__cause__, RpcError) and error.__cause__.code() == StatusCode.DEADLINE_EXCEEDED:
                return CheckRunHealthResult(WorkerStatus.RUNNING, "the run's code server is busy")
            since = self._unreachable_since.setdefault(run.run_id, time.monotonic())
            if time.monotonic() - since < SECONDS_TO_RETURN:
                return CheckRunHealthResult(WorkerStatus.RUNNING, "the run's code server may be starting again")
            return CheckRunHealthResult(WorkerStatus.FAILED, f"the run's code server is gone: {error}")
        self._unreachable_since.pop(run.run_id, None)
        if deserialize_value(reply, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process is gone")


def _health_of_process(tag: str) -> CheckRunHealthResult:
    if tag.count(":") != 2:
        return CheckRunHealthResult(WorkerStatus.UNKNOWN, "the run names neither code server nor process")
    host, number, born = tag.split(":")
    if host != socket.gethostname():
        return CheckRunHealthResult(WorkerStatus.RUNNING, f"the run is on {host}, out of sight")
    if Running("run", int(number), float(born)).lives:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process is gone")
