"""Jobs in processes of their own that start in milliseconds: one process imports everything, and forks.

A fork copies the thread that calls it and no other, so it is sound only where there is no
other: this process imports, checks that it has one thread, and does nothing else. Clients,
models, event loops and pools all begin in the children.
"""

import importlib
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DAGSTER_SETTINGS = Path(__file__).parents[2] / "dagster.yaml"

SLOW_TO_IMPORT = (
    "av",
    "milvus_lite.adapter.grpc.server",
    "pyarrow.parquet",
    "pymilvus",
    "sentence_transformers",
    "torch",
    "transformers",
    "embedding_platform.runs",
    "embedding_platform_tests.convergence.crash_points",
    "embedding_platform_tests.convergence.published",
)

HANGING_SECONDS = 300.0
"""What no job takes, on however busy a machine, unless it waits for something that never comes."""

MODULES = "modules.txt"
"""The names of all modules that a job which came to its end had imported."""

RESULTS, LOG, EMBEDDED, PUBLISHED = "runs.jsonl", "log.txt", "embedded.txt", "published.pickle"
"""What a job leaves in its folder: its runs, what it printed, what it embedded, and what it found published."""


@dataclass(frozen=True)
class Job:
    """One modality's job on some sources, in a folder that has media, store, Milvus and Dagster's instance.

    `point` and `passage` say where the process kills itself. A job that `reads` writes what is
    published once its runs have succeeded.
    """

    folder: str
    modality: str
    sources: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    point: str = ""
    passage: int = 1
    reads: bool = False
    compacts: bool = False


class Zygote:
    """The parent's end of a process that forks one job at a time."""

    def __init__(self) -> None:
        # The memory pool of pyarrow would start a thread of its own.
        environment = {**os.environ, "JE_ARROW_MALLOC_CONF": "background_thread:false", "OMP_NUM_THREADS": "1"}
        # Unbuffered: a line that waits in a buffer would not be seen by `select`.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], bufsize=0, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, job: Job) -> int:
        """Fork a child for the job and return its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(job.__dict__)}\n".encode())
        self._child = int(self._answer())
        return self._child

    def join(self) -> int:
        """Wait for the child; its exit status, or the negative number of the signal that ended it.

        Raises:
            AssertionError: if it hangs; it is killed then.
        """
        assert self._process.stdout is not None
        answered, _, _ = select.select([self._process.stdout], [], [], HANGING_SECONDS)
        if not answered:
            os.kill(self._child, signal.SIGKILL)
            raise AssertionError(f"a job took more than {HANGING_SECONDS:.0f} s")
        return int(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the process that forks jobs has ended"
        return answer


def main() -> None:
    """Import what jobs need, then fork a child for each line of standard input."""
    _import_everything()
    for line in sys.stdin:
        threads = os.listdir("/proc/self/task")
        assert len(threads) == threading.active_count() == 1, "a fork beside other threads may never end"
        child = os.fork()
        if child == 0:
            _run_and_exit(Job(**json.loads(line)))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        _import_as(os.path.join(json.loads(line)["folder"], MODULES))
        print(os.waitstatus_to_exitcode(status), flush=True)


def _import_everything() -> None:
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)


def _import_as(modules: str) -> None:
    """Import what a child had to import on its way, so that the next one need not."""
    if os.path.exists(modules):
        for name in Path(modules).read_text("utf-8").split():
            # Some modules are made by others and cannot be imported by their names.
            with suppress(ImportError, AttributeError):
                importlib.import_module(name)
        os.unlink(modules)


def _run_and_exit(job: Job) -> None:
    log = os.open(os.path.join(job.folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for own, handle in ((0, nothing), (1, log), (2, log)):
        os.dup2(handle, own)
    try:
        status = 0 if _run(job) else 1
    except BaseException:  # noqa: BLE001 - the child must not go on as the process that forked it
        traceback.print_exc()
        status = 2
    # No handler and no thread of Milvus Lite is waited for: the next job finds what a crash leaves.
    os._exit(status)


def _run(job: Job) -> bool:
    from embedding_platform import runs
    from embedding_platform.platform import Platform
    from embedding_platform.settings import load_settings
    from embedding_platform_tests.convergence.crash_points import BY_NAME, armed, kill_this_process
    from embedding_platform_tests.convergence.published import published

    folder = Path(job.folder)
    os.chdir(folder)
    if not (folder / "dagster.yaml").exists():
        shutil.copy(DAGSTER_SETTINGS, folder / "dagster.yaml")
    os.environ.pop("DAGSTER_HOME", None)
    platform = Platform(load_settings(base=folder, **job.settings))
    succeeded = True
    with ExitStack() as stack:
        _make_small(stack, job.compacts)
        _keep_accounts(stack, folder / EMBEDDED)
        if job.point:
            stack.enter_context(armed([BY_NAME[job.point]], job.passage, kill_this_process))
        dagster = stack.enter_context(runs.instance())
        for run in runs.run_sources(platform, dagster, [job.modality], job.sources):
            succeeded &= run.succeeded
            numbers = {
                asset: {name: value for name, value in metadata.items() if isinstance(value, int | float)}
                for asset, metadata in run.metadata.items()
            }
            row = {"source": run.source, "succeeded": run.succeeded, "failures": run.failures, "metadata": numbers}
            with open(folder / RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        (folder / MODULES).write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        if job.reads and succeeded:
            (folder / PUBLISHED).write_bytes(pickle.dumps(published(platform)))
    return succeeded


def _make_small(stack: ExitStack, compacts: bool) -> None:
    """Several batches of rows, several small shards, and little embedded ahead, for a lake of a few files."""
    import pytest

    from embedding_platform import storage
    from embedding_platform_tests.convergence.crash_points import compacting_from

    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr("embedding_platform.milvus.sync.BATCH_ROWS", 2)
    patch.setattr("embedding_platform.media.items.ITEMS_PER_CHUNK", 2)
    patch.setattr("embedding_platform.inference.stream.WAIT_BATCHES", 1)
    if compacts:
        patch.setattr(storage, "compact_shards", compacting_from(3))


def _keep_accounts(stack: ExitStack, accounts: Path) -> None:
    """Write a line for each job, for each content that the model has embedded, and for each that became durable."""
    import pytest

    from embedding_platform.defs import assets
    from embedding_platform.inference.lanes import Lanes
    from embedding_platform.vectors import store

    book = os.open(accounts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    embed, append, reconcile = Lanes._embed, store.append, assets.reconcile_embeddings
    place = ""

    def note(what: str, contents: Sequence[str]) -> None:
        os.write(book, "".join(f"{what}\t{place}\t{content}\n" for content in contents).encode())

    def reconciled(root: str, space: Any, source: str, fingerprint: str, *rest: Any, **named: Any) -> Any:
        nonlocal place
        place = f"{space.key}/{fingerprint[:16]}"
        return reconcile(root, space, source, fingerprint, *rest, **named)

    def embedded(self: Lanes, role: Any, batch: Any) -> Any:
        answers = embed(self, role, batch)
        note("embedded", [one.segment.content_hash for one in batch])
        return answers

    def appended(folder: str, hashes: list[str], *rest: Any) -> str:
        name = append(folder, hashes, *rest)
        note("stored", hashes)
        return name

    note("begun", [""])
    patch.setattr(assets, "reconcile_embeddings", reconciled)
    patch.setattr(Lanes, "_embed", embedded)
    patch.setattr(store, "append", appended)


if __name__ == "__main__":
    main()
