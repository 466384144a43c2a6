"""A web UI with its daemon in a project folder of its own, as `embedding-platform dev` starts them, and its GraphQL."""

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
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "embedding_platform"}
PATIENCE_SECONDS = 300.0


class WebUi:
    """The processes and the folder that they serve."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(ROOT / name, folder)
        (folder / "embedding_platform.yaml").write_text(settings)
        (folder / "media").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the processes have written."""
        return (self.folder / "dev.log").read_text()

    @property
    def note(self) -> Path:
        """Where the local Milvus server says that it is."""
        return self.folder / ".embedding_platform" / "milvus.server.json"

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_PLATFORM_")}
        environment.pop("DAGSTER_HOME", None)
        with (self.folder / "dev.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embedding_platform.cli", "dev", "--port", str(self.port)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self.answers, "the web UI answers")

    def stop(self) -> None:
        """What Ctrl-C does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def answers(self) -> bool:
        assert self.process is None or self.process.poll() is None, self.log[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return urllib.request.urlopen(f"{self.address}/server_info", timeout=5).status == 200
        return False

    def write(self, source: str, name: str, text: str) -> None:
        folder = self.folder / "media" / source
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    def search(self, words: str) -> str:
        """What the command line finds first."""
        command = [sys.executable, "-m", "embedding_platform.cli", "search", words, "--limit", "1"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False).stdout

    def processes(self, *parts: str) -> list[psutil.Process]:
        """The processes below whose command line holds all of the parts."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if all(part in " ".join(process.cmdline()) for part in parts):
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes in which runs go on: what code servers have spawned."""
        found = self.processes("multiprocessing.spawn", "spawn_main")
        return [process for process in found if "resource_tracker" not in " ".join(process.cmdline())]

    def ask(self, query: str, **variables: Any) -> Any:
        """The answer of GraphQL; the one field of it where there is one."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.address}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        (value,) = answer["data"].values()
        return value

    def launch(self, job: str, source: str, assets: list[list[str]] | None = None, priority: int = 0) -> str:
        """Launch a run as the launchpad does; its id."""
        tags = {"dagster/partition": source, "dagster/priority": str(priority)}
        selector = {"repositoryName": LOCATION["repositoryName"], "pipelineName": job}
        selector["repositoryLocationName"] = LOCATION["repositoryLocationName"]
        chosen = {"assetSelection": [{"path": path} for path in assets]} if assets else {}
        answer = self.ask(
            """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
                __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
                ... on RunConfigValidationInvalid { errors { message } } } }""",
            params={
                "selector": {**selector, **chosen},
                "mode": "default",
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
            },
        )
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def run(self, run_id: str) -> dict[str, Any]:
        answer = self.ask(
            """query ($id: ID!) { runOrError(runId: $id) { ... on Run {
                runId status parentRunId tags { key value } stepStats { stepKey status } assetMaterializations {
                    partition assetKey { path } metadataEntries {
                        label __typename ... on IntMetadataEntry { intValue } } } } } }""",
            id=run_id,
        )
        return dict(answer)

    def runs(self, **wanted: Any) -> list[dict[str, Any]]:
        """Runs, the newest first, that a filter of GraphQL lets through."""
        answer = self.ask(
            """query ($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results {
                runId status parentRunId pipelineName tags { key value } } } } }""",
            filter=wanted,
        )
        return list(answer["results"])

    def await_run(self, run_id: str, *statuses: str) -> dict[str, Any]:
        """The run once it has one of the statuses; without any, once it has ended."""
        ends = statuses or ("SUCCESS", "FAILURE", "CANCELED")
        wait_until(lambda: self.run(run_id)["status"] in ends, f"run {run_id} is {' or '.join(ends)}")
        return self.run(run_id)

    def count(self, asset: list[str], name: str) -> int:
        """A number of the asset's metadata, summed over all of its materializations."""
        answer = self.ask(
            """query ($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
                assetMaterializations { metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }""",
            key={"path": asset},
        )
        # Nothing is known of an asset that was never materialized.
        entries = [entry for one in answer.get("assetMaterializations", ()) for entry in one["metadataEntries"]]
        return sum(entry["intValue"] for entry in entries if entry["label"] == name)


def wait_until(condition: Callable[[], bool], what: str, every: float = 1.0) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(every)
