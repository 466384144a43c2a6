"""The process that serves one Milvus Lite directory: `python -m ... lite_server DIRECTORY`.

It prints its port once it listens, and stops when its standard input ends: the pipe closes
with the parent however that dies, so a killed parent leaves no server behind that holds the
directory.
"""

import signal
import sys

from milvus_lite.adapter.grpc.server import start_server_in_thread
from milvus_lite.exceptions import MilvusLiteError

from embedding_platform.milvus.connection import WORKERS


def main(directory: str) -> None:
    """Serve `directory` on a free port of this machine until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server, database, port = start_server_in_thread(directory, host="127.0.0.1", port=0, max_workers=WORKERS)
    except (MilvusLiteError, OSError) as error:
        sys.exit(str(error))
    print(port, flush=True)
    try:
        sys.stdin.buffer.read()
    finally:
        server.stop(grace=5).wait()
        database.close()


if __name__ == "__main__":
    main(sys.argv[1])
