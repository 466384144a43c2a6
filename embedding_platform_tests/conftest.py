"""What many tests stand on: a platform in a folder of its own, and its Dagster instance."""

import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, settings

from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings
from embedding_platform_tests.milvus_server import TOKEN_VARIABLE, URI_VARIABLE, MilvusServer, why_no_server
from embedding_platform_tests.models import small_models
from embedding_platform_tests.postgres_server import PostgresServer, binaries

CACHE = tempfile.TemporaryDirectory()
"""Where networks that were converted for a runtime are kept until the session ends."""

TOGETHER = {
    "a lake of five modalities": ("serving/",),
    "a Milvus server": ("faults/test_tokens", "milvus/", "reconcile/test_collection", "reconcile/test_publication"),
}
"""What is made once in a process and takes long, and the files that share it, which therefore go to one process."""

LEFT_OUT = ("long", "proof")
"""Marks of tests that run where `-m` names one of them."""

SERVER: pytest.StashKey[MilvusServer] = pytest.StashKey()
"""The session's Milvus server, while it runs."""

SERVED: pytest.StashKey[set[str]] = pytest.StashKey()
"""The tests of this run that share it and are still to come."""

TOLD = "told"
"""The property of a test's report that holds what the test told."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="folder to keep the browser tests' pictures of pages in")
    parser.addoption(
        "--begin-before",
        metavar="SECONDS",
        type=float,
        default=float("inf"),
        help="skip each test that would begin later, in seconds since 1970",
    )


def pytest_configure(config: pytest.Config) -> None:
    # What a machine of noisy neighbours takes says nothing of an example. The same ones each time, but for a seed.
    plain = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("same", **plain, derandomize=True, database=None)
    settings.register_profile("seeded", **plain)
    settings.load_profile("same" if config.getoption("hypothesis_seed") is None else "seeded")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, one that knows which files go together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared_by(nodeid) or super()._split_scope(nodeid)

    return Scheduling(config, log)


def _shared_by(nodeid: str) -> str | None:
    """What a test shares with those of other files, if anything."""
    inside = nodeid.removeprefix("embedding_platform_tests/")
    return next((shared for shared, files in TOGETHER.items() if inside.startswith(files)), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Not in `addopts`: any -m on the command line would take its place and bring long tests in.
    if any(name in config.getoption("markexpr") for name in LEFT_OUT):
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("begin_before"):
        pytest.skip("the time that this run has for beginning tests is over")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """End the session's Milvus server after the last test that shares it: left idle, it takes most of a core."""
    session = item.session
    if SERVED not in session.stash:
        marked = [other.nodeid for other in session.items if other.get_closest_marker("server")]
        session.stash[SERVED] = {nodeid for nodeid in marked if _shared_by(nodeid) == "a Milvus server"}
    session.stash[SERVED].discard(item.nodeid)
    if not session.stash[SERVED] and SERVER in item.config.stash:
        item.config.stash[SERVER].stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests told, in whichever process they ran."""
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, text in getattr(report, "user_properties", ()):
            if name == TOLD and report.when == "call":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(text)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Have figures printed at the end of the test run."""
    return partial(record_property, TOLD)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SETTINGS", "MEDIA_ROOT", "STORE_ROOT", "MILVUS__URI", "MILVUS__TOKEN", "MODEL_SET", "SPACES"):
        monkeypatch.delenv(f"EMBEDDING_PLATFORM_{name}", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _built_indexes_are_seen_soon() -> Iterator[None]:
    """Where pymilvus looks whether an index is built, and if not waits half a second, it looks again soon."""
    from pymilvus.client import grpc_handler

    def sleep(seconds: float) -> None:
        time.sleep(0.02 if seconds == 0.5 else seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpc_handler, "time", SimpleNamespace(time=time.time, sleep=sleep))
        yield


def open_platform(folder: Path, **settings: object) -> Platform:
    """A platform whose media, store and Milvus Lite lie in `folder`; relative paths start there.

    Converted networks are kept for the whole session, so that each model is started once.
    """
    return Platform(load_settings(base=folder, **{"cache_root": CACHE.name, **settings}))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance that ends with the test."""
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform in a folder of the test's own, with an empty media root."""
    (tmp_path / "media").mkdir()
    opened = open_platform(tmp_path)
    yield opened
    close_directory(opened.settings.milvus_uri)


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pictures of pages are kept in: that of `--screenshots`, else one of the test run."""
    named = request.config.getoption("screenshots")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family's name to the folder of its small model, saved on first use."""
    root = tmp_path_factory.mktemp("models")

    def folder_of(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            import torch

            torch.manual_seed(7)
            getattr(small_models, f"save_{family}")(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a module of `reference` to the folder of its full-size model, saved on first use."""
    root = tmp_path_factory.mktemp("full_size")

    def folder_of(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            importlib.import_module(f"embedding_platform.reference.{name}").save(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[MilvusServer]:
    """The Milvus server of the whole session, which asks for its token; not to be killed."""
    uri = os.environ.get(URI_VARIABLE)
    if uri:
        yield MilvusServer(folder="", uri=uri, token=os.environ.get(TOKEN_VARIABLE, ""))
        return
    for server in _started(tmp_path_factory.mktemp("milvus_server")):
        pytestconfig.stash[SERVER] = server
        yield server


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[MilvusServer]:
    """A Milvus server of the test's own, which may be killed and started again."""
    yield from _started(tmp_path / "milvus_server")


def _started(folder: Path) -> Iterator[MilvusServer]:
    if reason := why_no_server():
        pytest.skip(reason)
    folder.mkdir(exist_ok=True)
    server = MilvusServer(str(folder))
    server.start()
    yield server
    if server.pid:
        server.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL of the whole session; each test takes a database of its own from it."""
    found = binaries()
    if not found:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    server = PostgresServer(found)
    try:
        server.start()
        yield server
    finally:
        server.stop()
