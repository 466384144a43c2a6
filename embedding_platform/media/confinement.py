"""Work on hostile files in a process of its own, whose end is not that of the run.

Parsers of PDF and HTML are loops over what the file says, and a file of a few bytes can send
them round for days. Nothing in a thread can stop that, so the process ends when it takes too long
or too much memory. All PDF go there, and HTML and text above SMALL_BYTES: there is one process for
each reader at work. It is started once and parses one document after the other; it costs a start of
some tenths of a second, and the way of the bytes through a pipe.

Decoders of images, sound and video are native code, and a file can crash them. They cost too much
to be fed through a pipe by default; those files go there that are suspected to crash them.
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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.media import documents
from embedding_platform.media.documents import Document
from embedding_platform.media.limits import crashed, cut_off, over
from embedding_platform.settings import DecodingSettings

SMALL_BYTES = 16 * 2**10
"""Text and HTML of this size are parsed on the spot: at their worst they take under a second."""

_SERVE = "import sys; sys.path[:] = {path}; from embedding_platform.media.confinement import serve; serve({megabytes})"

_READY = b"ready\n"

_END_SECONDS = 5.0
"""What a process has to end by itself once nothing more is asked of it."""

_OUT_OF_MEMORY = 77
"""Status of the process when a file takes more memory than it may, or than there is."""

_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
"""What ends a process for reasons that are not the file's."""

Value = TypeVar("Value")


class DiedError(RejectedError):
    """A file whose decoder ended before it was done, with the process of its own."""


def parse(kind: str, payload: bytes, limits: DecodingSettings) -> Document:
    """The text of a document; `kind` is "plain", "html" or "pdf".

    Raises:
        RejectedError: if it cannot be parsed, or not within the limits.
    """
    if kind != "pdf" and len(payload) <= SMALL_BYTES:
        return _parsed(kind, payload)
    confined = _confined(once, (_parsed, kind, payload), limits.max_document_memory_megabytes, limits.max_seconds)
    try:
        (document,) = confined
    except _EndedError as ended:
        raise _end_of_parser(ended, limits) from None
    return document


def decoded_apart(function: Callable[..., Iterable[Value]], *arguments: Any) -> Iterator[Value]:
    """Yield what `function` gives for `arguments`, which decodes media, from a process of its own.

    Function, arguments and what it gives travel as pickles. Time and memory are bounded by what the function
    itself looks at, as in this process.

    Raises:
        DiedError: if the process ends before it is done.
        BaseException: whatever the function raises.
    """
    try:
        yield from _confined(function, arguments, None, None)
    except _EndedError as ended:
        raise _end_of_decoder(ended) from None


def once(function: Callable[..., Value], *arguments: Any) -> Iterator[Value]:
    """Yield the one value that `function` gives."""
    yield function(*arguments)


def serve(megabytes: int | None) -> None:
    """Do what comes from standard input until it ends: what the process of its own does.

    `megabytes` bounds its memory, which is so where it parses documents.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for channel in (0, 1):
        os.dup2(nowhere, channel)
    # Now, so that their time is no document's; and while what they say of a failure is still heard.
    for name in ("bs4", "charset_normalizer", "pypdf") if megabytes is not None else ():
        importlib.import_module(name)
    os.dup2(nowhere, 2)
    # Who interrupts a run ends it, and with it this process's input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if megabytes is not None:
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
    """Do one thing that is asked for: each value it gives is an answer, and so is its end, with the error of it."""
    function, arguments, seconds = pickle.load(requests)
    if seconds is not None:
        # A thread of C, which also ends a parser that never comes back to Python.
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    raised: Exception | None = None
    try:
        for value in function(*arguments):
            pickle.dump((True, value), answers)
            answers.flush()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - raised where it was asked for
        raised = _portable(error)
    faulthandler.cancel_dump_traceback_later()
    pickle.dump((False, raised), answers)
    answers.flush()


def _portable(error: Exception) -> Exception:
    """An error as it can be raised in another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a class of any library may fail here in any way
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    return error


def _parsed(kind: str, payload: bytes) -> Document:
    try:
        document: Document = getattr(documents, kind)(payload)
    except (RejectedError, MemoryError):
        raise
    except Exception as error:
        # Whatever a parser meets is the document's.
        raise RejectedError(f"cannot be parsed: {type(error).__name__}: {first_line(error)}") from error
    return document


class _EndedError(Exception):
    """The process ended so many seconds after it was asked, with that return code of `subprocess`."""

    def __init__(self, code: int, seconds: float) -> None:
        super().__init__()
        self.code = code
        self.seconds = seconds


def _confined(
    function: Callable[..., Iterable[Value]],
    arguments: tuple[Any, ...],
    megabytes: int | None,
    seconds: float | None,
) -> Iterator[Value]:
    """Yield what a function gives in a process of its own, which may take so much memory and time.

    Raises:
        _EndedError: if the process ends before the function does.
        BaseException: whatever the function raises.
    """
    process = _taken(megabytes)
    started = time.monotonic()
    try:
        pickle.dump((function, arguments, seconds), process.stdin)
        process.stdin.flush()
        while True:
            goes_on, answer = pickle.load(process.stdout)
            if not goes_on:
                break
            yield answer
    except (EOFError, OSError, pickle.UnpicklingError):
        took = time.monotonic() - started
        process.kill()
        process.communicate()
        raise _EndedError(process.returncode, took) from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    _put_back(process, megabytes)
    if answer is not None:
        raise answer


_IDLE: list[tuple[int | None, "subprocess.Popen[bytes]"]] = []
_CHANGING = threading.Lock()


def _taken(megabytes: int | None) -> Any:
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
        raise PlatformError("the process that decodes files apart does not start; its message stands above")
    return process


def _put_back(process: "subprocess.Popen[bytes]", megabytes: int | None) -> None:
    with _CHANGING:
        _IDLE.append((megabytes, process))


def _end_of_parser(ended: _EndedError, limits: DecodingSettings) -> RejectedError:
    if ended.seconds >= limits.max_seconds:
        return over(limits, "max_seconds", "takes too long to be parsed")
    if ended.code == _OUT_OF_MEMORY:
        return over(limits, "max_document_memory_megabytes", "needs too much memory to be parsed")
    if -ended.code in _FROM_OUTSIDE:
        return cut_off(f"the process that parses it was ended {_cause(ended.code)}")
    return RejectedError(f"cannot be parsed: it ends the parser {_cause(ended.code)}")


def _end_of_decoder(ended: _EndedError) -> DiedError:
    if ended.code == _OUT_OF_MEMORY:
        return DiedError(cut_off("there is too little memory left to decode it"))
    if -ended.code in _FROM_OUTSIDE:
        return DiedError(cut_off(f"the process that decodes it was ended {_cause(ended.code)}"))
    return DiedError(crashed(_cause(ended.code)))


def _cause(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


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
