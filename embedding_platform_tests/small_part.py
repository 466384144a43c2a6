"""A part for tests of supervision: it starts a child of its own, writes both numbers down, and waits.

`python -m embedding_platform_tests.small_part FILE HOW`: a stubborn one does not listen to SIGTERM, a weak
one ends at once.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(file: str, how: str) -> None:
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Path(file).open("a") as written:
        written.write(f"{os.getpid()} {child.pid}\n")
    if how == "weak":
        sys.exit(3)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
