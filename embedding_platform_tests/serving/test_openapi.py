"""The OpenAPI document, and requests that schemathesis makes of it: every answer is one that it names."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from embedding_platform_tests.serving.conftest import TOKEN, Lake

ROUTES = (
    ("/healthz", "GET"),
    ("/api/spaces", "GET"),
    ("/api/search", "GET"),
    ("/api/search", "POST"),
    ("/api/more_like/{modality}/{name}/{row_id}", "GET"),
    ("/api/passage/{modality}/{name}/{row_id}", "GET"),
    ("/api/trace/{row_id}", "GET"),
    ("/media/{modality}/{name}/{row_id}", "GET"),
    ("/preview/{modality}/{name}/{row_id}", "GET"),
)
SPACES = ("text/minilm", "image/resnet50", "image/clip", "image_text/clip", "audio/whisper", "video/perceiver")
EXAMPLES = 30
MANY_EXAMPLES = 500
SIGNED_IN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def document(lake: Lake) -> Any:
    """The document as schemathesis reads it, of a server that asks for a token."""
    app = lake.app(token=TOKEN)
    # A model that is loaded by a first search may take longer than schemathesis waits.
    app.state.service.warm()
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=SIGNED_IN)


def ask(document: Any, path: str, method: str, examples: int) -> None:
    """Make requests as the document has them and as it does not, and compare each answer with the document.

    Of the checks of schemathesis: no server error, a status, type and shape that the document
    names, nothing that the document forbids taken, and nothing told without the token. A search
    may refuse more than a document can forbid: a day that no month has, a file of no known kind.
    """
    route = document[path][method]
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")] if path == "/api/search" else []
    cases = st.one_of(*(route.as_strategy(generation_mode=mode) for mode in GenerationMode))

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(cases)
    def answered(case: Any) -> None:
        answer = case.call(headers=SIGNED_IN)
        case.validate_response(answer, headers=SIGNED_IN, excluded_checks=excluded)
        assert "Traceback" not in answer.text

    answered()


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_every_answer_is_one_that_the_document_names(document: Any, path: str, method: str) -> None:
    ask(document, path, method, EXAMPLES)


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/api/more_like/{modality}/{name}/{row_id}", {200}),
        ("/api/passage/{modality}/{name}/{row_id}", {200, 404}),
        ("/api/trace/{row_id}", {200}),
        ("/media/{modality}/{name}/{row_id}", {200, 206, 304, 416}),
        ("/preview/{modality}/{name}/{row_id}", {200, 404}),
    ],
)
def test_so_are_the_answers_about_rows_that_there_are(document: Any, hit: Any, path: str, statuses: set[int]) -> None:
    met = set()
    for space, beginning in (*((space, "") for space in SPACES), ("text/minilm", "page.html")):
        modality, name = space.split("/")
        own = {"modality": modality, "name": name, "row_id": hit(space, beginning)["id"]}
        asked = [{}]
        if path.startswith("/media/"):
            mark = document[path]["GET"].Case(path_parameters=own).call(headers=SIGNED_IN).headers["etag"][0]
            asked += [{"Range": "bytes=2-9"}, {"Range": f"bytes={10**12}-"}, {"If-None-Match": mark}]
        for headers in asked:
            case = document[path]["GET"].Case(path_parameters=own, headers=headers)
            answer = case.call(headers=SIGNED_IN)
            case.validate_response(answer, headers=SIGNED_IN)
            met.add(answer.status_code)
    assert met == statuses


@pytest.mark.long
@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_so_are_the_answers_to_many_more(document: Any, path: str, method: str) -> None:
    ask(document, path, method, MANY_EXAMPLES)


def test_the_document_names_every_route_of_the_api_and_no_page(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    named = {(path, method.upper()) for path, routes in document["paths"].items() for method in routes}
    assert named == set(ROUTES)
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for routes in document["paths"].values():
        for route in routes.values():
            assert route["description"]
            for status in (400, 401, 403, 404, 405, 408, 413, 421, 422, 500, 503):
                assert "Problem" in str(route["responses"][str(status)])
    assert "RowTrace" in str(document["paths"]["/api/trace/{row_id}"]["get"]["responses"]["200"])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_of_a_framework_asks_other_sites_for_scripts(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
