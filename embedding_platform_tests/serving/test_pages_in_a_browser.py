"""The search page in a browser: every modality, by keyboard, on a phone, with a token, and nothing hostile that runs.

Pictures of the pages are kept in the folder of `--screenshots`, else with the files of the test run.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from embedding_platform.serving.server import address_of, listening
from embedding_platform_tests.serving.conftest import TOKEN, Lake

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}
PATIENCE_MILLISECONDS = 300_000
DESK: dict[str, Any] = {"viewport": {"width": 1200, "height": 850}}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The app behind a real socket; yields its address."""
    with listening("127.0.0.1", 0) as door:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield address_of(door, "127.0.0.1")
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(lake: Lake) -> Iterator[str]:
    with running(lake.app()) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, address: str, **context: Any) -> Iterator[Any]:
    """A page of its own, which may ask nobody but us and has nothing to complain of."""
    page = browser.new_context(base_url=address, **(context or DESK)).new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}") or dialog.dismiss())
    page.on("request", lambda asked: None if asked.url.startswith(address) else complaints.append(asked.url))
    yield page
    page.context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with opened(browser, address) as page:
        page.goto("/")
        yield page


def seen(page: Any, name: str) -> None:
    """Wait for an image to be drawn."""
    page.wait_for_function("name => document.querySelector(name)?.naturalWidth > 0", arg=name)


def drop(page: Any, path: Path) -> None:
    """Drop a file onto the page, as a hand does."""
    payload = list(path.read_bytes())
    transfer = page.evaluate_handle(
        """([payload, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(payload)], name));
            return transfer;
        }""",
        [payload, path.name],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def test_words_find_passages_pictures_and_captions(page: Any, pictures: Path) -> None:
    page.get_by_role("searchbox").fill("a red circle")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_role("heading", name="Images with captions").wait_for()
    assert page.title() == '"a red circle" · Search'
    assert page.url.endswith("/?words=a+red+circle&limit=10")
    (first, *_) = page.locator("section", has=page.get_by_role("heading", name="image/clip")).locator(".hit").all()
    assert "red-" in first.inner_text()
    page.get_by_role("link", name="Images image/clip").click()
    seen(page, ".hits.image img")
    page.wait_for_timeout(600)
    page.screenshot(path=str(pictures / "search-words.png"))


def test_a_passage_is_read_in_its_document_with_the_words_marked(page: Any, pictures: Path) -> None:
    page.get_by_text("text/minilm", exact=True).click()
    page.get_by_role("searchbox").fill("how do bees dance")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Passages").wait_for()
    assert page.locator("mark").first.inner_text().lower().startswith(("bee", "dance"))
    page.screenshot(path=str(pictures / "search-text.png"))
    page.get_by_role("link", name="Read in context").first.click()
    page.locator("#passage mark").first.wait_for()
    assert page.locator("h1").inner_text().endswith("honeybees.md")
    assert len(page.locator(".around").first.inner_text()) > 100
    page.screenshot(path=str(pictures / "passage.png"))


def test_a_sound_is_dropped_and_what_is_like_it_plays_from_its_second(
    page: Any, lake: Lake, pictures: Path, address: str
) -> None:
    drop(page, lake.queries / "sounds" / "0.wav")
    page.get_by_role("heading", name="Sound").wait_for()
    assert "Like 0.wav" in page.locator(".summary").inner_text()
    seen(page, "img.wave")
    page.screenshot(path=str(pictures / "search-sound.png"))
    assert page.locator(".hits.audio .hit").count() == 10
    page.evaluate(
        "() => { const one = document.querySelector('audio'); one.src = one.src.replace(/#.*/, '#t=1,2'); one.play(); }"
    )
    page.wait_for_function("() => document.querySelector('audio').currentTime >= 1")
    page.wait_for_function("() => document.querySelector('audio').paused")
    stopped, whole = (page.evaluate(f"document.querySelector('audio').{name}") for name in ("currentTime", "duration"))
    assert 1 <= stopped < whole, "not at its end"


def test_a_later_window_plays_from_its_own_second_and_what_no_browser_plays_is_a_file(page: Any, hit: Any) -> None:
    page.goto(f"{hit('audio/whisper', 'melody')['links']['more_like']}?limit=20")
    windows = page.locator('.hit:has(audio:not([src*="#t=0.0,"]))', has_text="recordings/melody.wav")
    later, player = windows.first, windows.first.locator("audio")
    start, end = map(float, player.get_attribute("src").partition("#t=")[2].split(","))
    assert (start, end) in {(30.0, 60.0), (60.0, 70.0)}
    assert {30.0: "0:30\u20131:00", 60.0: "1:00\u20131:10"}[start] in later.inner_text()
    player.evaluate("player => player.play()")
    page.wait_for_function("([one, start]) => one.currentTime > start", arg=[player.element_handle(), start])
    assert player.evaluate("player => player.currentTime") < end
    unplayed = page.locator(".hit", has_text="recordings/tone.aiff")
    assert unplayed.locator("audio").count() == 0
    with page.expect_download() as downloaded:
        unplayed.get_by_role("link", name="The file tone.aiff").click()
    assert downloaded.value.suggested_filename == "tone.aiff"


def test_a_clip_is_chosen_and_what_is_like_it_plays_one_at_a_time(page: Any, lake: Lake, pictures: Path) -> None:
    page.set_input_files("input[type=file]", str(lake.queries / "clips" / "0.mp4"))
    page.get_by_role("heading", name="Clips").wait_for()
    page.wait_for_timeout(800)
    page.screenshot(path=str(pictures / "search-clips.png"))
    for number in (0, 1):
        page.evaluate(f"document.querySelectorAll('video')[{number}].play()")
        page.wait_for_function(f"() => document.querySelectorAll('video')[{number}].currentTime > 0")
    assert page.evaluate("document.querySelectorAll('video')[0].paused")


def test_a_picture_is_chosen_and_pictures_are_found_in_each_space(page: Any, lake: Lake) -> None:
    page.set_input_files("input[type=file]", str(lake.queries / "pictures" / "0.png"))
    page.get_by_role("heading", name="image/resnet50").wait_for()
    assert [one.inner_text().split()[0] for one in page.locator("h2").all()] == ["Images", "Images", "Images"]
    seen(page, ".hits.image img")


def test_filters_sources_and_similar_pictures(page: Any, pictures: Path) -> None:
    page.get_by_text("image/clip", exact=True).click()
    page.get_by_role("searchbox").fill("a circle")
    page.get_by_text("Filters").click()
    page.get_by_label("shapes", exact=True).check()
    page.locator("select[name=limit]").select_option("5")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".hit").first.wait_for()
    assert page.locator(".hit").count() == 5
    assert {one.inner_text() for one in page.locator(".name .source").all()} == {"shapes/"}
    assert page.get_by_label("shapes", exact=True).is_checked()
    page.screenshot(path=str(pictures / "filters.png"))
    page.get_by_role("link", name="Similar to").first.click()
    page.get_by_text("More like").first.wait_for()
    assert page.locator(".hit").count() > 0


def test_a_hit_leads_to_its_trace_and_its_run(page: Any, pictures: Path) -> None:
    page.goto("/?words=a+red+circle&space=image/clip")
    run = page.get_by_role("link", name="Dagster run of").first.get_attribute("href")
    assert run.startswith("http://127.0.0.1:3000/runs/")
    page.get_by_role("link", name="Trace of").first.click()
    page.get_by_role("heading", name="Where this comes from").wait_for()
    assert page.get_by_role("link", name=run.rpartition("/")[2]).first.get_attribute("href") == run
    page.screenshot(path=str(pictures / "trace.png"))


def test_all_is_done_by_keyboard(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.type("a blue circle")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "radio"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "image/clip"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Images").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.tagName")
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or page.evaluate(
            "document.activeElement.matches('input, body, main')"
        )
    assert {name.split()[0] for name in reached} >= {"INPUT", "SUMMARY", "A", "Similar", "Trace", "Dagster"}


def test_everything_has_a_name_for_those_who_do_not_see_it(page: Any, lake: Lake) -> None:
    page.goto("/?words=a+red+circle")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("main").count() == 1
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, a, img, audio, video')].filter((one) =>
            one.type !== 'hidden' && !one.hidden && !one.labels?.length && !one.getAttribute('aria-label')
            && !one.getAttribute('alt') && !one.textContent.trim() && !one.querySelector('img[alt]:not([alt=""])')
        ).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    identities = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("path", ["/", "/?words=a+red+circle", "/?words=penguins&space=text/minilm&limit=50"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, address: str, pictures: Path, path: str) -> None:
    with opened(browser, address, **PHONE) as page:
        page.goto(path)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]
        small = page.evaluate(
            """() => [...document.querySelectorAll('button, .pill span, .facts a, summary')].filter((one) =>
                one.checkVisibility() && one.getBoundingClientRect().height < 36).map((one) => one.outerHTML)"""
        )
        assert small == []
        if path.endswith("circle"):
            page.screenshot(path=str(pictures / "phone.png"))


def test_nothing_hostile_in_the_lake_runs(page: Any) -> None:
    for path in ("/?words=penguins&limit=50", "/?words=a+penguin&space=image_text/clip&limit=50"):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        assert "owned" not in page.title()
    page.goto("/?words=penguins&space=text/minilm&limit=50")
    for link in page.get_by_role("link", name="Read in context").all()[:8]:
        other = page.context.new_page()
        other.on("dialog", lambda dialog: pytest.fail(dialog.message))
        other.goto(link.get_attribute("href"))
        assert other.title() != "owned"
        other.close()


def test_what_is_seen_on_a_link_is_in_its_name(page: Any) -> None:
    page.goto("/?words=a+red+circle&limit=50")
    other = page.evaluate(
        """() => [...document.querySelectorAll('a[aria-label]')].map((one) => [one.textContent, one.ariaLabel])
            .filter(([seen, name]) => !name.toLowerCase().includes(seen.trim().toLowerCase()))"""
    )
    assert other == []
    assert page.locator("a[aria-label]").count() > 100


def test_without_scripts_all_is_found_as_well(browser: Any, address: str, lake: Lake) -> None:
    with opened(browser, address, java_script_enabled=False, **DESK) as page:
        page.goto("/")
        page.get_by_text("image/clip", exact=True).click()
        page.get_by_role("searchbox").fill("a red circle")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Images").wait_for()
        assert "red-" in page.locator(".hit").first.inner_text()
        page.get_by_text("Everything").click()
        page.set_input_files("input[type=file]", str(lake.queries / "sounds" / "0.wav"))
        page.get_by_role("button", name="Find what is like it").click()
        page.get_by_role("heading", name="Sound").wait_for()
        assert "Like 0.wav" in page.locator(".summary").inner_text()
        page.get_by_role("link", name="Trace of").first.click()
        page.get_by_role("heading", name="Where this comes from").wait_for()


def test_a_page_of_the_lake_is_downloaded_not_opened(page: Any) -> None:
    page.goto("/?words=penguins+on+a+page&space=text/minilm")
    with page.expect_download() as downloaded:
        page.get_by_role("link", name="The file page.html").click()
    assert downloaded.value.suggested_filename == "page.html"


def test_a_token_is_asked_for_once(browser: Any, lake: Lake, pictures: Path) -> None:
    with running(lake.app(token=TOKEN)) as address:
        context = browser.new_context(base_url=address, **DESK)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        page.goto("/?words=a+red+circle&space=image/clip")
        page.get_by_label("Token").fill("not this one at all")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").wait_for()
        page.screenshot(path=str(pictures / "sign-in.png"))
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator(".hit").first.wait_for()
        assert page.url == f"{address}/?words=a+red+circle&space=image/clip"
        seen(page, ".hits.image img")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
        page.goto("/")
        page.get_by_label("Token").wait_for()
        context.close()
