"""The webhook: what it gets, and that one that is away, slow or wrong costs a line and little time."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from embedding_platform.alerts import post
from embedding_platform.errors import PlatformError

SECRET = "T0P-S3CRET"

PATIENCE_SECONDS = 60.0
"""For who answers."""


class Webhook(HTTPServer):
    """An address that keeps what is posted to it, and answers with `status`."""

    def __init__(self) -> None:
        self.taken: list[dict[str, str]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        self.server.taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", self.server.address)
        self.end_headers()

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def mute() -> Iterator[str]:
    """An address that takes the call and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}"


def test_it_gets_the_content_as_json(webhook: Webhook) -> None:
    post(webhook.address, {"source": "Überfall", "mend": "do"}, PATIENCE_SECONDS)
    assert webhook.taken == [{"source": "Überfall", "mend": "do"}]


@pytest.mark.parametrize("status", [302, 400, 403, 500])
def test_a_refusal_is_told_without_the_address(webhook: Webhook, status: int) -> None:
    webhook.status = status
    refused(webhook.address, f"it answered {status}")


def test_nobody_there_is_told_without_the_address() -> None:
    refused(f"http://127.0.0.1:9/{SECRET}", "ConnectionRefusedError")


def test_one_that_never_answers_is_given_up(mute: str) -> None:
    refused(mute, "TimeoutError", seconds=0.3)


def test_what_is_no_address_is_told_without_it() -> None:
    refused(f"nowhere:{SECRET}", "alerts.webhook")


def refused(address: str, part: str, seconds: float = PATIENCE_SECONDS) -> None:
    with pytest.raises(PlatformError) as caught:
        post(address, {"text": "x"}, seconds)
    assert part in str(caught.value)
    assert SECRET not in str(caught.value)
