import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.inference.stream import Embedded, Failed, embed_stream
from embedding_platform.models.openai import Endpoint, OpenAIEncoder, connect
from embedding_platform.records import Segment
from embedding_platform.spaces import Model
from embedding_platform_tests.models import embedding_server as replies
from embedding_platform_tests.models.embedding_server import EmbeddingServer, Request, status, vectors_of

pytest.importorskip("openai")

DIMENSION = 12
MODEL = Model("openai", "openai:small", DIMENSION, ("text",), licence="none", source="a test")
KEY = "sk-a-secret-that-nobody-may-read"
TEXTS = [f"passage number {number} of the book" for number in range(40)]
BAD = "the text that the server cannot take"


class FakeClock:
    """Waits take no time, but count as if they did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Starts a server with the given behaviour."""
    running: list[EmbeddingServer] = []

    def start(*script: replies.Answer, models: dict[str, int] | None = None, **behaviour: Any) -> EmbeddingServer:
        running.append(EmbeddingServer(models or {"small": DIMENSION}, script=script, **behaviour))
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def encoder_of(server: EmbeddingServer, clock: FakeClock, model: Model = MODEL, **bounds: Any) -> OpenAIEncoder:
    return connect(model, Endpoint(server.url, **{"key": KEY, "timeout_seconds": 60.0, **bounds}), clock)


def patience(answer: replies.Answer) -> dict[str, float]:
    """Bounds of an encoder that gives up soon where no answer comes, and late where there is one."""
    return {"timeout_seconds": 0.9} if answer is replies.hang else {}


def when_bad(answer: replies.Answer) -> Any:
    """A rule that answers so for a request that holds BAD."""
    return lambda request: answer if BAD in request.texts else None


def always(answer: replies.Answer) -> Any:
    return lambda request: answer


def streamed(encoder: OpenAIEncoder, texts: list[str]) -> list[Embedded | Failed]:
    segments = [
        Segment(str(place), "a.txt", "a.txt", "v", "text", place, 0, 1, text, str(place))
        for place, text in enumerate(texts)
    ]
    groups = [segments[start : start + 10] for start in range(0, len(segments), 10)]
    budgets = {"text": encoder.budget("text")}
    return list(embed_stream(groups, lambda group: iter([one.text for one in group]), encoder, budgets))


@pytest.mark.parametrize("answer", [replies.well, replies.as_numbers, replies.shuffled])
def test_vectors_come_in_the_order_of_the_texts(served, clock, answer):
    server = served(rule=always(answer))
    vectors = encoder_of(server, clock).embed("text", TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS, DIMENSION))
    (request,) = server.requests
    assert request.path == "/v1/embeddings"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {"input": TEXTS, "model": "small", "encoding_format": "base64"}


def test_no_text_gives_no_vector_and_no_request(served, clock):
    server = served()
    encoder = encoder_of(server, clock)
    assert encoder.embed("text", []).shape == (0, DIMENSION)
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "native", "dimension", "sent"),
    [
        ("text-embedding-3-small", 1536, 1536, None),
        ("text-embedding-3-small", 1536, 512, 512),
        ("text-embedding-3-large", 3072, 3072, None),
        ("text-embedding-3-large", 3072, 256, 256),
        ("text-embedding-ada-002", 1536, 1536, None),
        ("BAAI/bge-small-en-v1.5", 384, 384, None),
    ],
)
def test_dimensions_are_asked_for_only_where_the_model_can_and_must_shorten(
    served, clock, name, native, dimension, sent
):
    server = served(models={name: native})
    model = replace(MODEL, location=f"openai:{name}", dimension=dimension)
    vectors = encoder_of(server, clock, model).embed("text", TEXTS[:2])
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS[:2], native, sent))
    assert server.requests[0].body.get("dimensions") == sent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "openai:text-embedding-ada-002", "dimension": 512}, "dimension 1536, but .* 512; correct"),
        ({"location": "openai:text-embedding-3-small", "dimension": 3072}, "1536 or less, but .* 3072; correct"),
        ({"location": "openai:"}, "names no model of a server; write openai:"),
        ({"location": "owner/model"}, "'owner/model' names no model of a server; write openai:"),
        ({"roles": ("image", "text")}, "image and text, but the embeddings API takes text alone; correct"),
    ],
)
def test_a_model_that_cannot_be_right_is_refused_before_anything_is_sent(change, message):
    with pytest.raises(PlatformError, match=message):
        connect(replace(MODEL, **change), Endpoint("http://127.0.0.1:9/v1", KEY))


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("localhost:8000/v1", KEY, "openai.url is no URL of a server; write it like"),
        ("ftp://host/v1", KEY, "openai.url is no URL"),
        ("http://host:port/v1", KEY, "openai.url is no URL"),
        ("http://user:hunter2@host/v1", KEY, "openai.url of host holds a user, a password or a query"),
        ("http://host/v1?key=hunter2", KEY, "openai.url of host holds .* into openai.key"),
        ("https://api.openai.com/v1", "", "api.openai.com needs a key, and there is none; set openai.key"),
        ("http://host/v1", f"{KEY}\n", "openai.key holds a blank, a line break .* copy the key again"),
    ],
)
def test_an_endpoint_that_cannot_be_right_is_refused_without_showing_secrets(url, key, message):
    with pytest.raises(PlatformError, match=message) as refused:
        connect(MODEL, Endpoint(url, key))
    assert "hunter2" not in str(refused.value)
    assert KEY not in str(refused.value)


def test_without_the_client_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PlatformError, match=r"not installed; pip install 'embedding-platform\[openai\]'"):
        connect(MODEL, Endpoint("http://host/v1", KEY))


def test_the_family_is_known_without_importing_the_client():
    script = "import sys, embedding_platform.models.openai; print('openai' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_it_tells_what_it_is(served, clock):
    server = served()
    encoder = encoder_of(server, clock, requests=3, tokens_per_request=777)
    assert (encoder.roles, encoder.dimension) == (("text",), DIMENSION)
    assert (encoder.device, encoder.precision, encoder.runtime) == (server.url, "float32", "openai")
    assert (len(encoder.lanes), encoder.budget("text")) == (3, 777)


@pytest.mark.parametrize(
    ("location", "max_tokens", "maximum"),
    [
        ("openai:text-embedding-3-small", None, "8192 tokens"),
        ("openai:small", 512, "512 tokens"),
        ("openai:small", None, "what the server takes"),
    ],
)
def test_the_longest_text_is_that_of_the_model(location, max_tokens, maximum):
    model = replace(MODEL, location=location, max_tokens=max_tokens)
    assert connect(model, Endpoint("http://host/v1", KEY)).maximum("text") == maximum


@pytest.mark.parametrize("text", ["a", "Grüße", "数据", "🌊" * 9])
def test_a_text_costs_its_bytes_and_arrives_as_it_is(served, clock, text):
    server = served()
    encoder = encoder_of(server, clock)
    prepared = encoder.prepare("text", text, "query")
    assert encoder.cost("text", prepared) == len(text.encode())
    assert encoder.shape("text", prepared) is None
    np.testing.assert_array_equal(encoder.lanes[0]("text", [prepared]), vectors_of([text], DIMENSION))
    assert server.requests[0].texts == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "the text is empty, .* leave it out"), ("half \ud83c", "character 5 .* surrogate .* save the file again")],
)
def test_a_text_that_no_server_takes_is_refused_before_it_is_sent(served, clock, content, message):
    server = served()
    encoder = encoder_of(server, clock)
    with pytest.raises(ValueError, match=message):
        encoder.prepare("text", content)
    first, second = streamed(encoder, ["well", content])
    assert isinstance(first, Embedded)
    assert isinstance(second, Failed)
    assert [request.texts for request in server.requests] == [["well"]]


def test_other_contents_and_roles_are_refused(served, clock):
    encoder = encoder_of(served(), clock)
    with pytest.raises(TypeError, match="text contents are str, not Image"):
        encoder.prepare("text", Image.new("RGB", (4, 4)))
    with pytest.raises(PlatformError, match="does not embed image"):
        encoder.embed("image", [Image.new("RGB", (4, 4))])


@pytest.mark.parametrize(
    ("lengths", "bounds", "counts"),
    [
        ([1] * 5000, {}, [2048, 2048, 904]),
        ([1] * 7, {"items_per_request": 3}, [3, 3, 1]),
        ([4, 4, 4, 4, 4], {"tokens_per_request": 8}, [2, 2, 1]),
        ([9, 50, 9, 1], {"tokens_per_request": 10}, [1, 1, 2]),
        ([20_000] * 20, {"tokens_per_request": 300_000}, [15, 5]),
    ],
)
def test_a_batch_goes_out_in_requests_within_the_bounds(served, clock, lengths, bounds, counts):
    server = served()
    texts = [str(place % 10) * length for place, length in enumerate(lengths)]
    vectors = encoder_of(server, clock, **bounds).embed("text", texts)
    assert server.counts == counts
    assert [text for request in server.requests for text in request.texts] == texts
    np.testing.assert_array_equal(vectors, vectors_of(texts, DIMENSION))


def test_many_texts_stream_through_all_lanes_in_order(served, clock):
    server = served(max_bytes=400)
    texts = [f"{place} " + "word " * (place % 13) for place in range(300)]
    outcomes = streamed(encoder_of(server, clock, tokens_per_request=400), texts)
    assert [outcome.segment.text for outcome in outcomes] == texts
    np.testing.assert_array_equal([outcome.vector for outcome in outcomes], vectors_of(texts, DIMENSION))
    assert sum(server.counts) == 300
    assert max(sum(len(text) for text in request.texts) for request in server.requests) <= 400


def test_a_stream_sends_no_text_twice_though_batches_are_not_full(served, clock):
    server = served()
    texts = [f"{place} " + "word " * (place % 7) for place in range(20)]
    assert len(streamed(encoder_of(server, clock), texts)) == 20
    assert [text for request in server.requests for text in request.texts] == texts


def test_lanes_run_side_by_side(served, clock):
    together = threading.Barrier(3)

    def wait_for_the_others(server: EmbeddingServer, request: Request) -> replies.Reply:
        together.wait(60)
        return replies.well(server, request)

    encoder = encoder_of(served(rule=always(wait_for_the_others)), clock, requests=3)
    with ThreadPoolExecutor(3) as pool:
        batches = [[encoder.prepare("text", text)] for text in TEXTS[:3]]
        running = [pool.submit(lane, "text", batch) for lane, batch in zip(encoder.lanes, batches, strict=True)]
        vectors = np.concatenate([one.result() for one in running])
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS[:3], DIMENSION))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "150"}, 150),
        ({"retry-after-ms": "1500", "Retry-After": "7"}, 1.5),
        ({"Retry-After": "nonsense", "x-ratelimit-reset-tokens": "1m3s"}, 63),
        ({"x-ratelimit-reset-requests": "88ms"}, 0.088),
        ({"x-ratelimit-reset-tokens": "20"}, 20),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "12s",
                "x-ratelimit-remaining-tokens": "900",
                "x-ratelimit-reset-tokens": "40s",
            },
            12,
        ),
    ],
)
def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(served, clock, headers, seconds):
    server = served(*[status(429, "slow down", headers)] * 2)
    vectors = encoder_of(server, clock).embed("text", TEXTS)
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS, DIMENSION))
    assert len(server.requests) == 3
    assert len(clock.waits) == 2
    assert all(seconds <= wait <= seconds * 1.1 + 1e-9 for wait in clock.waits)


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_says_how_long_to_wait_is_waited_for_more_often_than_one_that_fails(served, clock, code):
    server = served(*[status(code, "busy", {"Retry-After": "20"})] * 9)
    vectors = encoder_of(server, clock, retries=1).embed("text", TEXTS)
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS, DIMENSION))
    assert len(server.requests) == 10


def test_the_clock_of_the_platform_is_the_real_one(served):
    server = served(status(429, "slow down", {"retry-after-ms": "3"}))
    vectors = connect(MODEL, Endpoint(server.url, KEY)).embed("text", TEXTS)
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS, DIMENSION))
    assert len(server.requests) == 2


def test_a_date_to_retry_after_is_understood(served, clock):
    server = served(status(429, "slow down", {"Retry-After": formatdate(time.time() + 100, usegmt=True)}))
    encoder_of(server, clock).embed("text", TEXTS)
    (wait,) = clock.waits
    assert 60 < wait < 102


@pytest.mark.parametrize("value", ["-3", "0", "nan", "inf", "Thu, 01 Jan 1970 00:00:00 GMT", "soon"])
def test_without_a_time_to_wait_the_waits_double(served, clock, value):
    server = served(*[status(429, "slow down", {"Retry-After": value})] * 9)
    encoder_of(server, clock).embed("text", TEXTS)
    assert len(server.requests) == 10
    bounds = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(clock.waits, bounds, strict=True))


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "20"}])
def test_a_rate_limit_without_end_ends_the_run_in_bounded_time(served, clock, headers):
    server = served(rule=always(status(429, "Rate limit reached for requests per min", headers)))
    with pytest.raises(PlatformError) as raised:
        encoder_of(server, clock, patience_seconds=100).embed("text", TEXTS)
    message = str(raised.value)
    assert message.startswith(f"{server.url} answers 429: Rate limit reached for requests per min")
    assert "lower openai.requests" in message
    assert "\n" not in message
    assert 70 < sum(clock.waits) <= 100
    assert len(server.requests) == len(clock.waits) + 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            status(429, "per day", {"Retry-After": "40000"}),
            "429: per day and asks to wait 40000 s, but .* than 600 s in all; lower",
        ),
        (status(429, "You exceeded your quota", code="insufficient_quota"), "429: You exceeded .* raise the quota"),
        (status(402, "Insufficient credits"), "402: Insufficient credits"),
        (status(403, f"{KEY} may not"), r"403: \[key\] may not; let openai.key embed, or use another key"),
        (status(405, "Method Not Allowed"), "405: Method Not Allowed; see that openai.url"),
    ],
)
def test_what_waiting_does_not_mend_ends_the_run_at_once(served, clock, answer, message):
    server = served(rule=always(answer))
    with pytest.raises(PlatformError, match=message) as raised:
        encoder_of(server, clock).embed("text", TEXTS)
    assert str(raised.value).startswith(server.url)
    assert KEY not in str(raised.value)
    assert (len(server.requests), clock.waits) == (1, [])


def test_a_wrong_key_ends_the_run_at_once_though_the_server_repeats_it(served, clock):
    server = served(key="sk-another")
    with pytest.raises(PlatformError, match=r"answers 401: it does not accept the key; correct openai.key") as raised:
        streamed(encoder_of(server, clock, requests=1), TEXTS)
    assert "secret" not in str(raised.value)
    assert len(server.requests) == 1


def test_an_unknown_model_ends_the_run_at_once(served, clock):
    server = served()
    with pytest.raises(PlatformError, match="404: The model `tiny` does not exist; correct the model's name tiny, or"):
        encoder_of(server, clock, replace(MODEL, location="openai:tiny")).embed("text", TEXTS)
    assert len(server.requests) == 1


def test_another_dimension_than_described_ends_the_run_at_once(served, clock):
    server = served(models={"small": 20})
    with pytest.raises(PlatformError, match=r"small at .* vectors of dimension 20, but .* described with 12; name"):
        encoder_of(server, clock).embed("text", TEXTS)
    assert len(server.requests) == 1


FAULTS = [
    pytest.param(status(500, "oops"), "answers 500: oops", id="500"),
    pytest.param(replies.raw(b"<html>Bad Gateway</html>", 502, "text/html"), "answers 502: <html>", id="502"),
    pytest.param(status(503), "answers 503", id="503"),
    pytest.param(status(408), "answers 408", id="408"),
    pytest.param(replies.hang, "does not answer within 0.9 s", id="timeout"),
    pytest.param(replies.drop, "cannot be reached", id="dropped"),
    pytest.param(replies.cut_off, "cannot be reached", id="cut off"),
]

GARBLED = [
    pytest.param(replies.raw(b'{"data": [{"ind'), "no list of embeddings but", id="malformed"),
    pytest.param(replies.raw(b"<html>hello</html>", content_type="text/html"), "but '<html>hello", id="html"),
    pytest.param(replies.raw(b"\xff\xfe"), "no list of embeddings but", id="not UTF-8"),
    pytest.param(replies.raw(b""), "no list of embeddings but ''", id="empty"),
    pytest.param(replies.raw(b'{"error": {"message": "no GPU"}}'), "no GPU", id="error with status 200"),
    pytest.param(replies.raw(b'{"data": null}'), "no list of embeddings", id="null"),
    pytest.param(replies.raw(b'{"data": [1, 2]}'), "no list of embeddings", id="numbers"),
    pytest.param(replies.short, "vectors for", id="short"),
    pytest.param(replies.long, "vectors for", id="long"),
    pytest.param(replies.not_numbered, "vectors whose index does not run from 0", id="not numbered"),
    pytest.param(replies.with_nan, "vectors that hold NaN", id="NaN"),
    pytest.param(replies.with_nan_as_numbers, "vectors that hold NaN", id="NaN as number"),
]

# A single vector has no other to differ from.
RAGGED = pytest.param(replies.ragged, "vectors of different lengths", id="ragged")


@pytest.mark.parametrize(("answer", "said"), [*FAULTS, *GARBLED, RAGGED])
def test_a_passing_fault_is_tried_again(served, clock, answer, said):
    server = served(answer, answer)
    vectors = encoder_of(server, clock, **patience(answer)).embed("text", TEXTS)
    np.testing.assert_array_equal(vectors, vectors_of(TEXTS, DIMENSION))
    assert server.counts == [40, 40, 40]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(clock.waits, [0.5, 1], strict=True))


@pytest.mark.parametrize(
    ("answer", "said", "attempts"),
    [
        *[pytest.param(*fault.values, 3, id=fault.id) for fault in FAULTS],
        *[pytest.param(*fault.values, 3, id=fault.id) for fault in GARBLED],
        pytest.param(status(400, "no dimensions here"), "answers 400: no dimensions here", 1, id="400"),
    ],
)
def test_a_server_that_fails_on_plain_sentences_too_ends_the_run(served, clock, answer, said, attempts):
    server = served(rule=always(answer))
    encoder = encoder_of(server, clock, **patience(answer), retries=2)
    with pytest.raises(PlatformError) as raised:
        encoder.embed("text", ["one"])
    message = str(raised.value)
    assert message.startswith(server.url)
    assert said in message
    assert "even for a plain sentence to model small; " in message
    assert message.endswith("and start again: what is embedded stays")
    assert "\n" not in message
    assert [request.texts for request in server.requests[:attempts]] == [["one"]] * attempts
    assert server.counts[attempts:] == [2]


@pytest.mark.parametrize(
    ("answer", "said", "attempts"),
    [
        *[pytest.param(*fault.values, 6, id=fault.id) for fault in FAULTS],
        *[pytest.param(*fault.values, 3, id=fault.id) for fault in GARBLED],
        *[pytest.param(status(code, "too long"), f"answers {code}: too long", 1, id=str(code)) for code in (400, 413)],
        *[pytest.param(replies.raw(b'{"error":"too long"}', code), f"{code}: too long", 1) for code in (422, 424)],
    ],
)
def test_a_text_that_a_sound_server_fails_on_is_refused_alone(served, clock, answer, said, attempts):
    server = served(rule=when_bad(answer))
    with pytest.raises(ValueError, match="though it embeds other texts; shorten or correct the text, or cut") as raised:
        encoder_of(server, clock, **patience(answer)).embed("text", [BAD])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert server.counts == [*[1] * attempts, 2]


@pytest.mark.parametrize(
    "answer",
    [
        status(400, "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"),
        status(500, "decoding exceeds the available context size"),
        replies.with_nan,
        replies.short,
    ],
)
def test_the_stream_leaves_out_the_text_that_the_server_does_not_take(served, clock, answer):
    server = served(rule=when_bad(answer))
    texts = [*TEXTS[:17], BAD, *TEXTS[17:]]
    outcomes = streamed(encoder_of(server, clock), texts)
    (failed,) = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert failed.segment.text == BAD
    assert server.url in failed.reason
    embedded = [outcome for outcome in outcomes if isinstance(outcome, Embedded)]
    assert [outcome.segment.text for outcome in embedded] == TEXTS
    np.testing.assert_array_equal([outcome.vector for outcome in embedded], vectors_of(TEXTS, DIMENSION))


def test_a_server_that_takes_fewer_texts_at_once_than_it_is_sent_still_embeds_them(served, clock):
    server = served(max_items=7)
    outcomes = streamed(encoder_of(server, clock), TEXTS)
    np.testing.assert_array_equal([outcome.vector for outcome in outcomes], vectors_of(TEXTS, DIMENSION))
    assert clock.waits == []


@pytest.mark.parametrize(("answer", "most"), [(status(503), 7), (status(400, "no base64"), 8), (replies.short, 4)])
def test_a_broken_server_is_not_asked_for_every_text(served, clock, answer, most):
    server = served(rule=always(answer))
    with pytest.raises(PlatformError, match="even for a plain sentence"):
        streamed(encoder_of(server, clock, requests=1), TEXTS)
    assert len(server.requests) <= most


def test_a_server_that_is_not_there_ends_the_run(clock):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        encoder = connect(MODEL, Endpoint(url, KEY), clock)
        with pytest.raises(PlatformError, match=r"cannot be reached .*refused.*; see that the server runs") as raised:
            streamed(encoder, TEXTS)
    assert str(raised.value).startswith(url)
    assert len(clock.waits) == 5
    assert sum(clock.waits) <= 15.5


@pytest.mark.parametrize("code", [400, 404, 405, 429, 500])
def test_the_key_is_never_shown(served, clock, caplog, code):
    caplog.set_level(logging.DEBUG)
    server = served(rule=always(status(code, f"Bearer {KEY} is odd", {"Retry-After": "9999"})))
    encoder = encoder_of(server, clock)
    with pytest.raises((PlatformError, ValueError)) as raised:
        encoder.embed("text", ["one"])
    assert "[key] is odd" in str(raised.value)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = [str(raised.value), repr(encoder), repr(encoder.endpoint), caplog.text]
    assert caplog.text
    assert not any(KEY in text for text in shown)


def test_a_server_without_keys_needs_none(served, clock, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = served()
    encoder_of(server, clock, key="").embed("text", TEXTS)
    assert server.requests[0].headers["authorization"] == "Bearer unused"


def test_the_environment_decides_nothing(served, clock, monkeypatch):
    variables = {
        "OPENAI_API_KEY": "sk-of-the-environment",
        "OPENAI_ADMIN_KEY": "sk-of-the-environment",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "OPENAI_ORG_ID": "org-of-the-environment",
        "OPENAI_PROJECT_ID": "project-of-the-environment",
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer sk-of-the-environment",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server = served()
    for key in (KEY, ""):
        encoder_of(server, clock, key=key).embed("text", TEXTS)
    with_key, without = server.requests
    assert with_key.headers["authorization"] == f"Bearer {KEY}"
    assert not any("of-the-environment" in value for value in (*with_key.headers.values(), *without.headers.values()))
