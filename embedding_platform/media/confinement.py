"""Parsing in a process of its own, which ends when it takes too long or too much memory.

Parsers of PDF and HTML are loops over what the file says, and a file of a few bytes can send
them round for days. Nothing in a thread can stop that. The process is started once and parses
one document after the other; it costs a start of some tenths of a second, and the way of the
bytes through a pipe. All PDF go there, and HTML and text above SMALL_BYTES: there is one
process for each reader at work.
"""

import atexit
import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.media import documents
from embedding_platform.media.documents import Document
from embedding_platform.media.limits import cut_off, over
from embedding_platform.settings import DecodingSettings

SMALL_BYTES = 16 * 2**10
"""Text and HTML of this size are parsed on the spot: at their worst they take under a second."""

_SERVE = "import sys; sys.path[:] = {path}; from embedding_platform.media.confinement import serve; serve({megabytes})"

_READY = b"ready\n"

_END_SECONDS = 5.0
"""What a process has to end by itself once nothing more is asked of it."""

_OUT_OF_MEMORY = 77
"""Status of the process when a document takes more memory than it may."""

_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
"""What ends a process for reasons that are not the document's."""


def parse(kind: str, payload: bytes, limits: DecodingSettings) -> Document:
    """The text of a document; `kind` is "plain", "html" or "pdf".

    Raises:
        RejectedError: if it cannot be parsed, or not within the limits.
    """
    if kind != "pdf" and len(payload) <= SMALL_BYTES:
        return _parsed(kind, payload)
    process = _taken(limits.max_document_memory_megabytes)
    started = time.monotonic()
    try:
        pickle.dump((kind, payload, limits.max_seconds), process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        seconds = time.monotonic() - started
        process.kill()
        process.communicate()
        raise _end(process.returncode, seconds, limits) from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    _put_back(process, limits.max_document_memory_megabytes)
    if isinstance(answer, str):
        raise RejectedError(answer)
    return Document(*answer)


def serve(megabytes: int) -> None:
    """Parse what comes from standard input until it ends: what the process of its own does."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for channel in (0, 1):
        os.dup2(nowhere, channel)
    # Now, so that their time is no document's; and while what they say of a failure is still heard.
    for name in ("bs4", "charset_normalizer", "pypdf"):
        importlib.import_module(name)
    os.dup2(nowhere, 2)
    # Who interrupts a run ends it, and with it this process's input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(megabytes * 2**20)
    answers.write(_READY)
    answers.flush()
    try:
        while True:
            _answer(requests, answers, nowhere)
    except EOFError:
        return
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _answer(requests: BinaryIO, answers: BinaryIO, nowhere: int) -> None:
    """Parse one document."""
    kind, payload, seconds = pickle.load(requests)
    # A thread of C, which also ends a parser that never comes back to Python.
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    answer: Any
    try:
        document = _parsed(kind, payload)
        answer = (document.text, document.encoding, document.page_starts)
    except RejectedError as error:
        answer = str(error)
    faulthandler.cancel_dump_traceback_later()
    pickle.dump(answer, answers)
    answers.flush()


def _parsed(kind: str, payload: bytes) -> Document:
    try:
        document: Document = getattr(documents, kind)(payload)
    except (RejectedError, MemoryError):
        raise
    except Exception as error:
        # Whatever a parser meets is the document's.
        raise RejectedError(f"cannot be parsed: {type(error).__name__}: {first_line(error)}") from error
    return document


_IDLE: list[tuple[int, "subprocess.Popen[bytes]"]] = []
_CHANGING = threading.Lock()


def _taken(megabytes: int) -> Any:
    """An idle process with that limit of memory, or a new one."""
    with _CHANGING:
        for place, (limit, process) in enumerate(_IDLE):
            if limit == megabytes:
                del _IDLE[place]
                if process.poll() is None:
                    return process
                process.communicate()
                break
    command = _SERVE.format(path=[path or os.getcwd() for path in sys.path], megabytes=megabytes)
    process = subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if process.stdout is None or process.stdout.readline() != _READY:
        process.kill()
        process.communicate()
        raise PlatformError("the process that parses documents does not start; its message stands above")
    return process


def _put_back(process: "subprocess.Popen[bytes]", megabytes: int) -> None:
    with _CHANGING:
        _IDLE.append((megabytes, process))


def _end(code: int, seconds: float, limits: DecodingSettings) -> RejectedError:
    if seconds >= limits.max_seconds:
        return over(limits, "max_seconds", "takes too long to be parsed")
    if code == _OUT_OF_MEMORY:
        return over(limits, "max_document_memory_megabytes", "needs too much memory to be parsed")
    if -code in _FROM_OUTSIDE:
        return cut_off(f"the process that parses it was ended by {signal.Signals(-code).name}")
    ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return RejectedError(f"cannot be parsed: it ends the parser {ended}")


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:
        return  # Where a system has no such limits, the time is still bounded.
    # What is reserved and never used does not count, as it would against RLIMIT_AS.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _end_idle() -> None:
    with _CHANGING:
        for _, process in _IDLE:
            try:
                if process.stdin is not None:
                    process.stdin.close()
                process.wait(timeout=_END_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
        _IDLE.clear()


def _forget_in_a_fork() -> None:
    global _CHANGING
    _CHANGING = threading.Lock()
    _IDLE.clear()


atexit.register(_end_idle)
os.register_at_fork(after_in_child=_forget_in_a_fork)
