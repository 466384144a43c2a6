"""How fast each model embeds, from file to stored vector, and how near that is to the machine's limit.

    .venv/bin/python benchmarks/embedding.py [--models minilm clip-image] [--rounds 3] [--json table.json]

Contestants of each model, at full size with seeded weights (MiniLM: its own), on the same files:

- article: the code of the article, repaired as `embedding_platform.reference` says, one item at a time;
- library: sentence-transformers' `encode` of the whole list, or transformers' processor and model on batches of 8;
- ours, in each runtime and precision: files are read, decoded, embedded and stored as Parquet shards.

Each contestant has a process of its own, which loads and warms up outside the timing. Rounds
alternate the contestants. Printed are the medians over rounds: items a second, their ratio to the
article's, the worst cosine to the right float32 vector, the share of the rate that the bare model
reaches on prepared batches, and the share of the matrix-multiply peak that this machine showed at
that precision (floating point operations of matrix products, convolutions and attention, counted
by torch's FlopCounterMode over the network as its library runs it). Above each table stands
what no code of ours can change on this machine: the ratio at which the bfloat16 peak would be
reached, and how long a core reads, decodes and prepares an item, which the model cannot use.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import corpus
import media
from embedding_platform.inference.batch_size import cut as cut_batches
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.inference.precision import PrecisionRecord, cosines, machine
from embedding_platform.inference.stream import Embedded, embed_stream
from embedding_platform.media.cutting import Cutting, cut, read
from embedding_platform.records import Item, Segment, digest
from embedding_platform.spaces import MODEL_SETS, Model, Role
from embedding_platform.vectors import store

CHUNK = 512
"""Vectors of one shard, as in a run."""

SOON = 6.0
"""Seconds of a run after which its parts are not measured in every round."""


@dataclass(frozen=True)
class Benchmark:
    """One model: where it is described, what it embeds, and how many items a round has."""

    name: str
    space: str
    role: Role
    reference: str
    items: int
    article: str = "article"
    right: str = "article"
    """The function of `reference` whose vectors are the right ones."""
    baseline: str = "article"
    """The function of `reference` that the target is a ratio to."""
    target: float = 1.0


BENCHMARKS = (
    Benchmark("minilm", "text/minilm", "text", "sentence_transformer", 600, target=5),
    Benchmark("mpnet", "text/mpnet", "text", "sentence_transformer", 96, target=8),
    Benchmark("resnet50", "image/resnet50", "image", "resnet50", 96, target=5.5),
    Benchmark("clip-image", "image/clip", "image", "clip", 16, *["article_image"] * 3, target=6),
    Benchmark("clip-text", "image/clip", "text", "clip", 96, *["article_text"] * 3, target=10),
    Benchmark("whisper", "audio/whisper", "audio", "whisper", 16, right="encoder_padded", target=4),
    Benchmark(
        "perceiver", "video/perceiver", "video", "perceiver", 8, "encoder_only", "encoder_only", "encoder_only", 12
    ),
)

OURS = {
    f"ours {runtime} {precision}": Execution("cpu", runtime, precision)  # type: ignore[arg-type]
    for runtime in ("torch", "openvino")
    for precision in ("float32", "bfloat16")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[one.name for one in BENCHMARKS], default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep models and media here instead of in a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    chosen = [one for one in BENCHMARKS if arguments.models is None or one.name in arguments.models]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        peaks = _in_a_process(_matmul_peaks)
        print(f"{machine('cpu')}, {multiprocessing.cpu_count()} cores; {platform.platform()}; {date.today()}")
        print(", ".join(f"{name} {version(name)}" for name in _packages()))
        print("matrix-multiply peak: " + ", ".join(f"{kind} {peak:.0f} GFLOP/s" for kind, peak in peaks.items()))
        figures = {}
        for benchmark in chosen:
            figures[benchmark.name] = _measure(benchmark, folder, arguments.rounds, peaks)
            _print(benchmark, figures[benchmark.name])
    if arguments.json:
        arguments.json.write_text(json.dumps({"peaks": peaks, "models": figures}, indent=1))


def _packages() -> list[str]:
    names = ["torch", "transformers", "sentence-transformers", "openvino", "numpy", "pillow", "av"]
    return [name for name in names if importlib.util.find_spec(name.replace("-", "_").replace("pillow", "PIL"))]


def _measure(benchmark: Benchmark, folder: Path, rounds: int, peaks: dict[str, float]) -> dict[str, Any]:
    """A row for each contestant, medians over rounds that alternate them, and what explains them."""
    model = _model(benchmark, folder)
    inputs = _inputs(benchmark, folder)
    flops = _in_a_process(_flops_of, benchmark, model, inputs)
    names = ["article", "library", *OURS]
    workers = {name: _Worker(_contestant, name, benchmark, model, inputs) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    bare: dict[str, list[float]] = {name: [] for name in names}
    vectors = {}
    try:
        for worker in workers.values():
            worker.answer()
        right = workers["article"].ask("right")
        preparing = statistics.median(workers[name].ask("prepare") for name in OURS)
        for _ in range(rounds):
            for name, worker in workers.items():
                elapsed, vectors[name] = worker.ask("run")
                seconds[name].append(elapsed)
                # The bare model of one that takes long is measured once.
                if name in OURS and (elapsed < SOON or not bare[name]):
                    bare[name].append(worker.ask("bare"))
    finally:
        for worker in workers.values():
            worker.end()
    rates = {name: [len(inputs) / one for one in found] for name, found in seconds.items()}
    base = statistics.median(rates["article"])
    rows = []
    for name in names:
        rate = statistics.median(rates[name])
        precision = "bfloat16" if "bfloat16" in name else "float32"
        rows.append(
            {
                "contestant": name,
                "items_per_second": rate,
                "least": min(rates[name]),
                "most": max(rates[name]),
                "ratio": rate / base,
                "worst_cosine": float(cosines(vectors[name], right).min()),
                "share_of_model_only": rate * statistics.median(bare[name]) / len(inputs) if name in OURS else None,
                "share_of_peak": rate * flops / 1e9 / peaks[precision],
            }
        )
    return {
        "rows": rows,
        "gigaflops_per_item": flops / 1e9,
        "milliseconds_to_prepare_an_item": 1e3 * preparing / len(inputs),
        "ratio_at_the_bfloat16_peak": peaks["bfloat16"] / (base * flops / 1e9),
    }


def _model(benchmark: Benchmark, folder: Path) -> Model:
    """The catalogue's description of the model, at a folder where its full-size architecture lies."""
    spaces = {space.key: space.model for space in MODEL_SETS["hub"]}
    described = spaces[benchmark.space]
    if benchmark.name == "minilm":
        location = next(space.model.location for space in MODEL_SETS["starter"] if space.key == benchmark.space)
    else:
        place = folder / "models" / benchmark.reference
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            _in_a_process(_save, benchmark.reference, place)
        location = str(place)
    return Model(**{**asdict(described), "location": location, "revision": None})


def _save(reference: str, place: Path) -> None:
    importlib.import_module(f"embedding_platform.reference.{reference}").save(place)


def _inputs(benchmark: Benchmark, folder: Path) -> list[str]:
    """Texts, or paths of media files."""
    if benchmark.role == "text":
        texts = corpus.texts(benchmark.items)
        # CLIP reads captions, and no more than 77 tokens.
        return [" ".join(text.split()[:30]) for text in texts] if benchmark.reference == "clip" else texts
    made = {"image": media.photographs, "audio": media.recordings, "video": media.clips}[benchmark.role]
    return [str(path) for path in made(folder / benchmark.role, benchmark.items)]


@dataclass(frozen=True)
class _Contestant:
    """What a worker can be asked for."""

    run: Callable[[], np.ndarray]
    bare: Callable[[], float] | None = None
    prepare: Callable[[], float] | None = None
    right: Callable[[], np.ndarray] | None = None


def _contestant(name: str, benchmark: Benchmark, model: Model, inputs: list[str]) -> _Contestant:
    from embedding_platform.models.loading import resolve

    folder = resolve(model)
    reference = importlib.import_module(f"embedding_platform.reference.{benchmark.reference}")
    if name == "article":
        slow = getattr(reference, benchmark.baseline)(folder)
        right = slow if benchmark.right == benchmark.baseline else getattr(reference, benchmark.right)(folder)
        slow(inputs[0])
        return _Contestant(
            run=lambda: np.stack([np.ravel(slow(one)) for one in inputs]),
            right=lambda: np.stack([np.ravel(right(one)) for one in inputs]),
        )
    if name == "library":
        batched = _library(benchmark, folder)
        batched(inputs[:2])
        return _Contestant(run=lambda: batched(inputs))
    return _ours(OURS[name], benchmark, model, inputs)


def _ours(execution: Execution, benchmark: Benchmark, model: Model, inputs: list[str]) -> _Contestant:
    modality = benchmark.space.split("/")[0] if benchmark.role != "text" else "text"
    files = [_segments(modality, benchmark.role, number, one) for number, one in enumerate(inputs)]
    segments = [segment for group in files for segment in group]
    encoder = load_encoder(model, execution, PrecisionRecord())
    budgets = {benchmark.role: encoder.budget(benchmark.role)}
    read_one = partial(read, modality)
    folder = tempfile.mkdtemp()

    def run() -> np.ndarray:
        found = []
        waiting: list[Embedded] = []
        for outcome in embed_stream(files, read_one, encoder, budgets):
            assert isinstance(outcome, Embedded), outcome
            waiting.append(outcome)
            if len(waiting) == CHUNK:
                found.append(_stored(folder, waiting, encoder.device))
                waiting = []
        if waiting:
            found.append(_stored(folder, waiting, encoder.device))
        return np.concatenate(found)

    prepared = [encoder.prepare(benchmark.role, content) for group in files for content in read(modality, group)]
    assert len(prepared) == len(segments) == len(inputs)

    def bare() -> float:
        """Seconds of the lanes alone, on prepared contents in batches of one shape, which are not filled up."""
        shapes: dict[Any, list[Any]] = {}
        for one in prepared:
            shapes.setdefault(encoder.shape(benchmark.role, one), []).append(one)
        batches = [
            alike[part]
            for alike in shapes.values()
            for part in cut_batches([encoder.cost(benchmark.role, one) for one in alike], budgets[benchmark.role])
        ]
        waiting = iter(batches)
        started = time.perf_counter()

        def work(lane: Any) -> None:
            for batch in waiting:
                lane(benchmark.role, batch)

        lanes = encoder.lanes
        with ThreadPoolExecutor(len(lanes)) as pool:
            for done in [pool.submit(work, lane) for lane in lanes]:
                done.result()
        return time.perf_counter() - started

    def prepare() -> float:
        """Seconds of one thread that reads, decodes and prepares everything."""
        started = time.perf_counter()
        for group in files:
            for content in read(modality, group):
                encoder.prepare(benchmark.role, content)
        return time.perf_counter() - started

    run()
    return _Contestant(run, bare, prepare)


def _segments(modality: str, role: Role, number: int, one: str) -> list[Segment]:
    if role == "text":
        return [Segment(f"{number}", f"{number}", "", "", "text", 0, 0, len(one), one, digest(one))]
    item = Item(Path(one).name, one, Path(one).stat().st_size, "", "", digest(one))
    return cut(modality, "benchmark", item, Cutting(None, 200, 0))


def _stored(folder: str, outcomes: Sequence[Embedded], device: str) -> np.ndarray:
    vectors = np.stack([outcome.vector for outcome in outcomes])
    store.append(folder, [outcome.segment.content_hash for outcome in outcomes], vectors, "benchmark", device)
    return vectors


def _library(benchmark: Benchmark, folder: str) -> Callable[[list[str]], np.ndarray]:
    """The library's own batched way, 8 media at once."""
    import torch

    if benchmark.reference == "sentence_transformer":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder, device="cpu")
        return lambda texts: model.encode(texts, show_progress_bar=False)
    embed = {
        "resnet50": _library_resnet50,
        "clip": _library_clip_text if benchmark.role == "text" else _library_clip_image,
        "whisper": _library_whisper,
        "perceiver": _library_perceiver,
    }[benchmark.reference](folder)

    def batched(inputs: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([embed(inputs[start : start + 8]).numpy() for start in range(0, len(inputs), 8)])

    return batched


def _library_resnet50(folder: str) -> Callable[[list[str]], Any]:
    from PIL import Image
    from transformers import AutoImageProcessor, ResNetModel

    processor, model = AutoImageProcessor.from_pretrained(folder), ResNetModel.from_pretrained(folder).eval()
    return lambda paths: model(
        **processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    ).pooler_output.flatten(1)


def _library_clip_image(folder: str) -> Callable[[list[str]], Any]:
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPModel

    processor, model = AutoImageProcessor.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    return lambda paths: (
        model.get_image_features(
            **processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
        ).pooler_output
    )


def _library_clip_text(folder: str) -> Callable[[list[str]], Any]:
    from transformers import AutoTokenizer, CLIPModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    return lambda texts: (
        model.get_text_features(
            **tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        ).pooler_output
    )


def _library_whisper(folder: str) -> Callable[[list[str]], Any]:
    from transformers import AutoFeatureExtractor, WhisperModel

    extractor, model = AutoFeatureExtractor.from_pretrained(folder), WhisperModel.from_pretrained(folder).eval()

    def embed(paths: list[str]) -> Any:
        sounds = [_only_content("audio", path).samples for path in paths]
        features = extractor(sounds, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
        states = model.encoder(features["input_features"]).last_hidden_state
        heard = features["attention_mask"][:, ::2, None].float()
        return (states * heard).sum(1) / heard.sum(1)

    return embed


def _library_perceiver(folder: str) -> Callable[[list[str]], Any]:
    """transformers has no batched way of its own for it that fits into memory: one clip at a time."""
    import torch

    plain = importlib.import_module("embedding_platform.reference.perceiver").encoder_only(folder)
    return lambda paths: torch.from_numpy(np.stack([plain(path) for path in paths]))


def _only_content(modality: str, path: str) -> Any:
    (content,) = read(modality, _segments(modality, "audio", 0, path))
    return content


def _flops_of(benchmark: Benchmark, model: Model, inputs: list[str]) -> float:
    """Floating point operations of an item, in the mean, counted in the library's batched way on some of them."""
    from torch.utils.flop_counter import FlopCounterMode

    from embedding_platform.models.loading import resolve

    batched = _library(benchmark, resolve(model))
    # Texts differ, and are counted one at a time, so that no padding is; media are brought to one size.
    counted = inputs if benchmark.role == "text" else inputs[:1]
    counter = FlopCounterMode(display=False)
    # Its own tracker of modules asks for gradients, which nothing here has.
    counter.mod_tracker = _Untracked()
    with counter:
        for one in counted:
            batched([one])
    return counter.get_total_flops() / len(counted)


class _Untracked(contextlib.nullcontext[None]):
    """Says of each operation that it belongs to the whole."""

    parents = ("Global",)


def _matmul_peaks(size: int = 2048, rounds: int = 12) -> dict[str, float]:
    """GFLOP/s of one square matrix product, the best of several, by torch and by OpenVINO, the better of both."""
    import torch

    peaks = {}
    for name in ("float32", "bfloat16"):
        left, right = (torch.randn(size, size).to(getattr(torch, name)) for _ in range(2))
        best = min(_timed(partial(torch.mm, left, right)) for _ in range(rounds))
        peaks[name] = 2 * size**3 / best / 1e9
    if importlib.util.find_spec("openvino"):
        import openvino
        from openvino import opset8

        for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
            given = opset8.parameter([size, size], np.float32)
            weights = opset8.constant(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32))
            product = openvino.Model([opset8.matmul(given, weights, False, False)], [given])
            compiled = openvino.compile_model(product, "CPU", {"INFERENCE_PRECISION_HINT": hint})
            request, payload = compiled.create_infer_request(), np.ones((size, size), np.float32)
            best = min(_timed(partial(request.infer, [payload])) for _ in range(rounds))
            peaks[name] = max(peaks[name], 2 * size**3 / best / 1e9)
    return peaks


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class _Worker:
    """A contestant in a process of its own, which works only when it is asked."""

    def __init__(self, make: Callable[..., _Contestant], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, *arguments), daemon=True)
        self._process.start()

    def ask(self, what: str) -> Any:
        self._here.send(what)
        return self.answer()

    def answer(self) -> Any:
        return self._here.recv()

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, make: Callable[..., _Contestant], *arguments: Any) -> None:
    contestant = make(*arguments)
    pipe.send("ready")
    while True:
        match pipe.recv():
            case "run":
                started = time.perf_counter()
                vectors = contestant.run()
                pipe.send((time.perf_counter() - started, vectors))
            case "bare" if contestant.bare:
                pipe.send(contestant.bare())
            case "prepare" if contestant.prepare:
                pipe.send(contestant.prepare())
            case "right" if contestant.right:
                pipe.send(contestant.right())


def _in_a_process(call: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _print(benchmark: Benchmark, measured: dict[str, Any]) -> None:
    title = (
        f"{benchmark.name}: {benchmark.items} items; target {benchmark.target:g}x, "
        f"{measured['ratio_at_the_bfloat16_peak']:.1f}x at the bfloat16 peak; "
        f"{measured['milliseconds_to_prepare_an_item']:.1f} ms of a core to read and prepare an item"
    )
    table = Table(title=title, title_justify="left")
    for name in ("contestant", "items/s", "least-most", "ratio", "worst cosine", "of model only", "of matmul peak"):
        table.add_column(name, justify="left" if name == "contestant" else "right")
    for row in measured["rows"]:
        share = row["share_of_model_only"]
        table.add_row(
            row["contestant"],
            f"{row['items_per_second']:.2f}",
            f"{row['least']:.2f}-{row['most']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['worst_cosine']:.5f}",
            f"{share:.0%}" if share else "",
            f"{row['share_of_peak']:.0%}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
