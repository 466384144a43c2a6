"""`embedding-platform up` as a person meets it: the graph in a browser, and a sensor that does its work."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_SECONDS = 240.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def web_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a running web UI, and the project folder that it serves."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "embedding_platform.yaml").write_text("spaces: [text/minilm]\nsensor_seconds: 5\n")
    (folder / "media" / "letters").mkdir(parents=True)
    (folder / "media" / "letters" / "storm.txt").write_text("A storm tore the roof from the lighthouse.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_PLATFORM_")}
    environment.pop("DAGSTER_HOME", None)
    with (folder / "dev.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedding_platform.cli", "up", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{address}/server_info"), "the web UI answers")
        yield address, folder
    finally:
        note = folder / ".embedding_platform" / "milvus.server.json"
        served = note.exists()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert served, "the local Milvus is served while the web UI runs"
        assert not note.exists(), "and stops with it"


def answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(1)


def search(folder: Path, words: str) -> str:
    command = [sys.executable, "-m", "embedding_platform.cli", "search", words, "--limit", "1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_the_sensor_indexes_what_it_finds_and_the_terminal_searches_beside_the_web_ui(web_ui) -> None:
    _, folder = web_ui
    wait_until(lambda: "letters/storm.txt" in search(folder, "damage by wind"), "the sensor's run is searchable")
    (folder / "media" / "letters" / "bees.txt").write_text("Bees dance to tell where the flowers are.")
    wait_until(lambda: "letters/bees.txt" in search(folder, "insects"), "the new file is searchable")


def test_the_graph_shows_the_chain_in_its_group(web_ui) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = web_ui
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(f"{address}/asset-groups")
        for name in ("files", "segments", "embeddings", "collection", "published"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
        page.screenshot(path=str(folder / "graph.png"))
        page.goto(f"{address}/automation")
        page.get_by_text("text_media").first.wait_for(timeout=60_000)
        page.get_by_text("text_nightly").first.wait_for(timeout=60_000)
        browser.close()
    assert (folder / "graph.png").stat().st_size > 10_000
