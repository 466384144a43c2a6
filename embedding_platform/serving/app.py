"""The routes: pages for people, and beside them the same as JSON for programs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Header, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from embedding_platform.errors import MilvusError, PlatformError
from embedding_platform.lineage import RowTrace
from embedding_platform.platform import Platform
from embedding_platform.serving.access import HEADERS, Access, error
from embedding_platform.serving.answers import (
    Health,
    PassageAnswer,
    Problem,
    SearchAnswer,
    SpaceAnswer,
    run_page,
)
from embedding_platform.serving.filters import Narrowed, narrowed
from embedding_platform.serving.media import file_answer
from embedding_platform.serving.pages import add_pages, error_page
from embedding_platform.serving.refused import RefusedError
from embedding_platform.serving.service import Service

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "the request cannot be read",
        401: "the token is missing or wrong",
        403: "another site asked, a proxy did while no token is set, or the file lies outside the media root",
        404: "no such space, source or row",
        405: "this address knows no such method",
        408: "the request came to a halt",
        413: "the request is too large",
        421: "without a token this is served under the names of this machine alone",
        422: "the question makes no sense",
        500: "something went wrong inside the server",
        503: "Milvus does not answer, or too many searches or uploads are under way",
    }.items()
}

Modality = Annotated[str, Path(pattern="^[a-z_]{1,32}$", examples=["image"])]
Name = Annotated[str, Path(pattern="^[a-z0-9_]{1,64}$", examples=["clip"])]
RowId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 digits of 0-9 and a-f, as hits have it")]


def make_app(open_platform: Callable[[], Platform]) -> FastAPI:
    """The page and the API over one platform; `open_platform` is called once, and again when Milvus went away.

    Raises:
        PlatformError: if the platform cannot be opened.
    """
    service = Service(open_platform)
    app = FastAPI(
        title="embedding_platform",
        summary="Search over what the platform keeps in Milvus.",
        version="1",
        docs_url=None,
        redoc_url=None,
        responses=_PROBLEMS,
    )
    app.state.service = service
    _add_health(app, service)
    app.include_router(_api(service))
    add_pages(app, service)
    _add_handlers(app)
    app.add_middleware(Access, settings=service.settings)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> Health:
        """Whether the server and its Milvus answer; needs no token."""
        service.check_milvus()
        return Health(status="ok")


def _api(service: Service) -> APIRouter:
    # `Access` has seen to the token by then: this tells of it in the document.
    bearer = HTTPBearer(auto_error=False, description="needed where serving.token is set")
    api = APIRouter(dependencies=[Depends(bearer)])
    most = service.settings.most_hits
    usual = min(10, most)
    limit_field = Query(ge=1, le=most, description="hits of each space")

    @api.get("/api/spaces", tags=["search"])
    def spaces() -> list[SpaceAnswer]:
        """The published spaces, their sources, and what each can be asked with."""
        return service.spaces()

    @api.get("/api/search", tags=["search"])
    def search_by_words(
        words: Annotated[str, Query(min_length=1, max_length=2000, description="what you look for")],
        asked: Annotated[Narrowed, Depends(narrowed)],
        limit: Annotated[int, limit_field] = usual,
        hybrid: Annotated[bool, Query(description="fuse with full-text search where a space has it")] = False,
    ) -> SearchAnswer:
        """Search by words, in the spaces named or in all that understand words."""
        return service.search(service.words_query(words), asked.spaces, asked.filter, limit, words, hybrid)

    @api.post("/api/search", tags=["search"])
    def search_by_file(
        file: Annotated[UploadFile, File(description="a text, an image, sound or a video")],
        asked: Annotated[Narrowed, Depends(narrowed)],
        limit: Annotated[int, limit_field] = usual,
    ) -> SearchAnswer:
        """Search by a file: for what is like it, in the spaces named or in all that take its kind."""
        query = service.file_query(file.file, file.filename or "")
        return service.search(query, asked.spaces, asked.filter, limit)

    @api.get("/api/more_like/{modality}/{name}/{row_id}", tags=["search"])
    def more_like(
        modality: Modality, name: Name, row_id: RowId, limit: Annotated[int, limit_field] = usual
    ) -> SearchAnswer:
        """The rows nearest to a row of a space; no model runs."""
        return service.more_like(f"{modality}/{name}", row_id, limit)

    @api.get("/api/passage/{modality}/{name}/{row_id}", tags=["rows"])
    def passage(modality: Modality, name: Name, row_id: RowId) -> PassageAnswer:
        """A passage of text with what stands around it in its document."""
        return service.passage(f"{modality}/{name}", row_id)

    @api.get("/api/trace/{row_id}", tags=["rows"])
    def trace(row_id: RowId) -> list[RowTrace]:
        """A row in every space that holds it: its file, content hash, model, fingerprint, shard and run."""
        url = service.settings.dagster_url
        return [replace(found, run_page=run_page(url, found.run_id)) for found in service.traces(row_id)]

    types = ("application/octet-stream", "application/pdf", "image/*", "audio/*", "video/*")
    files: dict[str, Any] = {"content": {media_type: {} for media_type in types}}
    parts: dict[int | str, dict[str, Any]] = {
        200: {**files, "description": "the file"},
        206: {**files, "description": "the part that Range asks for"},
        304: {"description": "it is the one that If-None-Match names"},
        416: {"description": "Range asks for what lies beyond the end"},
    }
    pictures: dict[str, Any] = {"content": {"image/jpeg": {}, "image/png": {}}, "description": "the picture"}

    @api.head("/media/{modality}/{name}/{row_id}", include_in_schema=False)
    @api.get("/media/{modality}/{name}/{row_id}", tags=["rows"], response_class=Response, responses=parts)
    def media(
        request: Request,
        modality: Modality,
        name: Name,
        row_id: RowId,
        range: Annotated[str, Header()] = "",
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        """The file that a row lies in; a Range header asks for a part of it."""
        opened, path = service.media(f"{modality}/{name}", row_id)
        answer = file_answer(opened, path, range, if_none_match)
        if request.method == "HEAD":
            opened.file.close()
            return Response(status_code=answer.status_code, headers=dict(answer.headers))
        return answer

    @api.get("/preview/{modality}/{name}/{row_id}", tags=["rows"], response_class=Response, responses={200: pictures})
    def preview(modality: Modality, name: Name, row_id: RowId) -> Response:
        """A small picture: of an image, of the middle of a clip, of how loud a window of sound is."""
        payload, media_type = service.preview(f"{modality}/{name}", row_id)
        return Response(payload, media_type=media_type, headers={"Cache-Control": "private, max-age=86400"})

    return api


def _add_handlers(app: FastAPI) -> None:
    def answer(request: Request, status: int, message: str) -> Response:
        line = " ".join(message.split())
        return error(status, line) if _is_for_programs(request) else error_page(status, line)

    @app.exception_handler(PlatformError)
    def _platform_error(request: Request, problem: PlatformError) -> Response:
        if isinstance(problem, RefusedError):
            return answer(request, problem.status, str(problem))
        return answer(request, 503 if isinstance(problem, MilvusError) else 422, str(problem))

    @app.exception_handler(HTTPException)
    def _http_error(request: Request, problem: HTTPException) -> Response:
        known = {404: "there is nothing at this address", 405: f"{request.method} is not understood at this address"}
        response = answer(request, problem.status_code, known.get(problem.status_code, str(problem.detail)))
        response.headers.update(problem.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, problem: RequestValidationError) -> Response:
        said = (f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in problem.errors())
        return answer(request, 422, "; ".join(said)[:1000])

    @app.exception_handler(Exception)
    def _unforeseen(request: Request, problem: Exception) -> Response:
        response = answer(request, 500, "something went wrong inside the server; its log says what")
        # This answer does not pass by `Access`.
        response.headers.update(HEADERS)
        return response


def _is_for_programs(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/media/", "/preview/", "/healthz", "/openapi.json"))
