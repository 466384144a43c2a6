"""A real HTTP server that speaks OpenAI's embeddings protocol, keeps its limits, and can be told to fail."""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Request:
    """What a client posted."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def texts(self) -> list[str]:
        return self.body["input"]


@dataclass(frozen=True)
class Reply:
    """What is sent back; of a reply that is `cut`, the connection closes before its end."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False


Answer = Callable[["EmbeddingServer", Request], Reply | None]
"""How a request is answered; None closes the connection without a word."""


class EmbeddingServer:
    """Serves `models`, each with the native length of its vectors, from a thread until it is closed.

    The vector of a text is drawn from the text's hash. Requests are answered by `script` in
    turn, then by what `rule` gives for the request, and otherwise well.
    """

    def __init__(
        self,
        models: Mapping[str, int],
        key: str = "",
        script: Iterable[Answer] = (),
        rule: Callable[[Request], Answer | None] = lambda request: None,
        max_items: int = 2048,
        max_bytes: int = 300_000,
    ) -> None:
        self.models = models
        self.key = key
        self.rule = rule
        self.max_items, self.max_bytes = max_items, max_bytes
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._script = iter(script)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def counts(self) -> list[int]:
        """Texts in each request."""
        return [len(request.texts) for request in self.requests]

    def __enter__(self) -> "EmbeddingServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: Request) -> Reply | None:
        with self._lock:
            self.requests.append(request)
            chosen = next(self._script, None)
        return (chosen or self.rule(request) or well)(self, request)

    def vectors(self, request: Request) -> np.ndarray:
        return vectors_of(request.texts, self.models[request.body["model"]], request.body.get("dimensions"))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = answer(Request(self.path, headers, body))
                if reply is not None:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", reply.content_type)
                    self.send_header("Content-Length", str(len(reply.body)))
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
                    self.wfile.flush()
                if reply is None or reply.cut:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *message: object) -> None:
                """Tests read what the client says, not what the server does."""

        return Handler


def vectors_of(texts: Sequence[str], native: int, dimensions: int | None = None) -> np.ndarray:
    """Unit vectors float32 [n, d]; `dimensions` cuts the native ones and brings them to length 1 again."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    drawn = np.stack([np.random.default_rng(seed).normal(size=native) for seed in seeds])[:, :dimensions]
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def well(server: EmbeddingServer, request: Request) -> Reply:
    """The API's own answer, with its refusals."""
    if server.key and request.headers.get("authorization") != f"Bearer {server.key}":
        return status(401, f"Incorrect API key provided: {request.headers.get('authorization')}")(server, request)
    if request.path != "/v1/embeddings" or request.body["model"] not in server.models:
        return status(404, f"The model `{request.body['model']}` does not exist", code="model_not_found")(
            server, request
        )
    if not all(request.texts) or len(request.texts) > server.max_items:
        return status(400, "'$.input' is invalid.")(server, request)
    summed = sum(len(text.encode()) for text in request.texts)
    if summed > server.max_bytes:
        said = f"Requested {summed} tokens, max {server.max_bytes} tokens per request"
        return status(400, said, code="max_tokens_per_request")(server, request)
    return embeddings(server.vectors(request), as_base64=request.body.get("encoding_format") == "base64")


def embeddings(
    vectors: Iterable[Sequence[float]], as_base64: bool = True, indexes: Iterable[int] | None = None
) -> Reply:
    """A reply in the API's layout."""
    rows = [np.asarray(vector, "<f4") for vector in vectors]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist(),
        }
        for index, row in zip(range(len(rows)) if indexes is None else indexes, rows, strict=True)
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return Reply(body=json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode())


def status(code_: int, message: str = "", headers: Mapping[str, str] | None = None, **error: str) -> Answer:
    """An error in the API's layout."""
    body = json.dumps({"error": {"message": message, "type": "", "param": None, "code": None, **error}}).encode()
    return lambda server, request: Reply(code_, body, headers or {})


def raw(body: bytes, code: int = 200, content_type: str = "application/json") -> Answer:
    """Whatever bytes."""
    return lambda server, request: Reply(code, body, content_type=content_type)


def hang(server: EmbeddingServer, request: Request) -> None:
    """No answer for longer than any client of the tests waits."""
    server.closing.wait(20)


def drop(server: EmbeddingServer, request: Request) -> None:
    """The connection closes before an answer."""


def cut_off(server: EmbeddingServer, request: Request) -> Reply:
    """The connection closes in the middle of the answer."""
    return Reply(body=well(server, request).body, cut=True)


def as_numbers(server: EmbeddingServer, request: Request) -> Reply:
    """As servers answer that do not know base64."""
    return embeddings(server.vectors(request), as_base64=False)


def shuffled(server: EmbeddingServer, request: Request) -> Reply:
    """All vectors, rightly numbered, in another order."""
    order = np.random.default_rng(3).permutation(len(request.texts))
    return embeddings(server.vectors(request)[order], indexes=order.tolist())


def short(server: EmbeddingServer, request: Request) -> Reply:
    """One vector too few."""
    return embeddings(server.vectors(request)[1:])


def long(server: EmbeddingServer, request: Request) -> Reply:
    """One vector too many."""
    vectors = server.vectors(request)
    return embeddings([*vectors, vectors[0]])


def not_numbered(server: EmbeddingServer, request: Request) -> Reply:
    """Every index the same, as some servers have it."""
    return embeddings(server.vectors(request), indexes=[7] * len(request.texts))


def ragged(server: EmbeddingServer, request: Request) -> Reply:
    """Vectors of different lengths."""
    return embeddings([vector[: vector.size - place % 2] for place, vector in enumerate(server.vectors(request), 1)])


def with_nan(server: EmbeddingServer, request: Request) -> Reply:
    """A NaN in the last vector."""
    vectors = server.vectors(request)
    vectors[-1, 0] = np.nan
    return embeddings(vectors)


def with_nan_as_numbers(server: EmbeddingServer, request: Request) -> Reply:
    """A NaN as Python's json writes it."""
    vectors = server.vectors(request)
    vectors[-1, 0] = np.nan
    return embeddings(vectors, as_base64=False)
