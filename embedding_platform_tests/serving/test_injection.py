"""Names, captions, texts and filters that mean harm: they come out as the characters that they are."""

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedding_platform_tests.serving.conftest import (
    HOSTILE_CAPTION,
    HOSTILE_NAMES,
    HOSTILE_SOURCE,
    SCRIPT,
    Lake,
)

PAYLOADS = (
    SCRIPT,
    '"><img src=x onerror=alert(1)>',
    "' onfocus=alert(1) autofocus='",
    "</title></head><body onload=alert(1)>",
    "{{ 7*7 }}{% include 'base.html' %}",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "]]><svg onload=alert(1)>",
    "&lt;script&gt;",
    "\x00<script>",
)

EXPRESSIONS = (
    '" or id >= "',
    "') or 1 == 1 --",
    '"] or source in ["shapes',
    "%",
    "_",
    "\\",
    '\\" or true or "',
    "x' like '%",
    "\n or true",
    "{}",
)
"""What leaves a value of Milvus's filter language where values are pasted into it."""


class Elements(HTMLParser):
    """The elements of a page with their attributes, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: str) -> Elements:
    """No element or attribute that we did not write, and no link but to pages of ours and runs."""
    elements = Elements(page)
    for tag, attributes in elements.found:
        assert tag not in ("svg", "iframe", "object", "embed", "base", "style", "b") or (tag, attributes) == ("b", {})
        if tag == "script":
            assert attributes == {"src": "/page.js", "defer": None}
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "action", "poster"):
            if attributes.get(name):
                assert re.match(r"/(?!/)|#|http://127\.0\.0\.1:3000/runs/", str(attributes[name])), attributes
    return elements


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("field", ["words", "space", "source", "path_prefix", "after", "where", "limit", "unknown"])
def test_whatever_is_asked_is_shown_as_it_was_typed(client: TestClient, field: str, payload: str) -> None:
    answer = client.get("/", params={"words": "penguins", "space": "text/minilm", field: payload})
    assert answer.status_code in (200, 404, 422)
    elements = assert_harmless(answer.text)
    if field == "words" and answer.status_code == 200:
        (box,) = [attributes for tag, attributes in elements.found if attributes.get("id") == "words"]
        assert box["value"] == payload.replace("\x00", "\ufffd") or "\x00" in payload


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_of_uploads_are_shown_as_they_are(client: TestClient, payload: str) -> None:
    for suffix in (".txt", ".zip"):
        answer = client.post("/", files={"file": (payload + suffix, b"penguins swim")})
        assert answer.status_code in (200, 422)
        assert_harmless(answer.text)


def test_hostile_names_texts_and_sources_of_files_are_shown_as_they_are(client: TestClient) -> None:
    page = client.get("/", params={"words": "penguins", "space": "text/minilm", "limit": 50}).text
    elements = assert_harmless(page)
    for name in (*HOSTILE_NAMES, HOSTILE_SOURCE):
        assert " ".join(name.split()) in " ".join(elements.text.split())
    assert SCRIPT in elements.text
    assert "{{7*7}}" in elements.text
    assert html.escape(SCRIPT, quote=False).replace("'", "&#39;") in page


@pytest.mark.parametrize("space", ["image/clip", "image_text/clip"])
def test_hostile_captions_and_names_of_images_are_shown_as_they_are(client: TestClient, space: str) -> None:
    elements = assert_harmless(client.get("/", params={"words": "a penguin", "space": space, "limit": 100}).text)
    alternatives = [attributes["alt"] for tag, attributes in elements.found if tag == "img"]
    if space == "image_text/clip":
        assert HOSTILE_CAPTION in elements.text
        assert HOSTILE_CAPTION in alternatives
    else:
        assert 'x" onerror="alert(1)" y=".png' in alternatives


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_trace_passage_and_download_of_a_hostile_name(client: TestClient, hit: Any, lake: Lake, name: str) -> None:
    found = hit("text/minilm", name)
    for link in ("trace", "passage", "more_like"):
        elements = assert_harmless(client.get(found["links"][link]).text)
        assert " ".join(name.split()) in " ".join(elements.text.split())
    answer = client.get(found["links"]["media"])
    assert answer.content == (lake.media / HOSTILE_SOURCE / name).read_bytes()
    disposition = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[A-Za-z0-9._~%-]+", disposition)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("field", ["path_prefix", "where", "source", "role"])
def test_no_filter_lets_through_what_it_does_not_name(client: TestClient, field: str, expression: str) -> None:
    value = f"format={expression}" if field == "where" else expression
    answer = client.get("/api/search", params={"words": "x", "space": "image/clip", "limit": 100, field: value})
    if answer.status_code == 200:
        assert answer.json()["spaces"][0]["hits"] == []
    else:
        assert answer.status_code in (404, 422)
        assert "\n" not in answer.json()["error"]
    if field == "where":
        named = client.get(
            "/api/search", params={"words": "x", "space": "image/clip", "where": f"{expression}=1", "limit": 100}
        )
        assert named.status_code == 422 or named.json()["spaces"][0]["hits"] == []


def test_the_hostile_source_can_be_asked_for_by_its_name(client: TestClient) -> None:
    params = {"words": "penguins", "space": "text/minilm", "source": HOSTILE_SOURCE, "limit": 100}
    hits = client.get("/api/search", params=params).json()["spaces"][0]["hits"]
    assert {hit["source"] for hit in hits} == {HOSTILE_SOURCE}
    assert {hit["path"] for hit in hits} == {*HOSTILE_NAMES, "page.html"}


@pytest.mark.parametrize("message", PAYLOADS)
def test_error_pages_and_the_sign_in_form_escape_too(client: TestClient, lake: Lake, message: str) -> None:
    assert_harmless(client.get("/", params={"words": "x", "space": message}).text)
    locked = lake.client(token="a-token-of-some-length")
    assert_harmless(locked.get("/sign-in", params={"next": f"/{message}"}).text)
    assert_harmless(locked.post("/sign-in", data={"token": message, "next": message}).text)


def test_no_answer_sets_a_header_that_a_name_asked_for(client: TestClient) -> None:
    answer = client.get("/", params={"words": "x\r\nSet-Cookie: a=b"})
    assert "set-cookie" not in answer.headers
