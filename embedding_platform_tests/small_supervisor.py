"""Supervises two small parts: `python -m embedding_platform_tests.small_supervisor FOLDER HOW SECONDS_TO_END`."""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path

from embedding_platform import supervision
from embedding_platform.supervision import Part, Supervisor


def main(folder: str, how: str, seconds_to_end: str) -> None:
    supervision.SECONDS_TO_END = float(seconds_to_end)
    note = Path(folder) / "note.json"
    supervisor = Supervisor(
        dict(os.environ),
        say=lambda line: print(line, flush=True),
        changed=lambda running: note.write_text(json.dumps([astuple(one) for one in running])) and None,
    )
    with supervisor.stopped_by_signals():
        for name, manner in {"first": "plain", "second": how}.items():
            file = Path(folder) / f"{name}.pids"
            arguments = (str(file), manner)
            supervisor.start(Part(name, "embedding_platform_tests.small_part", arguments, file.exists))
        is_well = supervisor.watch()
        supervisor.stop()
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
