"""Jobs in processes of their own, in which the decoding of one file ends the process, and what they leave.

This process imports everything once and forks a child for each job, as `convergence.zygote` does. A
`sitecustomize.py` puts the ends into the decoders, so that processes which decode apart have them too.
"""

import json
import os
import struct
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from embedding_platform.media import confinement
from embedding_platform_tests.media.made import tone, write_sound
from embedding_platform_tests.reconcile.small_lake import Lake

ROOT = Path(__file__).parents[2]

NOTES = "notes"
DECODED = "decoded.txt"

MARK = "hostile"
"""What the file holds, as a note of a PNG or anywhere in a container, that ends who decodes it."""

STEP_VARIABLE, END_VARIABLE, LOG_VARIABLE = "TEST_STEP", "TEST_END", "TEST_LOG"

ENDS = f'''
import ctypes, os, signal, sys
import av
from PIL import ImageFile

load, open_container = ImageFile.ImageFile.load, av.open

def meet():
    frame, steps = sys._getframe(), set()
    while frame is not None:
        steps.add(frame.f_code.co_name)
        frame = frame.f_back
    if os.environ.get("{STEP_VARIABLE}") not in steps:
        return
    with open(os.environ["{LOG_VARIABLE}"], "a") as log:
        log.write(f"{{os.getpid()}}\\n")
    if os.environ["{END_VARIABLE}"] == "SIGSEGV":
        ctypes.string_at(0)
    if os.environ["{END_VARIABLE}"] == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)

def loading(image):
    if "{MARK}" in image.info:
        meet()
    return load(image)

def opening(file, *arguments, **options):
    if b"{MARK}" in file.read():
        meet()
    file.seek(0)
    return open_container(file, *arguments, **options)

ImageFile.ImageFile.load, av.open = loading, opening
'''


FREE_BOX = struct.pack(">I4s", 8 + len(MARK), b"free") + MARK.encode()
"""Room in an MP4 that nobody reads (ISO/IEC 14496-12, 8.1.2)."""


def write_marked(path: Path) -> None:
    """A marked PNG or M4A, each of contents of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        note = PngInfo()
        note.add_text(MARK, path.name)
        Image.new("RGB", (9, 9), (len(path.name), 0, 0)).save(path, pnginfo=note)
    else:
        write_sound(path, tone(1, 44_100), codec="aac", container_format="mp4")
        path.write_bytes(path.read_bytes() + FREE_BOX)


def crash_in(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that this one starts crash when they decode a marked file in the function called `step`."""
    (folder / "sitecustomize.py").write_text(ENDS)
    variables = {"PYTHONPATH": f"{folder}:{ROOT}", **_variables(step, "SIGSEGV", folder)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def _variables(step: str, end: str, folder: Path) -> dict[str, str]:
    return {STEP_VARIABLE: step, END_VARIABLE: end, LOG_VARIABLE: str(folder / DECODED)}


@dataclass(frozen=True)
class Job:
    """The stages up to the vectors over a lake; decoding the marked file in the function called `step` ends
    the process by the signal called `end`, and nothing does if that is "".
    """

    root: str
    modality: str
    step: str
    end: str


class Jobs:
    """The parent's end of the process that forks jobs. `folder` is where it finds its `sitecustomize.py`."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(ENDS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job) -> dict[str, Any]:
        """What a job found: the code with which its process ended, and its reports if it came to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(asdict(job))}\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


def main() -> None:
    """Fork a child for each line of standard input."""
    for line in sys.stdin:
        job = Job(**json.loads(line))
        report = Path(job.root) / "report.json"
        report.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                report.write_text(json.dumps(_run(job)))
                status = 0
            except BaseException:  # noqa: BLE001 - the child must not go on as the process that forked it
                traceback.print_exc()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        told = json.loads(report.read_text()) if report.exists() else {}
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "process": child, **told}), flush=True)


def _run(job: Job) -> dict[str, Any]:
    root = Path(job.root)
    os.environ |= _variables(job.step, job.end, root)
    lake = Lake(root, job.modality, notes=str(root / NOTES))
    files, segments, embeddings = lake.run()
    confinement._end_idle()
    return {
        "rejected": [
            [stage, row[0], row[3]]
            for stage, report in (("files", files), ("segments", segments), ("embeddings", embeddings))
            for row in report.rejected
        ],
        "done": [files.hashed, len(segments.increment.new), len(embeddings.increment.new), lake.loads],
        "embedded": embeddings.embedded,
    }


if __name__ == "__main__":
    main()
