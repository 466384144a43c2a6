"""The server of a code location: `python -m embedding_platform.code_server OPTION ...`.

Its options are those of `dagster code-server start`. Dagster's server keeps the loaded code in a
process of its own, which a reload replaces. Two things go wrong with it. After a reload it asks the
new process whether a run is alive, though the former one, which stays until its runs have ended,
started it: run monitoring then fails healthy runs. And when the process dies it goes on without
code until somebody reloads. This server asks the process that started the run, and ends when the
loaded code does, so that whoever watches over it starts it again.
"""

import os
import threading
from typing import Any

from dagster._cli.code_server import start_command
from dagster._core.remote_representation.grpc_server_registry import ServerRegistryEntry
from dagster._grpc import proxy_server
from dagster._grpc.__generated__ import dagster_api_pb2
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value, serialize_value

_SECONDS_BETWEEN_LOOKS = 1.0


class CodeServicer(proxy_server.DagsterProxyApiServicer):
    """Dagster's proxy before the process that holds the code, without the two faults."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        threading.Thread(target=self._end_with_the_code, daemon=True).start()

    def CanCancelExecution(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether the process of a run is alive, asked of the process that started it; an error if that is gone."""
        asked = deserialize_value(request.serialized_can_cancel_execution_request, CanCancelExecutionRequest)
        starter = self._run_clients.get(asked.run_id)
        if starter is None:
            # Another server than this one started it, and all that belonged to that one has ended with it.
            unknown = serialize_value(CanCancelExecutionResult(can_cancel=False))
            return dagster_api_pb2.CanCancelExecutionReply(serialized_can_cancel_execution_result=unknown)
        return starter._get_response("CanCancelExecution", request)

    def _end_with_the_code(self) -> None:
        while not self._shutdown_once_executions_finish_event.wait(_SECONDS_BETWEEN_LOOKS):
            # After a reload that failed there is none: the web UI shows why, and the next reload mends it.
            loaded = self._grpc_server_registry.get_grpc_server_entry(self._origin)
            if not isinstance(loaded, ServerRegistryEntry):
                continue
            status = loaded.process.server_process.poll()
            if status is not None and not self._shutdown_once_executions_finish_event.is_set():
                self._logger.error(f"the process that holds the code ended with status {status}; its server ends too")
                # To end in order would wait for runs that nobody can stop any more.
                os._exit(1)


def main() -> None:
    """Serve until told to stop."""
    proxy_server.DagsterProxyApiServicer = CodeServicer  # type: ignore[misc]
    start_command()


if __name__ == "__main__":
    main()
