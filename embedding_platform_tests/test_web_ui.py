"""`embedding-platform up` as a person meets it in a browser: the graph, a run, its numbers, a sensor, a backfill."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedding_platform_tests.running_platform import RunningPlatform, running_project, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

JOB = "/locations/embedding_platform/jobs/text_sync"
SENSOR = "/locations/embedding_platform/sensors/text_media"

pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    folder = tmp_path_factory.mktemp("project")
    with running_project(folder) as platform:
        platform.write("letters", "storm.txt", "A storm tore the roof from the lighthouse.")
        platform.write("notes", "soup.txt", "Simmer the lentils for half an hour.")
        wait_until(lambda: "letters/storm.txt" in platform.search("damage by wind"), "the sensor's run is searchable")
        assert platform.milvus_note.exists(), "the local Milvus is served while the web UI runs"
        yield platform
    assert not platform.milvus_note.exists(), "and stops with it"


@pytest.fixture(scope="module")
def page(running: RunningPlatform) -> Iterator["Page"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1600, "height": 1000}, base_url=running.address)
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


def test_the_graph_shows_the_chain_in_its_group(page: "Page", pictures: Path) -> None:
    page.goto("/locations/embedding_platform/asset-groups/text/lineage")
    for name in ("files", "segments", "embeddings", "collection", "published"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.screenshot(path=pictures / "graph.png")
    page.goto("/automation")
    page.get_by_text("text_media").first.wait_for()
    page.get_by_text("text_nightly").first.wait_for()


def test_a_source_is_materialized_by_hand_and_shows_its_numbers_pictures_and_checks(
    page: "Page", pictures: Path
) -> None:
    page.goto(JOB)
    page.get_by_text("Materialize all").first.click()
    page.get_by_text("Select a partition or create one").click()
    page.get_by_text("letters", exact=True).locator("visible=true").last.click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("View", exact=True).last.click()
    page.wait_for_url(re.compile("/runs/[0-9a-f-]{36}"))
    page.get_by_text("Success", exact=True).first.wait_for()
    page.goto("/assets/text/minilm/embeddings?view=partitions&partition=letters")
    for number in ("unchanged", "dagster/partition_row_count", "mean_norm"):
        page.get_by_text(number, exact=True).first.wait_for()
    # A run that embeds nothing draws nothing: the pictures are those of the sensor's run.
    page.goto("/assets/text/minilm/embeddings?view=partitions&partition=notes")
    page.get_by_text("items_per_second", exact=True).first.wait_for()
    page.screenshot(path=pictures / "embeddings.png", full_page=True)
    page.get_by_text("[Show Markdown]").first.click()
    page.get_by_alt_text("histogram of norms").first.wait_for()
    page.goto("/assets/text/minilm/embeddings?view=checks")
    for check in ("dimension", "finite", "zero", "norm", "collapse", "duplicates", "rejects"):
        page.get_by_text(check, exact=True).first.wait_for()
    page.screenshot(path=pictures / "checks.png")


def test_a_file_is_searchable_with_no_click_once_its_sensor_is_switched_on(
    page: "Page", running: RunningPlatform
) -> None:
    page.goto(SENSOR)
    switch = page.get_by_role("checkbox").first
    switch.wait_for(state="attached")
    assert switch.is_checked()
    for on in (False, True):
        switch.locator("xpath=..").click()
        wait_until(lambda on=on: switch.is_checked() == on, f"the switch is {'on' if on else 'off'}")
    running.write("letters", "bees.txt", "Bees dance to tell where the flowers are.")
    wait_until(lambda: "letters/bees.txt" in running.search("insects"), "the new file is searchable")


def test_a_backfill_of_all_sources_is_cancelled(page: "Page", running: RunningPlatform, pictures: Path) -> None:
    page.goto(JOB)
    page.get_by_text("Materialize all").first.click()
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_role("button", name="Launch backfill").click()
    page.get_by_text("View", exact=True).last.click()
    page.wait_for_url(re.compile("/runs/b/"))
    page.get_by_role("button").last.click()
    page.get_by_text("Cancel backfill", exact=True).first.click()
    page.get_by_role("button", name="Cancel backfill", exact=True).last.click()
    page.wait_for_timeout(1000)
    page.reload()
    page.get_by_text(re.compile("^(Canceled|Canceling)$")).first.wait_for()
    page.screenshot(path=pictures / "backfill.png")
    assert "letters/storm.txt" in running.search("damage by wind"), "nothing was lost"
