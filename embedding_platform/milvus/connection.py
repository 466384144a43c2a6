"""Reach Milvus: a Milvus Lite directory, a Milvus server or Zilliz Cloud, by one uri.

What the three do differently once they are reached stands in `deployment`.
"""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from embedding_platform.errors import MilvusError, PlatformError
from embedding_platform.settings import without_password

if TYPE_CHECKING:
    from logging import LogRecord

    from pymilvus import MilvusClient

    from embedding_platform.milvus.lite_engine import LiteEngine

CALL_SECONDS = 120.0
"""Deadline of one read or write. Milvus Lite holds a write for several seconds while it
flushes, and pymilvus waits for ever where no deadline is given."""

BUILD_SECONDS = 3600.0
"""Deadline for building or loading an index."""

SERVER_SCHEMES = ("http", "https", "tcp", "unix")

_SECONDS_TO_REPLACE = 20.0
"""How long a served directory is left to the process that serves it, after its server died."""

_SECONDS_BETWEEN_SERVERS = 0.5

_SECONDS_BETWEEN_LOOKS = 0.1
"""At whether another process still serves a directory: what connects in between opens it for itself."""

_SECONDS_BETWEEN_TRIES = 5.0

_NO_PINGS = {"grpc.keepalive_time_ms": 2**31 - 1}
"""pymilvus asks every 10 s whether its server lives; gRPC's own server, which Milvus Lite is,
closes a connection that asks more often than every 300 s, in the middle of a call too."""

_open_directories: dict[str, "LiteEngine"] = {}
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
            return _answering_client(address, token, deadline, {} if address == uri else _NO_PINGS)
        except _errors() as error:
            # A directory's server may be stopping just now: then its directory is free in a moment.
            if address == uri or time.monotonic() >= deadline:
                raise MilvusError(_connect_failure(uri, token, error)) from None
        time.sleep(0.2)


def close_directory(path: str) -> None:
    """Close the Milvus Lite directory in this process, so that another process may open it."""
    with _opening:
        opened = _open_directories.pop(_canonical(path), None)
    if opened is not None:
        opened.close()


@contextmanager
def serve(
    data_dir: str, timeout_seconds: float = 60, replaced: Callable[[str], None] = lambda line: None, port: int = 0
) -> Iterator[str]:
    """Serve a Milvus Lite directory to several processes; yields the server's http uri.

    The server is a child process that ends with this context, or with this process however
    it ends. One that dies before is replaced at the same uri, so that calls under way go on, and
    `replaced` is told so in a line. So it is with the server of another process that has just
    ended, where its `port` is given.
    `<data_dir>.server.json` (uri, pid) tells `connect` of other processes where it listens, as
    long as this process has it locked; the server's log is `<data_dir>.server.log`.

        with serve("state/milvus") as uri:
            connect("state/milvus")

    Raises:
        PlatformError: the directory is in use or cannot be opened.
    """
    directory = _canonical(data_dir)
    patience = time.monotonic() + _SECONDS_TO_REPLACE
    while True:
        uri, is_kept = _noted_server(directory)
        if is_kept:
            raise PlatformError(f"{data_dir} is already served at {uri}; use that server or stop it")
        # The server of a process that was killed is just closing the directory.
        if not _listens(uri) or time.monotonic() >= patience:
            break
        time.sleep(0.2)
    keeper: _Keeper | None = None
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        keeper = _Keeper(directory, timeout_seconds, replaced, port)
        if not keeper.address:
            raise PlatformError(f"cannot serve {data_dir}: {keeper.last_words() or 'no answer'}; see {keeper.log}")
        keeper.write_note()
    except OSError as error:
        raise PlatformError(
            f"cannot serve {data_dir}: {error.strerror}; choose a folder on a disk with room that may be written"
        ) from error
    else:
        keeper.watch()
        yield keeper.address
    finally:
        if keeper is not None:
            keeper.stop()


@contextmanager
def keep_served(data_dir: str, say: Callable[[str], None]) -> Iterator[str]:
    """Let a Milvus Lite directory be served as long as the context lasts; yields the server's http uri.

    As `serve`, but where another process serves the directory already, that server is used, and
    replaced at its uri once that process ends. `say` is told so in a line.

    Raises:
        PlatformError: the directory is in use without a server, or cannot be opened.
    """
    uri, is_kept = _noted_server(_canonical(data_dir))
    if not is_kept:
        with serve(data_dir, replaced=say) as uri:
            yield uri
        return
    stopping = threading.Event()
    with ExitStack() as stack:

        def stand_by() -> None:
            port, told = urlsplit(uri).port or 0, ""
            while not stopping.wait(_SECONDS_BETWEEN_LOOKS):
                if is_served(data_dir):
                    continue
                try:
                    again = stack.enter_context(serve(data_dir, replaced=say, port=port))
                except PlatformError as error:
                    # A process that opened the directory just then has it until it ends; others may take the port.
                    port = 0
                    if str(error) != told and not is_served(data_dir):
                        told = str(error)
                        say(f"{told}; tried again every {_SECONDS_BETWEEN_TRIES:.0f} s")
                    stopping.wait(_SECONDS_BETWEEN_TRIES)
                    continue
                say(f"Milvus Lite: the process that served {data_dir} has ended; served from here, at {again}")
                return

        thread = threading.Thread(target=stand_by, daemon=True)
        thread.start()
        try:
            yield uri
        finally:
            stopping.set()
            thread.join()


def is_served(data_dir: str) -> bool:
    """Whether a process that lives serves the Milvus Lite directory."""
    return _noted_server(_canonical(data_dir))[1]


@contextmanager
def explaining(deed: str, done: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what pymilvus raises inside into one line: "Milvus could not {deed}: ...".

    pymilvus repeats a call whose answer was lost on the way, and Milvus refuses to make or drop
    a thing twice: nothing is raised where `done` tells that the deed is done after all.

    Raises:
        MilvusError: in place of an error of Milvus or of the line to it.
    """
    try:
        yield
    except _errors() as error:
        with suppress(PlatformError, *_errors()):
            if done():
                return
        raise MilvusError(
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
            f"milvus uri {without_password(uri)!r} has the scheme {scheme!r}; "
            f"give a folder, or a uri that begins with {', '.join(SERVER_SCHEMES)}"
        )
    if not uri:
        raise PlatformError("the milvus uri is empty; give a folder, or a uri such as http://localhost:19530")
    return False


def _answering_client(address: str, token: str, deadline: float, options: Mapping[str, int]) -> "MilvusClient":
    from pymilvus import MilvusClient

    timeout = max(deadline - time.monotonic(), 0.5)
    client = MilvusClient(uri=address, token=token, timeout=timeout, grpc_options=options)
    _be_patient(client)
    try:
        client.list_collections(timeout=max(deadline - time.monotonic(), 0.5))
    except _errors():
        client.close()
        raise
    return client


def _be_patient(client: "MilvusClient") -> None:
    """Let each call outlast a restart of Milvus.

    pymilvus repeats a call whose connection broke until the call's deadline, but gives up
    where nobody listens the moment it connects again.
    """
    handler = client._get_connection()
    # Clients of one uri and token share it.
    if not isinstance(handler._on_rpc_error, partial):
        handler._on_rpc_error = partial(_try_to_reconnect, handler._on_rpc_error)


def _try_to_reconnect(reconnect: Callable[[Exception], bool], error: Exception) -> bool:
    from pymilvus.exceptions import MilvusException

    try:
        return reconnect(error)
    except MilvusException:
        return False


def _directory_address(path: str, deadline: float) -> str:
    from milvus_lite.exceptions import DataDirLockedError

    directory = _canonical(path)
    patience = time.monotonic() + _SECONDS_TO_REPLACE
    while True:
        uri, is_kept = _noted_server(directory)
        if is_kept and _listens(uri):
            return uri
        if is_kept and time.monotonic() < min(deadline, patience):
            time.sleep(0.2)
            continue
        try:
            return _open_here(directory)
        except DataDirLockedError as error:
            if time.monotonic() >= deadline:
                raise MilvusError(
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
    from embedding_platform.milvus.lite_engine import LiteEngine

    with _opening:
        if directory not in _open_directories:
            os.makedirs(os.path.dirname(directory), exist_ok=True)
            _open_directories[directory] = LiteEngine(directory)
        return f"http://127.0.0.1:{_open_directories[directory].port}"


def _noted_server(directory: str) -> tuple[str, bool]:
    """The uri that the note of the directory's server tells, "" without one; and whether its keeper lives."""
    is_kept = False
    with suppress(OSError, ValueError, KeyError, TypeError), open(_note_of(directory), encoding="utf-8") as note:
        is_kept = _is_locked(note)
        return str(json.load(note)["uri"]), is_kept
    return "", is_kept


def _note_of(directory: str) -> str:
    return f"{directory}.server.json"


def _listens(uri: str) -> bool:
    with suppress(OSError, ValueError):
        parts = urlsplit(uri)
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5).close()
        return True
    return False


def _is_locked(file: IO[str]) -> bool:
    """Whether a process that lives has the file locked: a lock ends with its process, and no other has it then."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _locked_note(directory: str, uri: str, pid: int) -> IO[str]:
    """A note in the place of the directory's former one, locked as long as it stays open."""
    path = _note_of(directory)
    beside = f"{path}.writing"
    note = open(beside, "w", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        json.dump({"uri": uri, "pid": pid}, note)
        note.flush()
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            note.close()
        os.unlink(beside)
        raise
    return note


class _Keeper:
    """The server of one directory, and the thread that replaces it when it dies.

    `address` is "" where the first server did not come up.
    """

    def __init__(self, directory: str, timeout_seconds: float, replaced: Callable[[str], None], port: int) -> None:
        self._replaced = replaced
        self.log = f"{directory}.server.log"
        self._directory = directory
        self._timeout_seconds = timeout_seconds
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._note: IO[str] | None = None
        if port:
            # Before the server is there, so that nobody opens the directory who could wait for it.
            self._note = _locked_note(directory, f"http://127.0.0.1:{port}", os.getpid())
        self._server = self._start(port)
        listening = self._port()
        self.address = f"http://127.0.0.1:{listening}" if listening else ""

    def watch(self) -> None:
        """Replace the server from now on when it dies."""
        self._thread = threading.Thread(target=self._replace, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server, or kill it if it does not end."""
        with self._turn:
            self._stopping.set()
            if self._server.stdin is not None:
                self._server.stdin.close()
        try:
            self._server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        if self._thread is not None:
            self._thread.join()
        _close_pipes(self._server)
        if self._note is not None:
            path = _note_of(self._directory)
            with suppress(OSError):
                # Another process may have been quicker to serve the directory.
                if os.path.samestat(os.fstat(self._note.fileno()), os.stat(path)):
                    os.unlink(path)
            self._note.close()

    def write_note(self) -> None:
        """Tell other processes where the server listens, as long as this one lives."""
        former, self._note = self._note, _locked_note(self._directory, self.address, self._server.pid)
        if former is not None:
            former.close()

    def last_words(self) -> str:
        """The last line of the server's log."""
        return _last_line(self.log)

    def _replace(self) -> None:
        port = int(self.address.rpartition(":")[2])
        while True:
            self._server.wait()
            if self._stopping.wait(_SECONDS_BETWEEN_SERVERS):
                return
            with self._turn:
                if self._stopping.is_set():
                    return
                # On a full disk the former note stays, which has the right uri and the wrong process.
                with suppress(OSError):
                    former, self._server = self._server, self._start(port)
                    _close_pipes(former)
                    self.write_note()
                    self._replaced(
                        f"Milvus Lite server (pid {former.pid}) ended with status {former.returncode}; "
                        f"started again as pid {self._server.pid}"
                    )

    def _start(self, port: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "embedding_platform.milvus.lite_server", self._directory, str(port)]
        with open(self.log, "ab" if port else "wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def _port(self) -> str:
        """What the server says once it listens, "" if it ends or the time is over."""
        assert self._server.stdout is not None
        answered, _, _ = select.select([self._server.stdout], [], [], self._timeout_seconds)
        return self._server.stdout.readline().strip().decode() if answered else ""


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _canonical(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _last_line(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else ""


def _connect_failure(uri: str, token: str, error: Exception) -> str:
    # pymilvus says "server unavailable" to a wrong token too; the cause knows better.
    reason = _reason(error.__cause__ if isinstance(error.__cause__, _errors()) else error)
    try:
        _ = urlsplit(uri).port
    except ValueError:
        # The reason quotes what stands there, which may be half a password.
        reason = "its port is no number"
    for secret in (token, token.partition(":")[2]):
        if secret:
            reason = reason.replace(secret, "***")
    if any(word in reason.lower() for word in ("auth", "credential", "token", "password", "permission")):
        return f"Milvus at {without_password(uri)} refuses the token: {reason}; give the right token"
    return f"no Milvus answers at {without_password(uri)}: {reason}; start it, or correct the uri"


def _reason(error: Exception) -> str:
    details = getattr(error, "details", None)
    text = str(getattr(error, "message", "") or (details() if callable(details) else "") or error)
    return " ".join(text.split())[:400]


def _silence_repeated_errors() -> None:
    """pymilvus logs each error with its stack before it raises it; the raised one is enough."""
    import logging

    for name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
        logger = logging.getLogger(name)
        if _is_no_echo not in logger.filters:
            logger.addFilter(_is_no_echo)


def _is_no_echo(record: "LogRecord") -> bool:
    return record.funcName not in ("_log_rpc_error", "_recover")
