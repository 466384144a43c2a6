"""Who is let in: tokens, cookies, names in addresses, other sites, and bodies that are too large."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from embedding_platform.errors import PlatformError
from embedding_platform.serving import access
from embedding_platform.serving.access import COOKIE, is_own_page, refuse_open_door
from embedding_platform.settings import ServingSettings, load_settings, masked
from embedding_platform_tests.serving.conftest import TOKEN, Lake

BROWSER = {"Accept": "text/html,*/*"}
PRIVATE = ("/", "/api/spaces", "/api/search?words=x", "/openapi.json", "/page.js", f"/trace/{'0' * 32}", "/nothing")


@pytest.fixture(scope="module")
def locked(lake: Lake) -> TestClient:
    """A client of a server that asks for a token."""
    return lake.client(token=TOKEN)


@pytest.fixture(autouse=True)
def _signed_out(locked: TestClient) -> Iterator[None]:
    yield
    locked.cookies.clear()


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_nothing_is_told_without_the_token(locked: TestClient, path: str, header: str) -> None:
    answer = locked.get(path, headers={"Authorization": header.encode("latin-1")} if header else {})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": "the token is missing or wrong; send `Authorization: Bearer TOKEN`"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_program_comes_in_by_its_token(locked: TestClient, scheme: str) -> None:
    assert locked.get("/api/spaces", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/sign-in", "/style.css", "/icon.svg"])
def test_what_tells_nothing_needs_no_token(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_a_person_signs_in_goes_on_and_signs_out(locked: TestClient) -> None:
    asked = locked.get("/?words=bees&space=text/minilm", headers=BROWSER)
    assert asked.status_code == 303
    assert asked.headers["location"] == "/sign-in?next=%2F%3Fwords%3Dbees%26space%3Dtext%2Fminilm"
    form = locked.get(asked.headers["location"])
    assert 'value="/?words=bees&amp;space=text/minilm"' in form.text
    wrong = locked.post("/sign-in", data={"token": "another", "next": "/"})
    assert wrong.status_code == 401
    assert "not the token" in wrong.text
    assert COOKIE not in locked.cookies
    right = locked.post("/sign-in", data={"token": TOKEN, "next": "/?words=bees"})
    assert (right.status_code, right.headers["location"]) == (303, "/?words=bees")
    cookie = right.headers["set-cookie"]
    assert TOKEN not in cookie
    for flag in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert flag in cookie
    assert "Secure" not in cookie
    assert locked.get("/api/spaces").status_code == 200
    assert "Sign out" in locked.get("/", headers=BROWSER).text
    locked.post("/sign-out")
    assert locked.get("/api/spaces").status_code == 401


def test_the_cookie_is_for_https_alone_where_that_is_spoken(lake: Lake) -> None:
    client = TestClient(lake.app(token=TOKEN), base_url="https://search.example.org", follow_redirects=False)
    assert "Secure" in client.post("/sign-in", data={"token": TOKEN}).headers["set-cookie"]


@pytest.mark.parametrize("change", ["late", "longer", "other token", "no mac", "nonsense"])
def test_a_cookie_that_we_did_not_make_opens_nothing(
    locked: TestClient, lake: Lake, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    locked.post("/sign-in", data={"token": TOKEN})
    until, _, mac = locked.cookies[COOKIE].partition(".")
    given = {
        "late": f"{until}.{mac}",
        "longer": f"{int(until) + 1}.{mac}",
        "other token": f"{until}.{access._mac('another-token-0123', until)}",
        "no mac": f"{until}.",
        "nonsense": "x.y.z",
    }[change]
    if change == "late":
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + access.SIGNED_IN_SECONDS + 1)
    locked.cookies.clear()
    assert locked.get("/api/spaces", headers={"Cookie": f"{COOKIE}={given}"}).status_code == 401


@pytest.mark.parametrize(
    ("target", "own"),
    [
        ("/", True),
        ("/?words=a%20b&space=image/clip", True),
        ("/trace/0123", True),
        ("//evil.example", False),
        ("/\\evil.example", False),
        ("https://evil.example", False),
        ("javascript:alert(1)", False),
        ("/a\r\nSet-Cookie: b=c", False),
        ("/\t/evil.example", False),
        ("", False),
    ],
)
def test_signing_in_leads_to_a_page_of_ours(locked: TestClient, target: str, own: bool) -> None:
    assert is_own_page(target) == own
    answer = locked.post("/sign-in", data={"token": TOKEN, "next": target})
    assert answer.headers["location"] == (target if own else "/")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("127.0.0.2", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1@evil.example", 421),
        ("192.168.0.7", 421),
        ("", 421),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(client: TestClient, host: str, status: int) -> None:
    assert client.get("/api/spaces", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
)
@pytest.mark.parametrize("path", ["/", "/api/spaces", "/healthz"])
def test_without_a_token_nothing_is_answered_through_a_proxy_that_says_so(
    client: TestClient, locked: TestClient, path: str, header: str
) -> None:
    passed_on = {header: "for=192.0.2.7"}
    refused = client.get(path, headers=passed_on)
    assert refused.status_code == 403
    assert "a proxy passed this on, and serving.token is not set" in refused.text
    assert locked.get(path, headers={**passed_on, "Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_with_a_token_any_name_is_answered(locked: TestClient) -> None:
    headers = {"Host": "search.example.org", "Authorization": f"Bearer {TOKEN}"}
    assert locked.get("/api/spaces", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "site", "mode", "dest", "refused"),
    [
        ("GET", "/", "none", "navigate", "document", False),
        ("GET", "/", "same-origin", "navigate", "document", False),
        ("GET", "/", "cross-site", "navigate", "document", False),
        ("GET", "/", "same-site", "navigate", "document", False),
        ("GET", "/", "cross-site", "navigate", "iframe", True),
        ("GET", "/api/spaces", "cross-site", "no-cors", "image", True),
        ("GET", "/api/spaces", "cross-site", "cors", "empty", True),
        ("POST", "/sign-in", "cross-site", "navigate", "document", True),
        ("POST", "/api/search", "same-site", "cors", "empty", True),
    ],
)
def test_pages_of_other_sites_may_link_here_and_nothing_else(
    client: TestClient, method: str, path: str, site: str, mode: str, dest: str, refused: bool
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    assert (client.request(method, path, headers=headers).status_code == 403) == refused


@pytest.mark.parametrize("path", ["/", "/api/spaces", "/nothing", "/sign-in", "/healthz", "/trace/x"])
def test_every_answer_says_what_a_browser_may_do_with_it(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def body_of(size: int) -> Iterator[bytes]:
    """A form with a file of so many bytes, piece by piece, so that its length is declared nowhere."""
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    for _ in range(size // 2**16):
        yield b"a" * 2**16
    yield b"\r\n--x--\r\n"


@pytest.mark.parametrize("path", ["/api/search", "/"])
def test_an_upload_ends_at_its_limit_whatever_length_it_declares(lake: Lake, path: str) -> None:
    client = lake.client(upload_megabytes=1)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    allowed = client.post(path, content=body_of(2**19), headers=headers)
    assert allowed.status_code == 200
    refused = client.post(path, content=body_of(2**22), headers=headers)
    assert refused.status_code == 413
    assert "larger than 1 MiB" in refused.text
    lying = client.post(path, content=body_of(2**22), headers={**headers, "Content-Length": "100"})
    assert lying.status_code == 413


def test_a_body_that_comes_to_a_halt_gives_its_place_away(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SECONDS_BETWEEN_PIECES", 0.1)
    pieces = [body for _, body in zip(range(2), body_of(2**16), strict=False)]
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": True}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/search",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")],
    }
    asyncio.run(lake.app()(scope, receive, send))
    assert said[0]["status"] == 408
    assert b"the request came to a halt" in said[1]["body"]


def test_uploads_beyond_the_most_are_told_to_come_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST_UPLOADS", 2)
    client = lake.client()
    begun, may_end = threading.Barrier(3), threading.Event()

    def slow() -> Iterator[bytes]:
        begun.wait(30)
        yield from body_of(0)
        may_end.wait(30)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(client.post("/api/search", content=slow(), headers=headers).status_code)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    begun.wait(30)
    try:
        for path in ("/", "/api/search"):
            refused = client.post(path, files={"file": ("a.txt", b"bees")})
            assert refused.status_code == 503
            assert "too many files are being sent" in refused.text
        assert client.get("/api/spaces").status_code == 200
    finally:
        may_end.set()
        for thread in threads:
            thread.join()
    assert client.post("/api/search", files={"file": ("a.txt", b"bees")}).status_code == 200


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/api/spaces", "/nothing"])
def test_other_bodies_are_small(locked: TestClient, path: str) -> None:
    form = {"token": "x" * 2**17}
    answer = locked.post(path, data=form, headers={"Authorization": f"Bearer {TOKEN}"})
    # What no route reads is not kept either.
    assert answer.status_code == {"/sign-in": 413, "/sign-out": 303, "/api/spaces": 405, "/nothing": 404}[path]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "search.example.org", ""])
def test_without_a_token_other_machines_are_not_let_in(host: str) -> None:
    with pytest.raises(PlatformError, match="token is not set") as refused:
        refuse_open_door(host, ServingSettings())
    assert len(str(refused.value).splitlines()) == 1
    refuse_open_door(host, ServingSettings(token=TOKEN))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_without_a_token_this_machine_is(host: str) -> None:
    refuse_open_door(host, ServingSettings())


@pytest.mark.parametrize("token", ["short", "with a space in it, long", "ä" * 16, "line\nbreak-0123456789"])
def test_a_token_that_is_guessed_or_cannot_be_sent_is_none(
    token: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError):
        ServingSettings(token=token)  # type: ignore[arg-type]
    monkeypatch.setenv("EMBEDDING_PLATFORM_SERVING__TOKEN", token)
    with pytest.raises(PlatformError, match="16 or more") as refused:
        load_settings(base=tmp_path)
    assert token not in str(refused.value)
    assert re.search(r"serving\.token = '?\*", str(refused.value))


def test_the_token_is_masked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDING_PLATFORM_SERVING__TOKEN", TOKEN)
    settings = load_settings(base=tmp_path)
    assert TOKEN not in str(masked(settings))
    assert TOKEN not in repr(settings)
    assert masked(settings)["serving"]["token"] == "*****"
