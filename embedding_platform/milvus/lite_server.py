"""The process that serves one Milvus Lite directory: `python -m ... lite_server DIRECTORY [PORT]`.

It prints its port once it listens, and stops when its standard input ends: the pipe closes
with the parent however that dies, so a killed parent leaves no server behind that holds the
directory. A port is asked for where a server that died is replaced.
"""

import logging
import signal
import sys

from milvus_lite.exceptions import MilvusLiteError

from embedding_platform.milvus.lite_engine import LiteEngine


def main(directory: str, port: int = 0) -> None:
    """Serve `directory` on a port of this machine, 0 for any that is free, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The log goes to a file; without a handler of its own the engine's watcher would swallow it.
    logging.basicConfig(level=logging.WARNING)
    try:
        engine = LiteEngine(directory, port)
    except (MilvusLiteError, OSError, RuntimeError) as error:
        sys.exit(str(error))
    print(engine.port, flush=True)
    try:
        sys.stdin.buffer.read()
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
