"""Supervises two small parts: `python -m embedding_platform_tests.small_supervisor FOLDER HOW SECONDS_TO_END`.

HOW is that of the second part, as of `small_part`; or it never comes to work, or is broken.
"""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path

from embedding_platform import supervision
from embedding_platform.errors import PlatformError
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
            module = (
                "embedding_platform_tests.no_such_part" if manner == "broken" else "embedding_platform_tests.small_part"
            )
            part = Part(name, module, (str(file), manner), (lambda: False) if manner == "never ready" else file.exists)
            try:
                supervisor.start(part)
            except PlatformError as error:
                supervisor.stop()
                sys.exit(str(error))
        is_well = supervisor.watch()
        supervisor.stop()
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
