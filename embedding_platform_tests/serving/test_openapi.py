"""The OpenAPI document, and requests that schemathesis makes of it: every answer is one that it names."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from starlette.testclient import TestClient

from embedding_platform_tests.serving.conftest import TOKEN, Lake

EXAMPLES = 25
MANY_EXAMPLES = 400
SIGNED_IN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="session")
def document(lake: Lake) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", lake.app(token=TOKEN), headers=SIGNED_IN)


@pytest.fixture
def api(document: Any) -> Any:
    return document


schema = schemathesis.pytest.from_fixture("api")
BOUNDED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def check(case: Any) -> None:
    """The answer is of a status, a type and a shape that the document names, and no error of ours."""
    answer = case.call(headers=SIGNED_IN)
    case.validate_response(answer, headers=SIGNED_IN)
    assert "Traceback" not in answer.text


@schema.parametrize()
@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate], **BOUNDED)
def test_every_answer_is_one_that_the_document_names(case: Any) -> None:
    check(case)


@pytest.mark.long
@schema.parametrize()
@settings(max_examples=MANY_EXAMPLES, **BOUNDED)
def test_so_are_the_answers_to_many_more(case: Any) -> None:
    check(case)


def test_the_document_names_every_route_of_the_api_and_no_page(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {(path, method) for path, routes in document["paths"].items() for method in routes} == {
        ("/healthz", "get"),
        ("/api/spaces", "get"),
        ("/api/search", "get"),
        ("/api/search", "post"),
        ("/api/more_like/{modality}/{name}/{row_id}", "get"),
        ("/api/passage/{modality}/{name}/{row_id}", "get"),
        ("/api/trace/{row_id}", "get"),
        ("/media/{modality}/{name}/{row_id}", "get"),
        ("/preview/{modality}/{name}/{row_id}", "get"),
    }
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for routes in document["paths"].values():
        for route in routes.values():
            assert route["description"]
            assert "Problem" in str(route["responses"]["422"])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_of_a_framework_asks_other_sites_for_scripts(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
