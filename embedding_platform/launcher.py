"""The run launcher that notices runs whose process died.

Dagster's default launcher cannot tell, so a run whose worker was killed stays STARTED for
ever. This one asks the run's code server whether the worker is still there, so that run
monitoring fails a dead run within seconds and run retries take it up again.
"""

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value


class MonitoredRunLauncher(DefaultRunLauncher):
    """The default launcher with a health check of its runs."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Whether run monitoring may ask: yes."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started the run whether its process is alive."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, "the run names no code server")
        request = CanCancelExecutionRequest(run_id=run.run_id)
        try:
            reply = client.can_cancel_execution(request, timeout=5)
        except DagsterUserCodeUnreachableError as error:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"the run's code server is gone: {error}")
        if deserialize_value(reply, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process is gone")
