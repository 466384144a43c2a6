"""A real Milvus server for tests: started in an environment of its own, killed, and started again."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

URI_VARIABLE = "MILVUS_TEST_URI"
TOKEN_VARIABLE = "MILVUS_TEST_TOKEN"
"""Where tests find a server that runs already, and its token; then none is started."""

ROOT_TOKEN = "root:Milvus"

ENVIRONMENT = Path(__file__).parents[1] / ".venv-milvus"
"""Where `make test` installs the package `milvus`, which must not share our environment."""

START_SECONDS = 330.0


@dataclass
class MilvusServer:
    """One server: where it listens, its token, and where its data lie ("" if we did not start it).

    `variables` of its environment change its configuration.

    A server that was started here ends with this process, however that ends.
    """

    folder: str
    uri: str = ""
    token: str = ROOT_TOKEN
    pid: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    _keeper: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        """Start it on the data in its folder, at the address that it had before."""
        assert self._keeper is None, "it runs already"
        log = os.path.join(self.folder, "keeper.log")
        command = [environment_python(), "-P", str(Path(__file__).with_name("milvus_server_process.py")), self.folder]
        environment = {**_plain_environment(), **self.variables}
        with open(log, "ab") as log_file:
            self._keeper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log_file, env=environment
            )
        assert self._keeper.stdout is not None
        answered, _, _ = select.select([self._keeper.stdout], [], [], START_SECONDS)
        line = self._keeper.stdout.readline() if answered else b""
        if not line:
            self.stop()
            raise AssertionError(f"no Milvus server: {Path(log).read_text()[-500:]}; see {self.folder}/logs")
        said = json.loads(line)
        self.uri, self.pid = said["uri"], said["pid"]

    def kill(self) -> None:
        """SIGKILL the server itself, in the middle of whatever it does."""
        assert self.pid, "no server was started here"
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End the server; its data stay."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(timeout=START_SECONDS)
        self._keeper.stdout.close()
        self._keeper, self.pid = None, 0

    @property
    def storage(self) -> str:
        """A folder below the server's storage root, where it may import files from."""
        return os.path.join(self.folder, "data", "imports")


def environment_python() -> str:
    return str(ENVIRONMENT / "bin" / "python")


def why_no_server() -> str:
    """Why none can be started here, in one line; "" if one can."""
    if any(ENVIRONMENT.glob("lib/python*/site-packages/milvus/__init__.py")):
        return ""
    return f"{URI_VARIABLE} names no Milvus server, and {ENVIRONMENT.name} holds none (see make {ENVIRONMENT.name})"


def ends(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends in time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
    return True


def _plain_environment() -> dict[str, str]:
    """Ours without what points Python, or Milvus, at something of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MILVUS", "OMP_"))}
