"""The process of one part of `up`: `python -m embedding_platform.part SECONDS MODULE [ARGUMENT ...]`.

It runs a module as `python -m MODULE ARGUMENT ...` would, and ends when its standard input ends:
the pipe closes with the parent however that dies. Given SECONDS to end by itself, it and all that
it started, which belong to its process group, are killed.
"""

import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress


def main(seconds_to_end: float, module: str, arguments: list[str]) -> None:
    """Run `module` until it ends, or until the parent of this process does."""
    parent_is_gone = threading.Event()
    # What the module starts must not hold the pipe, nor read from it.
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    threading.Thread(target=_end_with_parent, args=(pipe, parent_is_gone, seconds_to_end), daemon=True).start()
    # A shell that starts `up` in the background has interrupts ignored, and Dagster would inherit that for
    # every way to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sys.argv = [module, *arguments]
    try:
        with suppress(KeyboardInterrupt):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if parent_is_gone.is_set():
            os.killpg(0, signal.SIGKILL)


def _end_with_parent(pipe: int, parent_is_gone: threading.Event, seconds_to_end: float) -> None:
    os.read(pipe, 1)
    parent_is_gone.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds_to_end)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
