"""What each program here is to `peers.py`: a process that embeds texts when asked, and says how long it took.

A request is a line of JSON on standard input: the file that holds the texts, and the file that
wants their vectors. The reply is a line of JSON on standard output: seconds and version, or what
is not installed, or what went wrong. Whatever else the peer prints goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

Fetch = Callable[[], np.ndarray]
"""Gives the vectors [n, 384] of the texts embedded last, in their order."""

Embed = Callable[[list[str]], Fetch]
"""Embeds texts to the point where the peer's user has what was asked for: this is what is timed, and no fetch."""


def serve(start: Callable[..., AbstractContextManager[Embed]], distribution: str, modules: Sequence[str]) -> None:
    """Answer requests until standard input ends.

    `start` is given the model's folder and the further arguments of the command line. It is left,
    and can stop what it started, before the process ends.

    Without one of `modules`, the reply is that the contestant is not installed.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    embed = None
    with ExitStack() as started:
        for line in sys.stdin:
            request = json.loads(line)
            if not all(map(find_spec, modules)):
                replies.write(json.dumps({"absent": True}) + "\n")
                return
            try:
                embed = embed or started.enter_context(start(*sys.argv[1:]))
                reply = {"seconds": _timed(embed, request), "version": version(distribution)}
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), "")
                replies.write(json.dumps({"error": f"{type(error).__name__}: {reason}"}) + "\n")
                raise
            replies.write(json.dumps(reply) + "\n")


def _timed(embed: Embed, request: dict[str, str]) -> float:
    texts = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
    begun = time.perf_counter()
    fetch = embed(texts)
    seconds = time.perf_counter() - begun
    np.save(request["vectors"], np.asarray(fetch(), np.float32))
    return seconds
