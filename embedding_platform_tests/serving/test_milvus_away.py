"""A Milvus server that goes and comes back, as those who ask the page meanwhile see it."""

import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from embedding_platform.platform import Platform
from embedding_platform.serving.app import make_app
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.milvus_server import MilvusServer
from embedding_platform_tests.serving.conftest import ADDRESS

PATIENCE_SECONDS = 600.0


@pytest.mark.server
@pytest.mark.long
def test_while_milvus_is_away_everybody_hears_so_and_it_is_found_again(
    tmp_path: Path, mortal_server: MilvusServer
) -> None:
    (tmp_path / "media").mkdir()
    milvus = {"uri": mortal_server.uri, "token": mortal_server.token}
    platform = open_platform(tmp_path, spaces=["text/minilm"], milvus=milvus)
    client = TestClient(make_app(lambda: Platform(platform.settings)), base_url=ADDRESS)
    assert client.get("/healthz").status_code == 200
    mortal_server.kill()
    # What was heard within the last second is believed.
    time.sleep(1.1)
    for path in ("/api/spaces", "/api/search?words=x", "/healthz"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.json()["error"].startswith(("no Milvus answers at ", "Milvus could not "))
        assert mortal_server.token not in answer.text
    mortal_server.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while client.get("/api/spaces").status_code != 200:
        assert time.monotonic() < deadline, "Milvus is not found again"
        time.sleep(0.5)
