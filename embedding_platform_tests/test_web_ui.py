"""`embedding-platform up` as a person meets it: the graph in a browser, and a sensor that does its work."""

import shutil
from collections.abc import Iterator

import pytest

from embedding_platform_tests.web_ui_process import WebUi, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def web_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    settings = "spaces: [text/minilm]\nsensor_seconds: 5\nlisting: {quiet_seconds: 1}\n"
    opened = WebUi(tmp_path_factory.mktemp("project"), settings)
    opened.write("letters", "storm.txt", "A storm tore the roof from the lighthouse.")
    opened.start()
    try:
        yield opened
    finally:
        served = opened.note.exists()
        opened.stop()
        assert served, "the local Milvus is served while the web UI runs"
        assert not opened.note.exists(), "and stops with it"


def test_the_sensor_indexes_what_it_finds_and_the_terminal_searches_beside_the_web_ui(web_ui: WebUi) -> None:
    wait_until(lambda: "letters/storm.txt" in web_ui.search("damage by wind"), "the sensor's run is searchable")
    web_ui.write("letters", "bees.txt", "Bees dance to tell where the flowers are.")
    wait_until(lambda: "letters/bees.txt" in web_ui.search("insects"), "the new file is searchable")


def test_the_graph_shows_the_chain_in_its_group(web_ui: WebUi) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = web_ui.address, web_ui.folder
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        # The page of all groups shows them folded up.
        page.goto(f"{address}/locations/embedding_platform/asset-groups/text/lineage")
        for name in ("files", "segments", "embeddings", "collection", "published"):
            page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
        page.screenshot(path=str(folder / "graph.png"))
        page.goto(f"{address}/automation")
        page.get_by_text("text_media").first.wait_for(timeout=60_000)
        page.get_by_text("text_nightly").first.wait_for(timeout=60_000)
        browser.close()
    assert (folder / "graph.png").stat().st_size > 10_000
