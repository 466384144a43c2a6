"""Who may ask, from where, and how much: what is decided of a request before any route sees it."""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_platform.errors import PlatformError
from embedding_platform.settings import ServingSettings

COOKIE = "embedding_platform"

SIGNED_IN_SECONDS = 30 * 24 * 3600

OPEN_PATHS = frozenset({"/healthz", "/sign-in", "/style.css", "/icon.svg"})
"""What is shown without a token: it tells nothing about the media."""

PROXY_HEADERS = frozenset(
    {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-server", "x-real-ip"}
)
"""What proxies add to a request that they pass on; not all of them do, nginx only if told to."""

UPLOAD_PATHS = frozenset({"/", "/api/search"})

MOST_UPLOADS = 8
"""Files that are sent or searched by at once, since each lies on the disk meanwhile, twice while it is decoded."""

SECONDS_BETWEEN_PIECES = 30.0
"""How long a request may fall silent in the middle of its body, before its place is given to another."""

SMALL_BODY_BYTES = 64 * 2**10

_FORM_BYTES = 64 * 2**10
"""What the fields and boundaries of a form may take beside the file."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; "
    "script-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer that does not set them itself."""


def refuse_open_door(host: str, settings: ServingSettings) -> None:
    """Refuse to listen where other machines reach it while no token is set.

    Raises:
        PlatformError: naming the setting.
    """
    if not settings.token.get_secret_value() and not is_loopback(host):
        raise PlatformError(
            f"host {host} lets other machines in, and serving.token is not set; set "
            "EMBEDDING_PLATFORM_SERVING__TOKEN, or leave the host at 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host, as a name or an address, is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_page(target: str) -> bool:
    """Whether a place to go on to after signing in is a path of this server."""
    return bool(re.fullmatch(r"/(?![/\\])[^\\\x00-\x20\x7f]*", target))


class Access:
    """Lets a request in that shows the token, or comes from this machine where none is set.

    Where one is set, a program sends it as `Authorization: Bearer`, and a browser has a cookie
    that `sign_in` made of it. Without one, the name in the address must be this machine's, or a
    web site could have its own name point here and read all with its visitors' browsers; nor may
    a proxy say that it passes the request on, since what it passes on came from elsewhere.
    """

    def __init__(self, app: ASGIApp, settings: ServingSettings) -> None:
        self._app = app
        self._settings = settings
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope)
        refusal = self._refusal(request)
        guarded = _with_headers(send)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        is_upload = request.method == "POST" and request.url.path in UPLOAD_PATHS
        if is_upload and self._uploads >= MOST_UPLOADS:
            await error(503, "too many files are being sent; try again in a moment")(scope, receive, guarded)
            return
        self._uploads += is_upload
        try:
            await self._app(scope, self._bounded(request, receive), guarded)
        finally:
            self._uploads -= is_upload

    def _refusal(self, request: Request) -> Response | None:
        if _is_taken_from_elsewhere(request.headers, request.method):
            return error(403, "another web site asked for this; open it from its own page")
        token = self._settings.token.get_secret_value()
        if not token:
            if not is_loopback(_host_name(request.headers.get("host", ""))):
                return error(
                    421, "without serving.token this is served as localhost alone; open it by that name, or set a token"
                )
            if not PROXY_HEADERS.isdisjoint(request.headers):
                return error(403, "a proxy passed this on, and serving.token is not set; set it, or ask directly")
            return None
        if request.url.path in OPEN_PATHS or _shows_token(request, token):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/sign-in?next={quote(wanted, safe='')}", 303)
        return error(401, "the token is missing or wrong; send `Authorization: Bearer TOKEN`", bearer=True)

    def _bounded(self, request: Request, receive: Receive) -> Receive:
        """The body up to its limit, counted as it comes, since what is declared may be wrong, or never come."""
        upload = self._settings.upload_megabytes * 2**20 + _FORM_BYTES
        most = upload if request.url.path in UPLOAD_PATHS else SMALL_BODY_BYTES
        received, is_whole = 0, False

        async def counted() -> Message:
            nonlocal received, is_whole
            try:
                # After the body nothing comes but that the client goes away.
                async with asyncio.timeout(None if is_whole else SECONDS_BETWEEN_PIECES):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request came to a halt; send it again") from None
            is_whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, f"the request is larger than {most // 2**20 or '0.06'} MiB; send less")
            return message

        return counted


def error(status: int, message: str, bearer: bool = False) -> JSONResponse:
    """A mistake told to a program: one line, and nothing of the inside."""
    headers = {"WWW-Authenticate": "Bearer"} if bearer else None
    return JSONResponse({"error": message}, status, headers)


def same_token(given: str, token: str) -> bool:
    """Whether two tokens are the same, in a time that does not tell how much of them is."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def sign_in(response: Response, token: str, secure: bool) -> None:
    """Give a browser the cookie that stands for the token for SIGNED_IN_SECONDS.

    It holds the time at which it ends, and a MAC of that by the token: another token ends all.
    """
    until = str(int(time.time()) + SIGNED_IN_SECONDS)
    response.set_cookie(
        COOKIE,
        f"{until}.{_mac(token, until)}",
        max_age=SIGNED_IN_SECONDS,
        httponly=True,
        samesite="strict",
        secure=secure,
    )


def _shows_token(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return same_token(given.strip(), token)
    until, _, mac = request.cookies.get(COOKIE, "").partition(".")
    return same_token(mac, _mac(token, until)) and bool(re.fullmatch("[0-9]{1,12}", until)) and int(until) > time.time()


def _mac(token: str, until: str) -> str:
    return hmac.new(token.encode(), f"signed in until {until}".encode(), hashlib.sha256).hexdigest()


def _host_name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([^:\[\]]+)(?::\d+)?", host)
    return (found[1] or found[2]) if found else ""


def _is_taken_from_elsewhere(headers: Headers, method: str) -> bool:
    """Whether a browser asks on behalf of another site's page for anything but to show a page of ours."""
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    opens_page = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (method == "GET" and opens_page)


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return guarded
