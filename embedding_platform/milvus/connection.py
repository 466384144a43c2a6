"""Reach Milvus: a Milvus Lite directory, a Milvus server or Zilliz Cloud, by one uri.

What the three do differently once they are reached stands in `deployment`.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedding_platform.errors import PlatformError

if TYPE_CHECKING:
    from logging import LogRecord

    from pymilvus import MilvusClient

CALL_SECONDS = 120.0
"""Deadline of one read or write. Milvus Lite holds a write for several seconds while it
flushes, and pymilvus waits for ever where no deadline is given."""

BUILD_SECONDS = 3600.0
"""Deadline for building or loading an index."""

SERVER_SCHEMES = ("http", "https", "tcp", "unix")

WORKERS = 1
"""Threads of a Milvus Lite engine: it asks that writes to one collection come one by one."""


@dataclass(frozen=True)
class _OpenDirectory:
    server: Any
    database: Any
    address: str


_open_directories: dict[str, _OpenDirectory] = {}
_opening = threading.Lock()


def connect(uri: str, token: str = "", timeout_seconds: float = 30) -> "MilvusClient":
    """A client of the Milvus at `uri`, proved to answer.

    A uri without a scheme is a Milvus Lite directory. It is opened inside this process and
    shared by all its clients until `close_directory`; where `serve` serves the directory,
    the client talks to that server instead. A directory that another process holds is
    awaited until the deadline.

    Raises:
        PlatformError: nothing answers, the token is wrong, or the directory cannot be opened.
    """
    deadline = time.monotonic() + timeout_seconds
    _silence_repeated_errors()
    while True:
        address = uri if _names_server(uri) else _directory_address(uri, deadline)
        try:
            return _answering_client(address, token, deadline)
        except _errors() as error:
            # A directory's server may be stopping just now: then its directory is free in a moment.
            if address == uri or time.monotonic() >= deadline:
                raise PlatformError(_connect_failure(uri, token, error)) from None
        time.sleep(0.2)


def close_directory(path: str) -> None:
    """Close the Milvus Lite directory in this process, so that another process may open it."""
    with _opening:
        opened = _open_directories.pop(_canonical(path), None)
    if opened is not None:
        opened.server.stop(grace=5).wait()
        opened.database.close()


@contextmanager
def serve(data_dir: str, timeout_seconds: float = 60) -> Iterator[str]:
    """Serve a Milvus Lite directory to several processes; yields the server's http uri.

    The server is a child process that ends with this context, or with this process however
    it ends. `<data_dir>.server.json` (uri, pid) tells `connect` of other processes where it
    listens; its log is `<data_dir>.server.log`.

        with serve("state/milvus") as uri:
            connect("state/milvus")

    Raises:
        PlatformError: the directory is in use or cannot be opened.
    """
    directory = _canonical(data_dir)
    served = _served_address(directory)
    if served is not None:
        raise PlatformError(f"{data_dir} is already served at {served}; use that server or stop it")
    note = f"{directory}.server.json"
    log = f"{directory}.server.log"
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        with open(log, "wb") as log_file:
            server = subprocess.Popen(
                [sys.executable, "-m", "embedding_platform.milvus.lite_server", directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
            )
    except OSError as error:
        raise PlatformError(
            f"cannot serve {data_dir}: {error.strerror}; choose a folder that may be written"
        ) from error
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        answered, _, _ = select.select([server.stdout], [], [], timeout_seconds)
        port = server.stdout.readline().strip().decode() if answered else ""
        if not port:
            raise PlatformError(f"cannot serve {data_dir}: {_last_line(log) or 'no answer'}; see {log}")
        address = f"http://127.0.0.1:{port}"
        _write_note(note, {"uri": address, "pid": server.pid})
        yield address
    finally:
        server.stdin.close()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()
        if os.path.exists(note):
            os.unlink(note)


@contextmanager
def explaining(deed: str) -> Iterator[None]:
    """Turn what pymilvus raises inside into one line: "Milvus could not {deed}: ...".

    Raises:
        PlatformError: in place of an error of Milvus or of the line to it.
    """
    try:
        yield
    except _errors() as error:
        raise PlatformError(
            f"Milvus could not {deed}: {_reason(error)}; see to that, then run again: the next run does the rest"
        ) from error


def _errors() -> tuple[type[Exception], ...]:
    import grpc
    from pymilvus.exceptions import MilvusException

    # pymilvus lets ValueError through where a port is no number or a channel is closed.
    return MilvusException, grpc.RpcError, ValueError


def _names_server(uri: str) -> bool:
    scheme = uri.split(":", 1)[0] if ":" in uri else ""
    if scheme in SERVER_SCHEMES:
        return True
    if "://" in uri:
        raise PlatformError(
            f"milvus uri {_public(uri)!r} has the scheme {scheme!r}; "
            f"give a folder, or a uri that begins with {', '.join(SERVER_SCHEMES)}"
        )
    if not uri:
        raise PlatformError("the milvus uri is empty; give a folder, or a uri such as http://localhost:19530")
    return False


def _answering_client(address: str, token: str, deadline: float) -> "MilvusClient":
    from pymilvus import MilvusClient

    client = MilvusClient(uri=address, token=token, timeout=max(deadline - time.monotonic(), 0.5))
    try:
        client.list_collections(timeout=max(deadline - time.monotonic(), 0.5))
    except _errors():
        client.close()
        raise
    return client


def _directory_address(path: str, deadline: float) -> str:
    from milvus_lite.exceptions import DataDirLockedError

    directory = _canonical(path)
    while True:
        served = _served_address(directory)
        if served is not None:
            return served
        try:
            return _open_here(directory)
        except DataDirLockedError as error:
            if time.monotonic() >= deadline:
                raise PlatformError(
                    f"another process holds the Milvus Lite directory {path}; stop it, or let all of them "
                    "share the directory through the bundled server"
                ) from error
            time.sleep(0.2)
        except OSError as error:
            raise PlatformError(
                f"cannot open the Milvus Lite directory {path}: {error.strerror}; name a folder that may be written "
                "(a single .db file of Milvus Lite before 3.2 cannot be read)"
            ) from error


def _open_here(directory: str) -> str:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    with _opening:
        if directory not in _open_directories:
            os.makedirs(os.path.dirname(directory), exist_ok=True)
            server, database, port = start_server_in_thread(directory, host="127.0.0.1", port=0, max_workers=WORKERS)
            _open_directories[directory] = _OpenDirectory(server, database, f"http://127.0.0.1:{port}")
        return _open_directories[directory].address


def _served_address(directory: str) -> str | None:
    note = f"{directory}.server.json"
    try:
        with open(note, encoding="utf-8") as file:
            served = json.load(file)
        os.kill(served["pid"], 0)
        parts = urlsplit(served["uri"])
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
        return str(served["uri"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        if os.path.exists(note):
            os.unlink(note)
        return None


def _write_note(path: str, note: dict[str, object]) -> None:
    beside = f"{path}.writing"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(note, file)
    os.replace(beside, path)


def _canonical(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _last_line(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else ""


def _connect_failure(uri: str, token: str, error: Exception) -> str:
    # pymilvus says "server unavailable" to a wrong token too; the cause knows better.
    reason = _reason(error.__cause__ if isinstance(error.__cause__, _errors()) else error)
    for secret in (token, token.partition(":")[2]):
        if secret:
            reason = reason.replace(secret, "***")
    if any(word in reason.lower() for word in ("auth", "credential", "token", "password", "permission")):
        return f"Milvus at {_public(uri)} refuses the token: {reason}; give the right token"
    return f"no Milvus answers at {_public(uri)}: {reason}; start it, or correct the uri"


def _public(uri: str) -> str:
    head, at, tail = uri.rpartition("@")
    return f"{head.split('://', 1)[0]}://***@{tail}" if at and "://" in head else uri


def _reason(error: Exception) -> str:
    details = getattr(error, "details", None)
    text = str(getattr(error, "message", "") or (details() if callable(details) else "") or error)
    return " ".join(text.split())[:400]


def _silence_repeated_errors() -> None:
    """pymilvus logs each error with its stack before it raises it; the raised one is enough."""
    import logging

    logger = logging.getLogger("pymilvus.decorators")
    if _is_no_echo not in logger.filters:
        logger.addFilter(_is_no_echo)


def _is_no_echo(record: "LogRecord") -> bool:
    return record.funcName != "_log_rpc_error"
