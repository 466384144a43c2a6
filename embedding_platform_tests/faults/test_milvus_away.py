"""Milvus out of reach, slow, silent, cut off or killed while stages run: they outlast it, or end in one line."""

import ast
import inspect
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pymilvus import MilvusClient

import embedding_platform
from embedding_platform.errors import PlatformError
from embedding_platform.milvus import connection
from embedding_platform.milvus.connection import connect, serve
from embedding_platform.spaces import Index
from embedding_platform_tests.faults import indexing
from embedding_platform_tests.faults.indexing import (
    Disturbed,
    assert_true_to_media,
    collect,
    edit,
    publish_all,
    published_texts,
)
from embedding_platform_tests.faults.proxy import Proxy
from embedding_platform_tests.reconcile.small_lake import Lake
from embedding_platform_tests.running_platform import wait_until

TOKEN = "root:s3cr3t"
DEEDS = {
    "create_collection",
    "create_partition",
    "upsert",
    "delete",
    "drop_partition",
    "create_index",
    "drop_index",
    "alter_collection_properties",
    "create_alias",
    "alter_alias",
}
"""Calls that change what Milvus holds."""

PACKAGE = Path(embedding_platform.__file__).parent


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served Milvus Lite directory."""
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    with serve(directory):
        yield directory


@pytest.fixture
def empty(served: str) -> Iterator[str]:
    """The served directory, and nothing in it after the test."""
    yield served
    client = connect(served)
    for name in client.list_collections(timeout=60):
        for other in client.list_aliases(name, timeout=60)["aliases"]:
            client.drop_alias(other, timeout=60)
        client.drop_collection(name, timeout=60)


@pytest.fixture
def proxy(empty: str) -> Iterator[Proxy]:
    """A line to the served directory."""
    proxy = Proxy(note_of(empty)["uri"].rpartition(":")[2])
    yield proxy
    proxy.close()


def note_of(directory: str) -> dict:
    with open(f"{directory}.server.json") as file:
        return json.load(file)


def later(seconds: float, deed: Callable[[], None]) -> None:
    threading.Timer(seconds, deed).start()


def set_deadline(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Another deadline of calls, in every module that sets one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("embedding_platform.") and hasattr(module, "CALL_SECONDS"):
            monkeypatch.setattr(module, "CALL_SECONDS", seconds)


@pytest.mark.parametrize(
    "host", ["nobody listens", "somebody listens and says nothing", "no-such-host.invalid"], ids=lambda host: host
)
def test_a_milvus_out_of_reach_is_one_line_in_bounded_time(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if host == "nobody listens":
            listener.close()
        place = host if "." in host else "127.0.0.1"
        started = time.monotonic()
        with pytest.raises(PlatformError, match="no Milvus answers at http://") as failure:
            connect(f"http://{place}:{port}", TOKEN, timeout_seconds=2)
        assert time.monotonic() - started < 30
    assert "\n" not in str(failure.value)
    said = str(failure.value) + "".join(capfd.readouterr())
    assert "s3cr3t" not in said
    assert "Traceback" not in said


def test_a_slow_line_costs_time_only(proxy: Proxy, lake: Lake) -> None:
    client = connect(proxy.uri, TOKEN)
    indexing.index(client, lake)
    edit(lake)
    proxy.delay = 0.05
    (report,) = indexing.index(client, lake)
    proxy.delay = 0.0
    assert report.sync.counts == {"new": 1, "stale": 1, "orphaned": 1, "unchanged": 3}
    assert_true_to_media(client, lake)


def test_a_line_that_falls_silent_is_given_up_at_the_deadline(
    proxy: Proxy, empty: str, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(proxy.uri, TOKEN)
    indexing.index(client, lake)
    before = published_texts(client, lake)
    edit(lake)
    lake.run()
    set_deadline(monkeypatch, 4.0)

    def fall_silent(method: str) -> None:
        proxy.is_silent = proxy.is_silent or method == "upsert"

    started = time.monotonic()
    with pytest.raises(
        PlatformError, match=r"Milvus could not write 2 rows of .*: the next run does the rest"
    ) as failure:
        collect(Disturbed(client, fall_silent), lake)
    assert time.monotonic() - started < 120
    assert "\n" not in str(failure.value)
    assert "s3cr3t" not in str(failure.value)
    monkeypatch.undo()
    other = connect(empty)
    assert published_texts(other, lake).keys() >= before.keys()
    proxy.is_silent = False
    indexing.index(connect(proxy.uri, TOKEN), lake)
    assert_true_to_media(other, lake)


def test_runs_outlast_a_line_that_is_cut_again_and_again(
    proxy: Proxy, lake: Lake, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def cut_often(method: str) -> None:
        calls.append(method)
        if len(calls) % 14 == 0:
            later(0.0, proxy.flicker)

    client = Disturbed(connect(proxy.uri, TOKEN), cut_often)
    indexing.index(client, lake)
    edit(lake)
    (report,) = indexing.index(client, lake)
    assert report.sync.counts == {"new": 1, "stale": 1, "orphaned": 1, "unchanged": 3}
    assert_true_to_media(client, lake)
    assert len(calls) > 5 * 14
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert "s3cr3t" not in said


def test_a_run_outlasts_the_kill_of_the_bundled_server(empty: str, lake: Lake) -> None:
    client = connect(empty)
    indexing.index(client, lake)
    edit(lake)
    lake.run()
    killed = []

    def kill_before(method: str) -> None:
        if method in ("upsert", "delete") and method not in killed:
            killed.append(method)
            former = note_of(empty)["pid"]
            os.kill(former, signal.SIGKILL)
            wait_until(lambda: note_of(empty)["pid"] != former, "another is started")

    report = collect(Disturbed(client, kill_before), lake)
    assert killed == ["upsert", "delete"]
    assert (report.rows, report.sync.repaired) == (5, 0)
    publish_all(client, lake)
    assert_true_to_media(client, lake)


def test_a_directory_whose_server_was_just_killed_is_left_to_its_keeper(empty: str) -> None:
    os.kill(note_of(empty)["pid"], signal.SIGKILL)
    client = connect(empty)
    assert client.list_collections(timeout=60) == []
    assert empty not in connection._open_directories
    assert connect(note_of(empty)["uri"]).list_collections(timeout=60) == []


def test_a_deed_whose_answer_was_lost_is_done_once(proxy: Proxy, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    set_deadline(monkeypatch, 30.0)
    lost = set()
    cutters: list[threading.Thread] = []
    were_lost: list[bool] = []

    def cut_once_lost() -> None:
        were_lost.append(proxy.lost_answer.wait(20))
        proxy.flicker()

    def lose_first_answer(method: str) -> None:
        if method in DEEDS and method not in lost:
            lost.add(method)
            proxy.lost_answer.clear()
            proxy.loses_answers = True
            cutters.append(threading.Thread(target=cut_once_lost))
            cutters[-1].start()

    client = Disturbed(connect(proxy.uri, TOKEN), lose_first_answer)
    lake.write("other", 50, "two")
    indexing.index(client, lake, "one", "two")
    edit(lake)
    lake.path("other", "two").unlink()
    indexing.index(client, lake, "one", "two")
    assert_true_to_media(client, lake)
    # Another model, another collection; then another index on it.
    lake.fingerprint = "e" * 64
    indexing.index(client, lake, "one", "two")
    lake.index = Index("HNSW", {"M": 8, "efConstruction": 40}, {"ef": 32})
    assert collect(client, lake).index_built
    assert_true_to_media(client, lake)
    for cutter in cutters:
        cutter.join()
    assert lost == DEEDS
    assert were_lost == [True] * len(DEEDS)


def test_no_call_to_milvus_goes_without_a_deadline() -> None:
    takes_one = {
        name
        for name, method in inspect.getmembers(MilvusClient, callable)
        if not name.startswith("_") and "timeout" in inspect.signature(method).parameters
    }
    without = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.func.attr}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in takes_one
        and ast.unparse(node.func.value).rpartition(".")[2] in ("client", "milvus")
        and "timeout" not in [keyword.arg for keyword in node.keywords]
    ]
    assert len(takes_one) > 50
    assert without == []


def test_every_call_of_a_run_has_a_deadline(empty: str, lake: Lake) -> None:
    without = []

    class Watched:
        def __init__(self, client: MilvusClient) -> None:
            self._client = client

        def __getattr__(self, name: str):
            found = getattr(self._client, name)
            if not callable(found) or "timeout" not in inspect.signature(found).parameters:
                return found

            def call(*arguments, **keywords):
                if not keywords.get("timeout"):
                    without.append(name)
                return found(*arguments, **keywords)

            return call

    client = Watched(connect(empty))
    indexing.index(client, lake)
    edit(lake)
    indexing.index(client, lake)
    assert without == []
