"""Text models behind a server that speaks OpenAI's embeddings API, asked by the official client.

The server may be OpenAI's own or a compatible one (vLLM, TEI, Ollama, infinity). Failures are
told apart by whose they are. Those of the server end the run with a PlatformError, and the next
run goes on where it stopped; those of single texts are ValueErrors, so that the stream halves the
batch until the bad text is alone. Where a failure could be either's, the server is asked for the
vectors of plain sentences: one that fails on them too is at fault itself.
"""

import base64
import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Lane, Prepared, Purpose, check_content
from embedding_platform.records import Content
from embedding_platform.spaces import Model, Role

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

CODE_VERSION = 1
POOLINGS = {"": "what the server's embeddings endpoint answers (OpenAI API reference, Create embeddings)"}
FILES = ()
REMOTE = True
"""No weights are read here: `connect` takes the place of a family's `load`."""

OFFICIAL_HOST = "api.openai.com"

NATIVE_DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
"""Length of the vectors of OpenAI's models, where none is asked for (OpenAI guide, Vector embeddings)."""

_SHORTENED = ("text-embedding-3-small", "text-embedding-3-large")
"""Models that take `dimensions` (OpenAI API reference, Create embeddings: text-embedding-3 and later)."""

_MAX_TOKENS = 8192
"""Longest input of all embedding models (OpenAI API reference, Create embeddings)."""

_PLAIN = ("The tide comes in twice a day.", "How do volcanoes erupt?")
"""Texts that every model takes; two of them, because a server may number only a single vector rightly."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
"""Seconds of the exponential backoff where the server names no time."""

_GARBLED_RETRIES = 2
"""A reply that is not what was asked for is seldom another the next time."""

_REFUSALS = (400, 413, 422, 424)
"""How servers refuse inputs: OpenAI and vLLM with 400, TEI with 413, 422 and 424."""

_PLACEHOLDER = "unused"
"""Servers without keys ignore it; the client does not start without one."""


class Clock(Protocol):
    """Time, as the module of that name tells it."""

    def monotonic(self) -> float:
        """Seconds from some moment on."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is to be asked.

    `url` goes up to the version, such as "https://api.openai.com/v1". `requests` run at once.
    `tokens_per_request` bounds the summed cost of a request, which counts bytes (see
    `OpenAIEncoder.cost`): the default is about 8,000 tokens of English. OpenAI takes up to
    300,000 tokens and 2,048 inputs in one request (API reference, Create embeddings), but a
    small server should answer within `timeout_seconds`. A failed request is tried `retries`
    times more; one that meets a rate limit as often as `patience_seconds` allow.
    """

    url: str
    key: str = field(default="", repr=False)
    timeout_seconds: float = 30.0
    requests: int = 4
    tokens_per_request: int = 32_768
    items_per_request: int = 2048
    retries: int = 5
    patience_seconds: float = 600.0


@dataclass(frozen=True)
class _Failure:
    """Why a request brought no vectors.

    "busy" is a rate limit, "failed" a server that did not answer or with an error of its own,
    "garbled" a reply that is not what was asked for, "refused" one to the texts or to the way of
    asking. `wait` is the time in seconds that the server asks for, 0 where it names none.
    """

    kind: Literal["busy", "failed", "garbled", "refused"]
    reason: str
    wait: float = 0.0


@dataclass(frozen=True, eq=False)
class OpenAIEncoder:
    """An `Encoder` whose model runs behind an HTTP server."""

    model: Model
    endpoint: Endpoint
    client: "OpenAI" = field(repr=False)
    clock: Clock

    @property
    def roles(self) -> tuple[Role, ...]:
        """See `Encoder.roles`."""
        return self.model.roles

    @property
    def dimension(self) -> int:
        """See `Encoder.dimension`."""
        return self.model.dimension

    @property
    def device(self) -> str:
        """See `Encoder.device`: the URL, which holds no credentials."""
        return self.endpoint.url.rstrip("/")

    @property
    def precision(self) -> str:
        """See `Encoder.precision`: of the numbers that arrive; the server keeps its own to itself."""
        return "float32"

    @property
    def runtime(self) -> str:
        """See `Encoder.runtime`."""
        return "openai"

    @property
    def lanes(self) -> Sequence[Lane]:
        """See `Encoder.lanes`: as many as requests may run at once."""
        return [self._run] * self.endpoint.requests

    def maximum(self, role: Role) -> str:
        """See `Encoder.maximum`. Longer text is refused by the server, or cut by some."""
        tokens = self.model.max_tokens or (_MAX_TOKENS if _name(self.model) in NATIVE_DIMENSIONS else None)
        return f"{tokens} tokens" if tokens else "what the server takes"

    def prepare(self, role: Role, content: Content, purpose: Purpose = "document") -> Prepared:
        """See `Encoder.prepare`: the text's bytes, uint8 [n] of UTF-8. Queries are embedded as documents are."""
        check_content(self.roles, role, content)
        text = str(content)
        if not text:
            raise ValueError("the text is empty, which embedding servers refuse; leave it out")
        try:
            encoded = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text is half a surrogate pair, which UTF-8 does not know; "
                "save the file again as UTF-8"
            ) from None
        return {"text": np.frombuffer(encoded, np.uint8)}

    def cost(self, role: Role, prepared: Prepared) -> int:
        """See `Encoder.cost`: the bytes of the text, which its tokens never outnumber.

        OpenAI's vocabularies are byte-level BPE (tiktoken, cl100k_base), which starts from single
        bytes and only merges them; English comes to four bytes a token. The vocabulary itself is
        not needed here, nor would it be that of another server's model.
        """
        return len(prepared["text"])

    def shape(self, role: Role, prepared: Prepared) -> None:
        """See `Encoder.shape`: texts of all lengths share a request, and none is sent twice."""

    def budget(self, role: Role) -> int:
        """See `Encoder.budget`."""
        return self.endpoint.tokens_per_request

    def embed(self, role: Role, batch: Sequence[Content], purpose: Purpose = "document") -> np.ndarray:
        """See `Encoder.embed`.

        Raises:
            PlatformError: also if the server fails.
        """
        return self._run(role, [self.prepare(role, content, purpose) for content in batch])

    def _run(self, role: Role, batch: Sequence[Prepared]) -> np.ndarray:
        """Vectors [n, dimension] of the batch, in as many requests as the endpoint's bounds ask for.

        Raises:
            PlatformError: if the server fails, or is asked in a wrong way.
            ValueError: if it is well, but not with these texts.
        """
        vectors = [self._embed([one["text"].tobytes().decode("utf-8") for one in part]) for part in self._parts(batch)]
        return np.concatenate(vectors) if vectors else np.empty((0, self.dimension), np.float32)

    def _parts(self, batch: Sequence[Prepared]) -> Iterator[list[Prepared]]:
        part: list[Prepared] = []
        summed = 0
        for one in batch:
            cost = self.cost("text", one)
            is_full = len(part) == self.endpoint.items_per_request or summed + cost > self.endpoint.tokens_per_request
            if part and is_full:
                yield part
                part, summed = [], 0
            part.append(one)
            summed += cost
        if part:
            yield part

    def _embed(self, texts: list[str]) -> np.ndarray:
        outcome = self._ask(texts, self.endpoint.retries)
        if isinstance(outcome, np.ndarray):
            return outcome
        if outcome.kind == "busy":
            raise self._is_busy(outcome)
        # A refused batch is halved at no cost, so that the server is judged over the last text alone.
        if outcome.kind != "refused" or len(texts) == 1:
            self._refuse_unless_well()
        raise ValueError(
            f"{self.device} {outcome.reason}, though it embeds other texts; shorten or correct the text, "
            "or cut its file into smaller pieces"
        )

    def _refuse_unless_well(self) -> None:
        """Raises a PlatformError if the server fails on plain sentences too."""
        outcome = self._ask(list(_PLAIN), retries=0)
        if isinstance(outcome, np.ndarray):
            return
        mends = {
            "failed": "see that the server runs and that openai.url is right",
            "garbled": "see that openai.url, up to /v1, is that of an embeddings server",
            "refused": "correct the model's name and dimension, or what the server is started with",
        }
        if outcome.kind == "busy":
            raise self._is_busy(outcome)
        raise PlatformError(
            f"{self.device} {outcome.reason}, even for a plain sentence to model {_name(self.model)}; "
            f"{mends[outcome.kind]}, and start again: what is embedded stays"
        )

    def _is_busy(self, failure: _Failure) -> PlatformError:
        asked = f" and asks to wait {failure.wait:.0f} s" if failure.wait else ""
        return PlatformError(
            f"{self.device} {failure.reason}{asked}, but no request waits longer than "
            f"{self.endpoint.patience_seconds:.0f} s in all; lower openai.requests or have the rate limit raised, and "
            "start again later: what is embedded stays"
        )

    def _ask(self, texts: list[str], retries: int) -> np.ndarray | _Failure:
        """The vectors of the texts, or the last failure when retries or patience have come to their end.

        The client's own retries are off: they know no wait over two minutes and no reset headers
        (openai-python 3, _base_client.py), and give up on rate limits as fast as on errors.
        """
        started = self.clock.monotonic()
        attempts = failures = 0
        while True:
            outcome = self._post(texts)
            if isinstance(outcome, np.ndarray):
                return outcome
            attempts += 1
            failures += outcome.kind != "busy"
            allowed = {"refused": 0, "garbled": min(retries, _GARBLED_RETRIES)}.get(outcome.kind, retries)
            wait = _with_jitter(outcome.wait, attempts)
            waited = self.clock.monotonic() - started
            if failures > allowed or waited + wait > self.endpoint.patience_seconds:
                return outcome
            self.clock.sleep(wait)

    def _post(self, texts: list[str]) -> np.ndarray | _Failure:
        """One request: vectors [n, dimension] in the order of the texts, or what came instead.

        Raises:
            PlatformError: for what no other attempt and no other text would mend.
        """
        import openai

        name = _name(self.model)
        has_other_length = name in _SHORTENED and self.dimension != NATIVE_DIMENSIONS[name]
        try:
            reply = self.client.embeddings.with_raw_response.create(
                input=texts,
                model=name,
                encoding_format="base64",
                dimensions=self.dimension if has_other_length else openai.omit,
            )
        except openai.APIStatusError as error:
            return self._read_refusal(error)
        except openai.APITimeoutError:
            return _Failure("failed", f"does not answer within {self.endpoint.timeout_seconds:g} s")
        except openai.APIConnectionError as error:
            return _Failure("failed", f"cannot be reached ({self._quote(error.__cause__)})")
        try:
            vectors = _read_vectors(reply.content, len(texts))
        except ValueError as error:
            return _Failure("garbled", f"answers with {self._quote(error)}")
        if vectors.shape[1] != self.dimension:
            raise PlatformError(
                f"model {name} at {self.device} gives vectors of dimension {vectors.shape[1]}, but the space is "
                f"described with {self.dimension}; name a model of dimension {self.dimension}, or correct the space "
                "in spaces.py"
            )
        return vectors

    def _read_refusal(self, error: "APIStatusError") -> _Failure:
        """What an HTTP error means; raises a PlatformError for one that trying again does not mend."""
        status, said = error.status_code, self._quote(_message(error.body))
        reason = f"answers {status}" + (f": {said}" if said else "")
        if status == 401:
            # What servers say here quotes the key, or parts of it.
            raise PlatformError(f"{self.device} answers 401: it does not accept the key; correct openai.key")
        if status == 403:
            raise PlatformError(f"{self.device} {reason}; let openai.key embed, or use another key")
        if status == 404:
            raise PlatformError(
                f"{self.device} {reason}; correct the model's name {_name(self.model)}, or openai.url, "
                "which goes up to /v1"
            )
        if status == 429 and "insufficient_quota" in (error.code, error.type):
            raise PlatformError(f"{self.device} {reason}; raise the quota of the account, or use another key")
        wait = _asked_wait(error.response.headers)
        if status == 429 or (status == 503 and wait):
            return _Failure("busy", reason, wait)
        if status in (408, 409) or status >= 500:
            return _Failure("failed", reason, wait)
        if status in _REFUSALS:
            return _Failure("refused", reason)
        raise PlatformError(f"{self.device} {reason}; see that openai.url, up to /v1, is that of an embeddings server")

    def _quote(self, said: object) -> str:
        """What was said, in one short line without the key."""
        line = " ".join(str(said).split())
        if self.endpoint.key:
            line = line.replace(self.endpoint.key, "[key]")
        return (line if len(line) <= 200 else f"{line[:200]}...").rstrip(".;")


def connect(model: Model, endpoint: Endpoint, clock: Clock = time) -> OpenAIEncoder:
    """The model "openai:NAME" behind the endpoint; nothing is sent yet.

    Raises:
        PlatformError: if model, URL or key cannot be right, or the client is not installed.
    """
    _check_model(model)
    _check_endpoint(endpoint)
    try:
        from openai import OpenAI
    except ImportError:
        raise PlatformError(
            f"model {model.location} needs the client of OpenAI, which is not installed; "
            "pip install 'embedding-platform[openai]'"
        ) from None
    key = endpoint.key or _PLACEHOLDER
    client = OpenAI(
        base_url=endpoint.url,
        api_key=key,
        timeout=endpoint.timeout_seconds,
        max_retries=0,
        default_headers={"Authorization": f"Bearer {key}"},
    )
    # The client takes these, as it would the header above, from environment variables that no setting knows.
    client.organization = client.project = None
    return OpenAIEncoder(model, endpoint, client, clock)


def _name(model: Model) -> str:
    return model.location.removeprefix("openai:")


def _check_model(model: Model) -> None:
    name = _name(model)
    if not name or name == model.location:
        raise PlatformError(f"model {model.location!r} names no model of a server; write openai:text-embedding-3-small")
    if model.roles != ("text",):
        raise PlatformError(
            f"model {model.location} is described with the roles {' and '.join(model.roles)}, but the embeddings API "
            "takes text alone; correct the roles in spaces.py"
        )
    native = NATIVE_DIMENSIONS.get(name, model.dimension)
    if model.dimension > native or (model.dimension != native and name not in _SHORTENED):
        raise PlatformError(
            f"{name} gives vectors of dimension {native}{' or less' if name in _SHORTENED else ''}, but the space is "
            f"described with {model.dimension}; correct the space in spaces.py"
        )


def _check_endpoint(endpoint: Endpoint) -> None:
    """Refuse what the client would only fail on later; no message repeats the URL's credentials or the key."""
    parts = _split(endpoint.url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise PlatformError("openai.url is no URL of a server; write it like https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PlatformError(
            f"openai.url of {parts.hostname} holds a user, a password or a query; write it up to /v1 alone, and the "
            "secret into openai.key"
        )
    if parts.hostname == OFFICIAL_HOST and not endpoint.key:
        raise PlatformError(f"{OFFICIAL_HOST} needs a key, and there is none; set openai.key")
    if not re.fullmatch(r"[!-~]*", endpoint.key):
        raise PlatformError("openai.key holds a blank, a line break or a special character; copy the key again")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _read_vectors(body: bytes, count: int) -> np.ndarray:
    """Vectors float32 [count, d] in the order of their `index`, from base64 or from lists of numbers.

    Base64 holds little-endian float32. Servers that do not know it answer with numbers.

    Raises:
        ValueError: saying what the reply is instead.
    """
    try:
        data = json.loads(body)["data"]
        by_index = {one["index"]: one["embedding"] for one in data}
    except (ValueError, KeyError, TypeError):
        start = body[:120].decode("utf-8", "replace")
        raise ValueError(f"no list of embeddings but {start!r}") from None
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} texts")
    if by_index.keys() != set(range(count)):
        raise ValueError(f"{count} vectors whose index does not run from 0 to {count - 1}")
    try:
        vectors = [_read_vector(by_index[index]) for index in range(count)]
    except (ValueError, TypeError):
        raise ValueError("embeddings that are neither base64 nor numbers") from None
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError("vectors of different lengths")
    stacked = np.stack(vectors)
    if not np.isfinite(stacked).all():
        raise ValueError("vectors that hold NaN or infinity")
    return stacked


def _read_vector(embedding: Any) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    with np.errstate(over="ignore"):
        vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError("not one vector")
    return vector


def _message(body: object) -> object:
    """What a server says in an error, of which there are several layouts: message, detail, error, or plain text."""
    if isinstance(body, Mapping):
        return next((body[key] for key in ("message", "detail", "error") if body.get(key)), json.dumps(body))
    return body or ""


def _with_jitter(asked: float, attempts: int) -> float:
    """Seconds before the next attempt: what the server asked for and a little more, or else doubled each time.

    The random part keeps the lanes from coming back all at once.
    """
    if asked:
        return asked + random.uniform(0, min(1.0, asked / 10))
    return float(min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(attempts - 1, 10)) * random.uniform(0.5, 1))


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait, 0 where it does not.

    Known are retry-after-ms, Retry-After as seconds or as a date (RFC 9110, section 10.2.3), and
    x-ratelimit-reset-requests and -tokens as "6m0s" or seconds (OpenAI guide, Rate limits). Of
    the last two those count whose limit is used up, or both where the server does not say which.
    """
    candidates = (_number(headers.get("retry-after-ms")) / 1000, _retry_after(headers.get("retry-after")))
    for seconds in candidates:
        if seconds > 0:
            return seconds
    kinds = ("requests", "tokens")
    used_up = [kind for kind in kinds if headers.get(f"x-ratelimit-remaining-{kind}") == "0"]
    return max(_duration(headers.get(f"x-ratelimit-reset-{kind}")) for kind in used_up or kinds)


def _retry_after(value: str | None) -> float:
    seconds = _number(value)
    if seconds or not value:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _duration(value: str | None) -> float:
    """Seconds of a duration as Go prints it, "1h2m3.5s" or "88ms", or of a plain number."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6}
    pairs = re.findall(r"([\d.]+)(ms|us|µs|h|m|s)", value or "")
    return sum(_number(number) * units[unit] for number, unit in pairs) or _number(value)


def _number(value: str | None) -> float:
    """A number from 0 on; 0 for anything else."""
    try:
        number = float(value or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
