"""`embedding-platform up` in a project folder of a test's own: started, asked, killed, and started again."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]

PATIENCE_SECONDS = 240.0


def make_project(folder: Path, **settings: str) -> None:
    """The files of a project that keeps one small text space, and `settings` as further lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    lines = {"spaces": "[text/minilm]", "sensor_seconds": "5", **settings}
    (folder / "embedding_platform.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    (folder / "media").mkdir(exist_ok=True)


@dataclass
class RunningPlatform:
    """One `up`; its log gathers what all starts said."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it says that the web UI is there."""
        before = self.log().count("web UI: ")
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.surroundings(), stdout=log, stderr=log
            )
        wait_until(lambda: self.log().count("web UI: ") > before or self.has_ended(), "the web UI answers")
        assert not self.has_ended(), self.log()[-3000:]

    def command(self) -> list[str]:
        return [sys.executable, "-m", "embedding_platform.cli", "up", "--port", str(self.port)]

    def surroundings(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_PLATFORM_")}
        plain.pop("DAGSTER_HOME", None)
        return {**plain, **self.environment}

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of the command line beside it."""
        command = [sys.executable, "-m", "embedding_platform.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.surroundings(), capture_output=True, text=True, check=False
        )

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def log(self) -> str:
        log = self.folder / "up.log"
        return log.read_text() if log.exists() else ""

    def note(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ".dagster" / "up.json").read_text()))

    def parts(self) -> dict[str, int]:
        """The number of each part's process by its name."""
        return {name: pid for name, pid, _ in self.note()["parts"]}

    def milvus_pid(self) -> int:
        return int(json.loads((self.folder / ".embedding_platform" / "milvus.server.json").read_text())["pid"])

    def everybody(self) -> list[psutil.Process]:
        """The process and all that it has started, run workers too."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def answers(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return urllib.request.urlopen(f"{self.address}/server_info", timeout=5).status == 200
        return False

    def finds(self, words: str, path: str) -> bool:
        return path in self.call("search", words, "--limit", "1").stdout

    def interrupt(self) -> int:
        """One Ctrl-C; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def end(self) -> None:
        """Whatever a test left running."""
        if not self.has_ended():
            self.interrupt()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)
