"""Texts to vectors with all-MiniLM-L6-v2 on the CPU: this project and its peers, on one corpus, with the same weights.

    pip install torch==2.13.0 && pip install -e '.[starter,openvino,bench]'
    python benchmarks/peers.py [--rounds 3] [--texts 1000] [--only sentence-transformers openvino]

Each contestant is a program in `peer_programs/`, whose first lines say which way of its documentation
it takes, and what is timed beside the model. It runs in a process of its own, where the model is
loaded and has embedded other texts before anything is timed, except Daft's, which is loaded at each
call. In a round each contestant embeds the corpus once, one after the other; every other round goes
backwards.

A peer that is not installed is left out, with the reason. Install them into an environment of
their own: fastembed holds huggingface_hub below 2, and Daft pyarrow below 26.

The ratio is to `encode` of sentence-transformers in the same round. Cosines are to its vectors.

infinity asks for a numpy before 2, which this project cannot have: give it an environment of its own.

    python3 -m venv /tmp/infinity
    /tmp/infinity/bin/pip install torch==2.13.0 'infinity-emb[torch]>=0.0.78'
    python benchmarks/peers.py --python infinity=/tmp/infinity/bin/python
"""

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

import corpus
from embedding_platform.errors import PlatformError
from embedding_platform.inference.precision import cosines
from embedding_platform.models.loading import resolve
from embedding_platform.spaces import MODEL_SETS

PROGRAMS = Path(__file__).parent / "peer_programs"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
}
"""The weights are here already, and waiting for somebody's usage statistics is not embedding."""

DIMENSION = 384

WARM_UP = 64
"""Texts that each contestant embeds before it is timed, none of them in the corpus."""

PATIENCE = 1800
"""Seconds after which a contestant counts as hung."""


@dataclass(frozen=True)
class Contestant:
    name: str
    program: str
    arguments: tuple[str, ...] = ()
    install: str = ""


BASELINE = Contestant("sentence-transformers", "with_sentence_transformers.py", install="sentence-transformers")

CONTESTANTS = (
    BASELINE,
    Contestant("daft", "with_daft.py", install="daft"),
    Contestant("pixeltable", "with_pixeltable.py", install="pixeltable"),
    Contestant("cocoindex", "with_cocoindex.py", install="cocoindex"),
    Contestant("fastembed", "with_fastembed.py", install="fastembed onnx onnxscript"),
    *(
        Contestant(f"infinity {dtype}", "with_infinity.py", (dtype,), "'infinity-emb[torch]'")
        for dtype in ("float32", "bfloat16")
    ),
    *(
        Contestant(f"{runtime} {dtype}", "with_embedding_platform.py", (runtime, dtype), "embedding-platform")
        for runtime in ("torch", "openvino")
        for dtype in ("float32", "bfloat16")
    ),
)
"""The last four are this project, by runtime and precision."""


@dataclass
class Measured:
    version: str = ""
    seconds: list[float] = field(default_factory=list)
    cosines: np.ndarray = field(default_factory=lambda: np.empty(0))


class UnableError(Exception):
    """Why a contestant cannot take part, or go on."""


@dataclass(frozen=True)
class Running:
    """A contestant's process, and the folder that it works in."""

    contestant: Contestant
    process: subprocess.Popen[str]
    asks: IO[str]
    replies: IO[str]
    folder: Path

    def embed(self, texts: Path, count: int) -> tuple[float, str, np.ndarray]:
        """Seconds, version, and vectors float32 [count, 384] of the `count` texts in the file.

        Raises:
            UnableError: if it fails, ends, hangs, or gives other than that.
        """
        vectors = self.folder / "vectors.npy"
        reply = self._ask({"texts": str(texts), "vectors": str(vectors)})
        if "absent" in reply:
            raise UnableError(f"not installed: pip install {self.contestant.install}")
        if "error" in reply:
            raise UnableError(reply["error"])
        found = np.load(vectors)
        if found.shape != (count, DIMENSION) or not np.isfinite(found).all():
            raise UnableError(f"gave {found.shape} numbers, not all of them finite, or not {(count, DIMENSION)}")
        return reply["seconds"], reply["version"], found

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        line = ""
        # A process that has ended breaks the pipe here, or gives an empty line there.
        with contextlib.suppress(BrokenPipeError):
            self.asks.write(json.dumps(request) + "\n")
            self.asks.flush()
            ready, _, _ = select.select([self.replies], [], [], PATIENCE)
            if not ready:
                self._stop()
                raise UnableError(f"no answer within {PATIENCE} s")
            line = self.replies.readline()
        if not line:
            raise UnableError(f"ended with exit status {self.process.wait()}; {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def end(self) -> None:
        """Let it end by itself, so that it stops its own servers; if it does not, stop all that it started."""
        # Closing fails where a request is still to be written to a process that has ended.
        with contextlib.suppress(BrokenPipeError):
            self.asks.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self._stop()
        self.replies.close()

    def _stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of names; the baseline runs in any case")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the Python of the contestants whose names begin so",
    )
    asked = parser.parse_args()
    if asked.rounds < 1 or asked.texts < 1:
        parser.error("at least one round and one text are needed")
    names = [contestant.name for contestant in CONTESTANTS]
    pythons = dict(one.partition("=")[::2] for one in asked.python)
    for beginning in [*(asked.only or ()), *pythons]:
        if not any(name.startswith(beginning) for name in names):
            parser.error(f"nobody's name begins with {beginning}; there are {', '.join(names)}")
    contestants = [
        contestant
        for contestant in CONTESTANTS
        if contestant == BASELINE or not asked.only or contestant.name.startswith(tuple(asked.only))
    ]
    try:
        texts = corpus.texts(asked.texts + WARM_UP)
    except ValueError as error:
        parser.error(str(error))
    try:
        compare(contestants, asked.rounds, texts[WARM_UP:], texts[:WARM_UP], pythons)
    except PlatformError as error:
        raise SystemExit(str(error)) from None


def compare(
    contestants: Sequence[Contestant],
    rounds: int,
    texts: Sequence[str],
    others: Sequence[str],
    pythons: Mapping[str, str],
) -> None:
    """Let the contestants warm up with `others`, measure them on `texts`, and print the table.

    Raises:
        PlatformError: if the weights are not installed.
        SystemExit: if the baseline cannot run.
    """
    count = len(texts)
    with tempfile.TemporaryDirectory() as scratch:
        warm_up, measured_on = Path(scratch, "warm_up.json"), Path(scratch, "corpus.json")
        warm_up.write_text(json.dumps(others), encoding="utf-8")
        measured_on.write_text(json.dumps(texts), encoding="utf-8")
        running: list[Running] = []
        unable: dict[str, str] = {}
        try:
            for number, contestant in enumerate(contestants):
                folder = Path(scratch, str(number))
                folder.mkdir()
                try:
                    running.append(_start(contestant, folder, pythons))
                    running[-1].embed(warm_up, len(others))
                except (UnableError, OSError) as error:
                    _leave(contestant.name, error, unable)
            measured = _measure(running, measured_on, count, rounds, unable)
        finally:
            for one in running:
                one.end()
    words = sum(len(text.split()) for text in texts)
    print(
        f"{count} texts of {words / count:.0f} words on average, {os.cpu_count()} cores of {_processor()}, "
        f"rounds: {rounds}, medians\n"
    )
    _print_table(measured, count)
    for name, reason in unable.items():
        print(f"{name}: {reason}")


def _start(contestant: Contestant, folder: Path, pythons: Mapping[str, str]) -> Running:
    python = next((path for name, path in pythons.items() if contestant.name.startswith(name)), sys.executable)
    (model,) = (space.model for space in MODEL_SETS["starter"] if space.modality == "text")
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [python, str(PROGRAMS / contestant.program), resolve(model), *contestant.arguments],
            cwd=folder,
            env=os.environ | OFFLINE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    return Running(contestant, process, process.stdin, process.stdout, folder)


def _measure(
    running: Sequence[Running], texts: Path, count: int, rounds: int, unable: dict[str, str]
) -> dict[str, Measured]:
    """What each contestant did in all rounds. Who fails in one leaves for `unable`, with the reason."""
    measured = {one.contestant.name: Measured() for one in running if one.contestant.name not in unable}
    found: dict[str, np.ndarray] = {}
    for number in range(rounds):
        for one in running if number % 2 == 0 else reversed(running):
            name = one.contestant.name
            if name in unable:
                continue
            try:
                seconds, measured[name].version, found[name] = one.embed(texts, count)
            except UnableError as error:
                _leave(name, error, unable)
                continue
            measured[name].seconds.append(seconds)
    finished = {name: outcome for name, outcome in measured.items() if name not in unable}
    for name, outcome in finished.items():
        outcome.cosines = cosines(found[name], found[BASELINE.name])
    return finished


def _leave(name: str, error: Exception, unable: dict[str, str]) -> None:
    if name == BASELINE.name:
        raise SystemExit(f"{name}, to which all are compared, cannot run: {error}")
    unable[name] = str(error)


def _print_table(measured: Mapping[str, Measured], count: int) -> None:
    baseline = measured[BASELINE.name].seconds
    heads = ("contestant", "version", "texts/s", "(min to max)", "ratio", "worst cosine", "mean cosine")
    print("{:<23}{:<11}{:>9}{:>18}{:>8}{:>14}{:>13}".format(*heads))
    for name, outcome in measured.items():
        rates = [count / seconds for seconds in outcome.seconds]
        ratio = statistics.median(one / own for one, own in zip(baseline, outcome.seconds, strict=True))
        spread = f"({min(rates):.1f} to {max(rates):.1f})"
        print(
            f"{name:<23}{outcome.version:<11}{statistics.median(rates):>9.1f}{spread:>18}{ratio:>8.2f}"
            f"{outcome.cosines.min():>14.6f}{outcome.cosines.mean():>13.6f}"
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
