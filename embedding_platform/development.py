"""The web UI with its daemon, and the local Milvus that its processes share, as one thing to start and stop."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import FrameType

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import serve
from embedding_platform.platform import Platform
from embedding_platform.settings import FILE_VARIABLE

SECONDS_TO_STOP = 30.0


def serve_web_ui(platform: Platform, host: str, port: int, settings_file: str | None = None) -> int:
    """Run `dagster dev` until it is stopped, with a Milvus Lite server beside it where Milvus is a folder.

    A Milvus Lite folder takes one process, and here several need it: runs, sensors and the
    command line. They find the server by the folder. Returns Dagster's exit status.

    Raises:
        PlatformError: if this folder has no dagster.yaml or no workspace.yaml, or if a model is
            not there, which would otherwise show as a stack trace of Dagster's code server.
    """
    for name in ("dagster.yaml", "workspace.yaml"):
        if not os.path.isfile(name):
            raise PlatformError(f"no {name} in this folder; change to the project's folder")
    platform.check()
    with ExitStack() as stack:
        if "://" not in platform.settings.milvus_uri:
            stack.enter_context(serve(platform.settings.milvus_uri))
        command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", host, "-p", str(port)]
        environment = dict(os.environ)
        if settings_file:
            environment[FILE_VARIABLE] = os.path.abspath(settings_file)
        # A shell that starts this in the background has interrupts ignored, and Dagster would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGHUP, _interrupt)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A second Ctrl-C must not leave Dagster behind in its own session.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.send_signal(signal.SIGINT)
            try:
                return process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
