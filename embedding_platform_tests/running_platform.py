"""`embedding-platform up` in a project folder of a test's own: started, asked by GraphQL, killed, and started again.

Beside it `embedding-platform serve`, and what the definitions say that the web UI has to show.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil

from embedding_platform import layout
from embedding_platform.definitions import build_definitions
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings
from embedding_platform_tests.convergence.published import stored_contents
from embedding_platform_tests.ports import free_port

ROOT = Path(__file__).parents[1]

LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "embedding_platform"}

PATIENCE_SECONDS = 600.0
"""What nothing takes, on however busy a machine, unless it never comes."""

Found = TypeVar("Found")

SELDOM = "0 0 29 2 *"
"""A cron line of the 29th of February."""


def make_project(folder: Path, **settings: str) -> None:
    """The files of a project that keeps one small text space, and `settings` as further lines.

    Its probe and its maintenance keep out of the way: a test that runs over the full hour would meet their runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    seldom = {"hourly": SELDOM, "weekly": SELDOM}
    lines = {"spaces": "[text/minilm]", "sensor_seconds": "5", **seldom, **settings}
    (folder / "embedding_platform.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    (folder / "media").mkdir(exist_ok=True)


@dataclass(frozen=True)
class SpecifiedAsset:
    """What the definitions say of an asset; `probed` are those of its checks that no run of the asset makes."""

    group: str
    depends_on: frozenset[str]
    checks: frozenset[str]
    probed: frozenset[str]


def specified_assets(folder: Path) -> dict[str, SpecifiedAsset]:
    """The assets of a project by their keys."""
    definitions = build_definitions(Platform(load_settings(folder / "embedding_platform.yaml")))
    probes = [spec for probe in definitions.asset_checks or [] for spec in probe.check_specs]
    made = [spec for asset in definitions.assets or [] for spec in asset.check_specs]

    def names(specs: list[dg.AssetCheckSpec], key: dg.AssetKey) -> frozenset[str]:
        return frozenset(spec.name for spec in specs if spec.asset_key == key)

    return {
        spec.key.to_user_string(): SpecifiedAsset(
            group=str(spec.group_name),
            depends_on=frozenset(dep.asset_key.to_user_string() for dep in spec.deps),
            checks=names([*made, *probes], spec.key),
            probed=names(probes, spec.key),
        )
        for spec in definitions.resolve_all_asset_specs()
    }


@dataclass
class RunningPlatform:
    """One `up`; its log gathers what all starts said."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, wait until it says that the web UI is there, and stop the rounds."""
        before = self.log().count("web UI: ")
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.surroundings(), stdout=log, stderr=log
            )
        wait_until(lambda: self.log().count("web UI: ") > before or self.has_ended(), "the web UI answers")
        assert not self.has_ended(), self.log()[-3000:]
        self._stop_rounds()

    def _stop_rounds(self) -> None:
        """Stop the nightly schedules.

        On a new instance they ask at their next tick, one of every ten minutes, for a run of each source that has
        not had one, and that of the sensor may still be under way: a run that no test has asked for.
        """

        def rounds() -> list[dict[str, Any]]:
            answer = self.ask(
                """query ($where: RepositorySelector!) { schedulesOrError(repositorySelector: $where) {
                    ... on Schedules { results { name scheduleState { id status } } } } }""",
                where=LOCATION,
            )
            return [schedule for schedule in answer.get("results", ()) if schedule["name"].endswith("_nightly")]

        for schedule in wait_until(rounds, "the schedules are loaded"):
            if schedule["scheduleState"]["status"] == "RUNNING":
                stopped = self.ask(
                    """mutation ($id: String!) { stopRunningSchedule(id: $id) {
                        ... on ScheduleStateResult { scheduleState { status } } } }""",
                    id=schedule["scheduleState"]["id"],
                )
                assert stopped["scheduleState"]["status"] == "STOPPED"

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

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """`embedding-platform serve` beside it, whose links to runs lead here; yields the page's address."""
        command = [sys.executable, "-m", "embedding_platform.cli", "serve", "--port", "0"]
        environment = {**self.surroundings(), "EMBEDDING_PLATFORM_SERVING__DAGSTER_URL": self.address}
        with subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                found = re.search(r"http://\S+?(?=;)", process.stdout.readline())
                assert found, "it says where the page is"
                yield found[0]
            finally:
                process.send_signal(signal.SIGINT)
        assert process.returncode == 0

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

    @property
    def milvus_note(self) -> Path:
        """Where the local Milvus server says that it is."""
        return self.folder / ".embedding_platform" / "milvus.server.json"

    def milvus_pid(self) -> int:
        return int(json.loads(self.milvus_note.read_text())["pid"])

    def everybody(self) -> list[psutil.Process]:
        """The process and all that it has started, run workers too."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def answers(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return urllib.request.urlopen(f"{self.address}/server_info", timeout=5).status == 200
        return False

    def search(self, words: str) -> str:
        """What the command line finds first."""
        return self.call("search", words, "--limit", "1").stdout

    def write(self, source: str, name: str, text: str) -> None:
        folder = self.folder / "media" / source
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    def processes(self, *parts: str) -> list[psutil.Process]:
        """The processes below whose command line holds all of the parts."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if all(part in " ".join(process.cmdline()) for part in parts):
                    found.append(process)
        return found

    def worker(self, run_id: str) -> psutil.Process | None:
        """The process in which a run goes on, once it has told its number."""
        answer = self.ask(
            """query ($id: ID!) { runOrError(runId: $id) { ... on Run { eventConnection { events {
                ... on MessageEvent { message } } } } } }""",
            id=run_id,
        )
        told = "\n".join(event["message"] for event in answer["eventConnection"]["events"])
        started = re.search(r"Started process for run \(pid: (\d+)\)", told)
        return psutil.Process(int(started[1])) if started else None

    def interrupt(self) -> int:
        """One Ctrl-C; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """Whatever a test left running."""
        if not self.has_ended():
            self.interrupt()

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

    @contextlib.contextmanager
    def pool_closed(self, pool: str) -> Iterator[None]:
        """Have no step that wants a place in the pool go on, so that no run ends before it is cancelled."""
        limit = "mutation ($pool: String!, $limit: Int!) { setConcurrencyLimit(concurrencyKey: $pool, limit: $limit) }"
        assert self.ask(limit, pool=pool, limit=0) is True
        try:
            yield
        finally:
            assert self.ask(limit, pool=pool, limit=1) is True

    def reload(self) -> None:
        """Load the code anew, as the button of the web UI does."""
        answer = self.ask(
            """mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) {
                __typename ... on WorkspaceLocationEntry { loadStatus } } }""",
            name=LOCATION["repositoryLocationName"],
        )
        assert answer == {"__typename": "WorkspaceLocationEntry", "loadStatus": "LOADED"}

    def run(self, run_id: str) -> dict[str, Any]:
        answer = self.ask(
            """query ($id: ID!) { runOrError(runId: $id) { ... on Run {
                runId status parentRunId tags { key value } stepStats { stepKey status } assetMaterializations {
                    partition assetKey { path } metadataEntries {
                        label __typename ... on IntMetadataEntry { intValue } ... on MarkdownMetadataEntry { mdStr }
                    } } } } }""",
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

    def await_run(self, run_id: str, *statuses: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The run once it has one of the statuses; without any, once it has ended."""
        ends = statuses or ("SUCCESS", "FAILURE", "CANCELED")
        wait_until(lambda: self.run(run_id)["status"] in ends, f"run {run_id} is {' or '.join(ends)}", seconds)
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

    def stored(self, space: str, source: str) -> int:
        """The vectors stored of a source, one that is there twice counted twice.

        No metadata tell of those that a run stored before it was killed or cancelled.
        """
        platform = Platform(load_settings(self.folder / "embedding_platform.yaml"))
        fingerprint = platform.fingerprint(platform.space(space))
        return len(stored_contents(layout.vectors_folder(platform.store, space, fingerprint, source)))


@contextlib.contextmanager
def running_project(folder: Path, **settings: str) -> Iterator[RunningPlatform]:
    """A project that runs until the context ends; its sensors look often, and believe in quiet soon."""
    make_project(folder, **{"listing": "{quiet_seconds: 1}", **settings})
    platform = RunningPlatform(folder)
    platform.start()
    try:
        yield platform
    finally:
        platform.end()


def wait_until(
    condition: Callable[[], Found], what: str, seconds: float = PATIENCE_SECONDS, every: float = 0.5
) -> Found:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(every)
    return found
