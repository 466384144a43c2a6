"""The pages, rendered here from templates that escape whatever they are given."""

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field, StringConstraints
from starlette.responses import HTMLResponse, RedirectResponse

from embedding_platform.errors import MilvusError, PlatformError
from embedding_platform.serving.access import COOKIE, is_own_page, same_token, sign_in
from embedding_platform.serving.answers import SearchAnswer, run_page
from embedding_platform.serving.filters import Narrowed, narrowed
from embedding_platform.serving.passages import excerpt, marked
from embedding_platform.serving.refused import RefusedError
from embedding_platform.serving.service import Service
from embedding_platform.spaces import MODALITIES

_Words = Annotated[str, StringConstraints(max_length=2000)]
_Text = Annotated[str, StringConstraints(max_length=1024)]
_Texts = Annotated[list[_Text] | None, Field(max_length=50)]
_Moment = Annotated[str, StringConstraints(max_length=40)]
"""What the fields of the form may hold, in an address or in a body."""

_NUMBERS_OF_HITS = (5, 10, 25, 50, 100)

USUAL_HITS = 10
USUAL_SIMILAR = 12
"""Hits where nobody says how many, or `serving.most_hits` where that is less."""

_CONDITION = re.compile(r'(?:"(?:[^"\\]|\\.)*"|\S)+')
"""What spaces part, but for those in double quotes."""

MOST_SOURCES = 50
"""Of the form's list, beside those that are chosen; others are typed."""

SHOWN_CHARACTERS = 480
"""Of a passage in a list of hits."""

_ASSETS = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_TITLES = {
    "text": "Passages",
    "image": "Images",
    "image_text": "Images with captions",
    "audio": "Sound",
    "video": "Clips",
}


def add_pages(app: FastAPI, service: Service) -> None:
    """Add the pages, which are left out of the OpenAPI document."""

    most = service.settings.most_hits

    def page(fields: PageFields, **given: Any) -> HTMLResponse:
        numbers = sorted({number for number in (*_NUMBERS_OF_HITS, limit_of(fields)) if 1 <= number <= most})
        spaces = service.spaces()
        sources = sorted({source for space in spaces for source in space.sources})
        listed = sorted({*fields.source, *sources[:MOST_SOURCES]})
        given |= {"fields": fields, "limit": limit_of(fields), "numbers": numbers}
        given |= {"spaces": spaces, "sources": listed, "unlisted": len(set(sources) - set(listed))}
        return _page("search.html", service, **given)

    def limit_of(fields: PageFields) -> int:
        return min(USUAL_HITS, most) if fields.limit is None else fields.limit

    def answered(fields: PageFields, find: Callable[[], SearchAnswer], **given: Any) -> HTMLResponse:
        """The form with what was found, or with what is wrong about the question."""
        try:
            return page(fields, answer=find(), **given)
        except MilvusError:
            raise
        except PlatformError as problem:
            status = problem.status if isinstance(problem, RefusedError) else 422
            return page(fields, status=status, answer=None, fault=str(problem))

    @app.get("/", include_in_schema=False)
    def search_page(fields: Annotated[PageFields, Depends()]) -> Response:
        """The form, and the hits of what was asked."""
        if not fields.words.strip():
            return page(fields, answer=None)

        def find() -> SearchAnswer:
            query, asked = service.words_query(fields.words), fields.asked
            return service.search(query, asked.spaces, asked.filter, limit_of(fields), fields.words, fields.hybrid)

        return answered(fields, find)

    @app.post("/", include_in_schema=False)
    def search_by_file(
        file: Annotated[UploadFile | None, File()] = None,
        space: Annotated[_Texts, Form()] = None,
        source: Annotated[_Texts, Form()] = None,
        path_prefix: Annotated[_Text, Form()] = "",
        after: Annotated[_Moment, Form()] = "",
        before: Annotated[_Moment, Form()] = "",
        where: Annotated[_Text, Form()] = "",
        limit: Annotated[int | None, Form()] = None,
    ) -> Response:
        """The hits of a file that was dropped or chosen."""
        fields = PageFields("", space, source, path_prefix, after, before, where, limit)

        def find() -> SearchAnswer:
            if file is None or not file.filename:
                raise RefusedError(422, "no file was chosen; choose one, or search by words")
            asked = fields.asked
            query = service.file_query(file.file, file.filename)
            return service.search(query, asked.spaces, asked.filter, limit_of(fields))

        return answered(fields, find, by_file=True)

    @app.get("/more-like/{modality}/{name}/{row_id}", include_in_schema=False)
    def more_like(modality: str, name: str, row_id: str, limit: int | None = None) -> Response:
        """The rows nearest to one that was found."""
        space = f"{modality}/{name}"
        row = service.row(space, row_id)
        found = service.more_like(space, row_id, min(USUAL_SIMILAR, most) if limit is None else limit)
        # Words that are typed next are for a space that takes them.
        takes_words = any(one.key == space and "text" in one.takes for one in service.spaces())
        fields = PageFields(space=[space] if takes_words else [])
        return page(fields, answer=found, like=f"{row['source']}/{row['path']}")

    @app.get("/passage/{modality}/{name}/{row_id}", include_in_schema=False)
    def passage(modality: str, name: str, row_id: str, words: _Words = "") -> Response:
        """A passage in its document."""
        found = service.passage(f"{modality}/{name}", row_id)
        return _page("passage.html", service, passage=found, words=words, row=f"{modality}/{name}/{row_id}", id=row_id)

    @app.get("/trace/{row_id}", include_in_schema=False)
    def trace(row_id: str) -> Response:
        """Where a row comes from."""
        traces = [(found, run_page(service.settings.dagster_url, found.run_id)) for found in service.traces(row_id)]
        return _page("trace.html", service, traces=traces, id=row_id)

    @app.get("/sign-in", include_in_schema=False)
    def sign_in_form(next: str = "/") -> Response:
        """The form that asks for the token."""
        if not service.settings.token.get_secret_value():
            return RedirectResponse("/", 303)
        return _page("sign_in.html", service, next=_checked(next), wrong=False)

    @app.post("/sign-in", include_in_schema=False)
    def signed_in(request: Request, token: Annotated[str, Form()] = "", next: Annotated[str, Form()] = "/") -> Response:
        """The way in, with a cookie, where the token is right."""
        right = service.settings.token.get_secret_value()
        if not right or not same_token(token.strip(), right):
            return _page("sign_in.html", service, status=401, next=_checked(next), wrong=True)
        response = RedirectResponse(_checked(next), 303)
        sign_in(response, right, secure=request.url.scheme == "https")
        return response

    @app.post("/sign-out", include_in_schema=False)
    def signed_out() -> Response:
        """The way out."""
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    for asset in _ASSETS:
        app.get(f"/{asset}", include_in_schema=False)(_sender(asset))


class PageFields:
    """The fields of the search form, as a browser sends them: those left empty come as ""."""

    def __init__(
        self,
        words: _Words = "",
        space: Annotated[_Texts, Query()] = None,
        source: Annotated[_Texts, Query()] = None,
        path_prefix: _Text = "",
        after: _Moment = "",
        before: _Moment = "",
        where: _Text = "",
        limit: int | None = None,
        hybrid: bool = False,
    ) -> None:
        self.words = words
        self.space = [name for name in space or () if name]
        self.source = [name for name in source or () if name]
        self.path_prefix = path_prefix
        self.after = after
        self.before = before
        self.where = where
        self.limit = limit
        self.hybrid = hybrid

    @property
    def is_narrowed(self) -> bool:
        """Whether a filter is set, which the page then shows."""
        return any((self.source, self.path_prefix, self.after, self.before, self.where.strip()))

    @property
    def asked(self) -> Narrowed:
        """Spaces and filter.

        Raises:
            PlatformError: if one of the fields makes no sense.
        """
        return narrowed(
            space=self.space,
            source=self.source,
            path_prefix=self.path_prefix,
            after=self.after,
            before=self.before,
            where=_CONDITION.findall(self.where),
        )


def error_page(status: int, message: str) -> HTMLResponse:
    """A mistake told to a person."""
    html = _templates().get_template("error.html").render(status=status, message=message, may_sign_out=False)
    return HTMLResponse(html, status)


def clock(seconds: float) -> str:
    """Seconds as players show them: "1:02.5"; without a fraction where there is none."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{rest:04.1f}".removesuffix(".0")
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def _page(template: str, service: Service, status: int = 200, **given: Any) -> HTMLResponse:
    settings = service.settings
    html = _templates().get_template(template).render(may_sign_out=bool(settings.token.get_secret_value()), **given)
    return HTMLResponse(html, status)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("embedding_platform.serving", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        "marked": marked,
        "excerpt": lambda text, words: excerpt(text, words, SHOWN_CHARACTERS),
        "title_of": lambda modality: _TITLES.get(modality, modality),
        "unit_of": lambda modality: MODALITIES[modality].unit,
        "clock": clock,
    }
    return templates


def _sender(asset: str) -> Callable[[Request], Response]:
    payload = resources.files("embedding_platform.serving").joinpath("templates", asset).read_bytes()
    mark = f'"{hashlib.sha256(payload).hexdigest()[:32]}"'
    headers = {"ETag": mark, "Cache-Control": "no-cache"}

    def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers=headers)
        return Response(payload, media_type=_ASSETS[asset], headers=headers)

    return send


def _checked(target: str) -> str:
    return target if is_own_page(target) else "/"
