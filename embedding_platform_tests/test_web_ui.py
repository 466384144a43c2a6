"""`embedding-platform up` and `serve` as a person meets them in a browser: graph, runs, numbers, sensors, backfills.

The project holds every starter space, and sample media of each modality. The pictures that README shows are taken
here; `make pictures` puts them into docs/.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from embedding_platform.starter.sample_media import make_sample_media, make_sample_queries
from embedding_platform_tests.running_platform import (
    ROOT,
    RunningPlatform,
    make_project,
    specified_assets,
    wait_until,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

KEPT = (
    "handbook/*.*",
    "shapes/*",
    "field-notes/*-05?.*",
    "captioned-shapes/*.*",
    "sounds/*-00?.*",
    "clips/*-00?.*",
)
"""Of the sample media, those that the project has: pictures in two sources, of all else a few in one."""

SOURCES = {
    ("text_sync", "handbook"),
    ("image_sync", "shapes"),
    ("image_sync", "field-notes"),
    ("image_text_sync", "captioned-shapes"),
    ("audio_sync", "sounds"),
    ("video_sync", "clips"),
}
"""Their jobs and partitions."""

PICTURES = [
    ("text/segments", "handbook", "excerpts", 0),
    ("image/segments", "shapes", "contact_sheet", 1),
    ("image_text/segments", "captioned-shapes", "contact_sheet", 1),
    ("audio/segments", "sounds", "waveforms", 1),
    ("video/segments", "clips", "key_frames", 1),
    ("text/minilm/embeddings", "handbook", "norms", 1),
    ("video/perceiver/embeddings", "clips", "norms", 1),
    ("text/minilm/collection", "handbook", "map", 1),
    ("text/minilm/collection", "handbook", "neighbours", 0),
    ("image/clip/collection", "shapes", "map", 1),
    ("image/clip/collection", "shapes", "neighbours", 12),
    ("image_text/clip/collection", "captioned-shapes", "map", 1),
    ("audio/whisper/collection", "sounds", "neighbours", 12),
    ("video/perceiver/collection", "clips", "neighbours", 12),
]
"""Asset, partition, name of a picture, and the images in it: three rows have three neighbours each."""

NAMES_FILES = ("excerpts", "contact_sheet", "key_frames", "neighbours")
"""Pictures that have the names of files below them."""

IS_DRAWN = "image => image.complete && image.naturalWidth > 0"

pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A project that its sensors have made searchable, with no click."""
    folder = tmp_path_factory.mktemp("project")
    # On torch no network is converted, which would take longer than all that is embedded here.
    make_project(folder, spaces="null", runtime="torch", listing="{quiet_seconds: 1}")
    media = folder / "media"
    make_sample_media(str(media))
    make_sample_queries(str(folder / "queries"))
    kept = {path for pattern in KEPT for path in media.glob(pattern)}
    for path in [path for path in media.rglob("*") if path.is_file() and path not in kept]:
        path.unlink()
    platform = RunningPlatform(folder)
    platform.start()
    try:
        wait_until(lambda: sources_ended(platform) >= SOURCES, "each source has been through a run", seconds=1800)
        assert sources_run(platform) == dict.fromkeys(SOURCES, "SUCCESS"), platform.log()[-3000:]
        assert platform.milvus_note.exists(), "the local Milvus is served while the web UI runs"
        yield platform
    finally:
        platform.end()
    assert not platform.milvus_note.exists(), "and stops with it"


def sources_run(platform: RunningPlatform) -> dict[tuple[str, str], str]:
    """The status of the last run of each job and partition."""
    found = {}
    for run in reversed(platform.runs()):
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        found[run["pipelineName"], tags.get("dagster/partition", "")] = run["status"]
    return found


def sources_ended(platform: RunningPlatform) -> set[tuple[str, str]]:
    return {source for source, status in sources_run(platform).items() if status in ("SUCCESS", "FAILURE", "CANCELED")}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: "Browser", running: RunningPlatform) -> "Page":
    """The web UI."""
    opened = browser.new_page(viewport={"width": 1500, "height": 900}, base_url=running.address)
    opened.set_default_timeout(120_000)
    return opened


@pytest.fixture(scope="module")
def search(browser: "Browser", running: RunningPlatform) -> Iterator["Page"]:
    """The search page of a server of its own."""
    with running.serving() as address:
        opened = browser.new_page(viewport={"width": 1200, "height": 900}, base_url=address)
        opened.set_default_timeout(60_000)
        yield opened


def test_the_graph_shows_every_asset_with_what_it_depends_on_and_the_verdicts_of_its_checks(
    page: "Page", running: RunningPlatform, pictures: Path
) -> None:
    assets = specified_assets(running.folder)
    groups = sorted({asset.group for asset in assets.values()})
    assert groups == ["audio", "image", "image_text", "text", "upkeep", "video"]
    page.goto("/asset-groups")
    for group in groups:
        page.get_by_text(group, exact=True).first.wait_for()
    for group in groups:
        own = {key: asset for key, asset in assets.items() if asset.group == group}
        names = sorted(key.rpartition("/")[2] for key in own)
        edges = sum(len(asset.depends_on) for asset in own.values())
        verdicts = {
            f"/assets/{key}?view=checks": f"{len(asset.checks - asset.probed)} / {len(asset.checks)} Passed"
            for key, asset in own.items()
            if asset.checks
        }
        page.goto(f"/locations/embedding_platform/asset-groups/{group}/lineage")
        # The graph is drawn bit by bit: nodes, what stands in them, and edges.
        wait_until(lambda told=(names, edges, verdicts): _drawn(page) == told, f"the graph of {group} is drawn")
        if group == "image":
            page.get_by_text("Loading").first.wait_for(state="detached")
            page.screenshot(path=pictures / "asset-graph.png")


@pytest.mark.parametrize(("asset", "source", "name", "images"), PICTURES, ids=str)
def test_a_picture_of_a_run_is_drawn(
    page: "Page", running: RunningPlatform, pictures: Path, asset: str, source: str, name: str, images: int
) -> None:
    page.goto(f"/assets/{asset}?view=partitions&partition={source}")
    cell = told(page, name)
    # The web UI shows a short picture at once, and a longer one by a click.
    link = cell.get_by_text("[Show Markdown]")
    link.or_(cell.locator("img")).first.wait_for()
    if link.count():
        link.click()
        cell = page.get_by_role("dialog")
        cell.wait_for()
    shown = cell.locator("img")
    wait_until(lambda: shown.count() == images, f"{name} has {images} images")
    wait_until(lambda: all(image.evaluate(IS_DRAWN) for image in shown.all()), f"the images of {name} are drawn")
    words = cell.inner_text()
    assert "cannot be drawn" not in words
    if name in NAMES_FILES:
        assert [path.name for path in (running.folder / "media" / source).iterdir() if path.name in words]
    if (asset, name) == ("image/clip/collection", "neighbours"):
        page.screenshot(path=pictures / "neighbours.png")


@pytest.mark.parametrize(
    ("asset", "check", "numbers"),
    [
        ("video/perceiver/embeddings", "norm", ("norm_min", "norm_max", "judged")),
        ("image/resnet50/collection", "recall", ("recall_at_10", "floor_at_10", "queries")),
    ],
)
def test_every_check_of_a_run_has_its_verdict_and_its_numbers(
    page: "Page", running: RunningPlatform, pictures: Path, asset: str, check: str, numbers: tuple[str, ...]
) -> None:
    checks = specified_assets(running.folder)[asset].checks
    page.goto(f"/assets/{asset}?view=checks&checkDetail={check}")
    for name in checks:
        page.get_by_text(name, exact=True).first.wait_for()
    wait_until(lambda: page.get_by_text("Succeeded", exact=True).count() == len(checks), "each has succeeded")
    page.get_by_text("Passed", exact=True).first.wait_for()
    for name in numbers:
        assert float(told(page, name).inner_text()) > 0
    page.screenshot(path=pictures / f"checks-{check}.png")


def test_a_source_is_materialized_by_hand_and_watched_until_it_is_through(
    page: "Page", search: "Page", running: RunningPlatform, pictures: Path
) -> None:
    switch(page, "text_media", on=False)
    running.write("handbook", "storm.txt", "A storm tore the roof from the lighthouse.")
    page.goto("/locations/embedding_platform/jobs/text_sync")
    page.get_by_text("Materialize all").first.click()
    page.get_by_text("Select a partition or create one").click()
    page.get_by_text("handbook", exact=True).locator("visible=true").last.click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("View", exact=True).last.click()
    page.wait_for_url(re.compile("/runs/[0-9a-f-]{36}"))
    page.get_by_text("Success", exact=True).first.wait_for()
    page.goto("/assets/text/minilm/embeddings?view=partitions&partition=handbook")
    passages = {name: int(told(page, name).inner_text()) for name in ("new", "embedded", "dagster/partition_row_count")}
    assert passages["new"] == passages["embedded"] == 1 < passages["dagster/partition_row_count"]
    assert float(told(page, "items_per_second").inner_text()) > 0
    page.screenshot(path=pictures / "embeddings.png", full_page=True)
    hits = found(search, "damage by wind", "text/minilm")
    assert "storm.txt" in hits.first.inner_text()


def test_a_sensor_that_is_off_does_nothing_and_one_that_is_on_makes_a_file_searchable_with_no_click(
    page: "Page", search: "Page", running: RunningPlatform
) -> None:
    switch(page, "text_media", on=False)
    before = running.runs(pipelineName="text_sync")
    running.write("handbook", "bees.txt", "Bees dance to tell where the flowers are.")
    shutil.copy(running.folder / "queries" / "pictures" / "0.png", running.folder / "media" / "shapes" / "dropped.png")
    picture = search.get_by_role("listitem").filter(has_text="dropped.png")
    wait_until(
        lambda: found(search, "a shape", "image/clip", limit=100) and picture.count() == 1, "the picture is on the page"
    )
    picture.scroll_into_view_if_needed()
    wait_until(lambda: picture.locator("img").evaluate(IS_DRAWN), "and drawn")
    assert running.runs(pipelineName="text_sync") == before, "the other sensor's ticks have come and gone"
    assert "bees.txt" not in found(search, "a dance of bees", "text/minilm").first.inner_text()

    switch(page, "text_media", on=True)
    wait_until(
        lambda: "bees.txt" in found(search, "a dance of bees", "text/minilm").first.inner_text(),
        "the file is on the page",
    )
    assert len(running.runs(pipelineName="text_sync")) == len(before) + 1


def test_the_search_page_finds_each_modality_and_leads_to_the_run_in_the_web_ui(
    search: "Page", running: RunningPlatform, pictures: Path
) -> None:
    hits = found(search, "a red circle", "image/clip")
    assert "red-circle" in hits.first.inner_text()
    assert hits.locator("img").count() == 10
    in_sight = hits.locator("img").all()[:8]
    wait_until(lambda: all(image.evaluate(IS_DRAWN) for image in in_sight), "the pictures in sight are drawn")
    search.screenshot(path=pictures / "search-page.png")
    assert "red-circle" in found(search, "a red circle", "image_text/clip").first.inner_text()
    for example, kind in (("sounds/0.wav", "audio"), ("clips/0.mp4", "video")):
        search.goto("/")
        search.set_input_files("input[type=file]", running.folder / "queries" / example)
        player = hits.locator(kind).first
        player.evaluate("player => { player.muted = true; return player.play(); }")
        wait_until(lambda player=player: player.evaluate("player => player.currentTime > 0"), f"the {kind} plays")
    hits.first.get_by_role("link", name=re.compile(r"\brun\b")).click()
    search.wait_for_url(re.compile(f"{re.escape(running.address)}/runs/[0-9a-f-]{{36}}"))
    search.get_by_text("Success", exact=True).first.wait_for()


def test_a_backfill_of_all_sources_is_cancelled(
    page: "Page", search: "Page", running: RunningPlatform, pictures: Path
) -> None:
    with running.pool_closed("gpu"):
        page.goto("/locations/embedding_platform/jobs/image_sync")
        page.get_by_text("Materialize all").first.click()
        page.get_by_role("button", name="All", exact=True).click()
        page.get_by_role("button", name="Launch backfill").click()
        page.get_by_text("View", exact=True).last.click()
        page.wait_for_url(re.compile("/runs/b/"))
        backfill = re.split("[/?]", page.url.partition("/runs/b/")[2])[0]
        of_it = {"tags": [{"key": "dagster/backfill", "value": backfill}]}
        wait_until(lambda: bool(running.runs(**of_it)), "it has requested runs")
        page.get_by_role("button").last.click()
        page.get_by_text("Cancel backfill", exact=True).first.click()
        page.get_by_role("button", name="Cancel backfill", exact=True).last.click()
        page.get_by_text("Canceled", exact=True).first.wait_for()
        page.screenshot(path=pictures / "backfill.png")
        wait_until(lambda: {run["status"] for run in running.runs(**of_it)} == {"CANCELED"}, "nothing of it goes on")
    assert "red-circle" in found(search, "a red circle", "image/clip").first.inner_text(), "nothing was lost"


def test_readme_shows_what_is_taken_here(pictures: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(docs/([\w-]+\.png)\)", readme)
    assert len(shown) == 3
    assert {name for name in shown if not (pictures / name).is_file()} == set()


def _drawn(page: "Page") -> tuple[list[str], int, dict[str | None, str]]:
    """What a graph shows by now: the names of its nodes, how many edges it has, and verdicts by where they lead."""
    nodes = page.locator("foreignObject")
    names = sorted(nodes.locator("[data-tooltip]").all_inner_texts())
    edges = page.locator("path[marker-end]").count()
    links = nodes.locator("a[href*='view=checks']")
    return names, edges, {link.get_attribute("href"): link.inner_text() for link in links.all()}


def told(page: "Page", name: str) -> "Locator":
    """The cell beside a name in a table of metadata."""
    return page.locator("tr", has=page.get_by_text(name, exact=True)).locator("td").nth(1)


def switch(page: "Page", sensor: str, on: bool) -> None:
    """Have a sensor on or off, by its switch."""
    page.goto(f"/locations/embedding_platform/sensors/{sensor}")
    box = page.get_by_role("checkbox").first
    box.wait_for(state="attached")
    if box.is_checked() != on:
        box.locator("xpath=..").click()
    wait_until(lambda: box.is_checked() == on, f"the switch is {'on' if on else 'off'}")


def found(search: "Page", words: str, space: str, limit: int = 10) -> "Locator":
    """The hits that the search page lists for words typed."""
    search.goto(f"/?{urlencode({'space': space, 'limit': limit})}")
    search.get_by_role("searchbox").fill(words)
    search.keyboard.press("Enter")
    search.wait_for_url(re.compile(f"words={words.split()[0]}"))
    return search.get_by_role("main").get_by_role("listitem")
