"""What a run costs as a source grows: nothing changed, 10 segments, 1 % of them, or all of them new.

    .venv/bin/python benchmarks/increments.py                                        # 10 thousand, Milvus Lite
    .venv/bin/python benchmarks/increments.py --segments 1000000 --uri http://127.0.0.1:19530 --token root:Milvus
    .venv/bin/python benchmarks/increments.py --segments 100000 --sources 10         # one after the other
    .venv/bin/python benchmarks/increments.py --segments 100000 --passages 1         # a file for each segment
    .venv/bin/python benchmarks/increments.py --segments 100000 --buckets 10         # a folder shared out to sources

Texts are files on disk, of 20 passages each where nothing else is asked for, and every stage is the one
that runs in production; only the vectors are drawn from a hash of the text instead of computed by a
model. Each run is a process of its own: seconds of each stage, the process's peak memory, and the
calls that the collection stage made to Milvus, reads and writes apart. With a directory, Milvus Lite
runs in that process too and counts as its memory; with a server it does not.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from embedding_platform.buckets import sources_of
from embedding_platform.media.cutting import Cutting
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.sync import read_rows
from embedding_platform.models.encoder import Lane, Prepared, Purpose
from embedding_platform.reconcile.collection import reconcile_collection
from embedding_platform.reconcile.embeddings import reconcile_embeddings
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import reconcile_segments
from embedding_platform.reconcile.target import Target
from embedding_platform.records import Content
from embedding_platform.settings import BatchSettings, ListingSettings, MilvusSettings, QualitySettings
from embedding_platform.spaces import Index, Model, Role, Space

FILES_PER_FOLDER = 1000
CUTTING = Cutting(tokenizer_file=None, max_tokens=24, overlap_tokens=0)
"""A passage of the texts below is one segment."""

STAGES = ("files", "segments", "embeddings", "collection")
WRITES = ("insert", "upsert", "delete")


@dataclass(frozen=True)
class Place:
    """Where sources lie, how many segments they have together, and where their rows go.

    Each file has `passages` segments. Each folder is shared out to so many `buckets`.
    """

    folder: str
    segments: int
    folders: Sequence[str]
    buckets: int
    passages: int
    dimension: int
    index: str
    uri: str
    token: str

    @property
    def media(self) -> str:
        """The media root."""
        return str(Path(self.folder, "media"))

    @property
    def store(self) -> str:
        """The store root."""
        return str(Path(self.folder, "store"))

    @property
    def listing(self) -> ListingSettings:
        """The settings that share the folders out."""
        return ListingSettings(buckets=dict.fromkeys(self.folders, self.buckets))

    @property
    def sources(self) -> Sequence[str]:
        """The sources of all folders."""
        return [source for folder in self.folders for source in sources_of(folder, self.listing.buckets)]

    @property
    def space(self) -> Space:
        """A space of texts, whose name tells the sizes, so that they share a Milvus."""
        model = Model("drawn", "drawn", self.dimension, ("text",), "none", "drawn from a hash of the text")
        index = {"HNSW": Index(), "FLAT": Index("FLAT", {}, {})}[self.index]
        name = f"increments_{self.segments}_{len(self.folders)}_{self.buckets}_{self.passages}"
        return Space("text", name, model, index=index)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the drawn vectors."""
        return hashlib.sha256(f"drawn {self.dimension}".encode()).hexdigest()


@dataclass(frozen=True)
class DrawnEncoder:
    """An encoder without a network: the vector of a text is drawn by a generator that its hash seeds."""

    dimension: int
    roles: tuple[Role, ...] = ("text",)
    device: str = "cpu"
    precision: str = "float32"
    runtime: str = "numpy"

    @property
    def lanes(self) -> Sequence[Lane]:
        """One lane."""
        return [self._run]

    def maximum(self, role: Role) -> str:
        """No bound."""
        return "any length"

    def prepare(self, role: Role, content: Content, purpose: Purpose = "document") -> Prepared:
        """The seed of the text."""
        payload = hashlib.sha256(str(content).encode()).digest()[:8]
        return {"seed": np.frombuffer(payload, np.uint64)}

    def cost(self, role: Role, prepared: Prepared) -> int:
        """Texts cost the same here."""
        return 1

    def shape(self, role: Role, prepared: Prepared) -> None:
        """Batches may mix: no network gives other bits in another batch."""

    def budget(self, role: Role) -> int:
        """Texts of one batch."""
        return 256

    def embed(self, role: Role, batch: Sequence[Content], purpose: Purpose = "document") -> np.ndarray:
        """Float32 [n, dimension]."""
        return self._run(role, [self.prepare(role, content) for content in batch])

    def _run(self, role: Role, batch: Sequence[Prepared]) -> np.ndarray:
        drawn = [
            np.random.Generator(np.random.SFC64(int(prepared["seed"][0]))).standard_normal(self.dimension, np.float32)
            for prepared in batch
        ]
        return np.stack(drawn)


class CountingClient:
    """A Milvus client that counts the calls made through it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        """What the client has; a method counts when it is called."""
        found = getattr(self._client, name)
        return partial(self._counted, name, found) if callable(found) else found

    def _counted(self, name: str, method: Callable[..., Any], *values: Any, **named: Any) -> Any:
        self.calls[name] += 1
        return method(*values, **named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[10_000])
    parser.add_argument("--sources", type=int, default=1, help="folders that the segments are shared out to")
    parser.add_argument(
        "--buckets", type=int, default=1, help="sources that the files of each folder are shared out to"
    )
    parser.add_argument("--passages", type=int, default=20, help="segments of each file")
    parser.add_argument("--uri", default="", help="a Milvus server; without one, Milvus Lite in the folder")
    parser.add_argument("--token", default="")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--index", choices=("HNSW", "FLAT"), default="HNSW")
    parser.add_argument("--folder", help="where media and store lie, and stay; without it, a temporary folder")
    parser.add_argument("--parts", action="store_true", help="peaks, calls and steps of the collection stage as well")
    options = parser.parse_args()
    stages = "".join(f"{stage:>12}" for stage in STAGES)
    figures = f"{'all':>8}{'peak MiB':>10}{'reads':>7}{'writes':>8}{'embedded':>10}{'rows':>9}"
    print(f"{'segments':>9} {'run':<12}{stages}{figures}")
    for segments in options.segments:
        with kept_or_temporary(options.folder) as folder:
            uri = options.uri or str(Path(folder, f"milvus-{segments}"))
            own = str(Path(folder, str(segments)))
            folders = [f"library-{number:02}" for number in range(options.sources)]
            size = (segments, folders, options.buckets, options.passages, options.dimension)
            place = Place(own, *size, options.index, uri, options.token)
            measure(place, options.parts)


@contextmanager
def kept_or_temporary(folder: str | None) -> Iterator[str]:
    """The folder, or one that is removed in the end."""
    if folder:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield temporary


def measure(place: Place, parts: bool) -> None:
    """Print a line for each run over the sources, which grow from nothing and then change."""
    files = place.segments // place.passages
    changes: dict[str, Callable[[], None]] = {
        "all new": lambda: write(place, range(files), edition=0),
        "no change": lambda: None,
        "10 changed": lambda: write(place, range(1, 11), edition=1, changed=1),
        "1 % changed": lambda: write(place, range(0, files, 100), edition=2),
    }
    try:
        for name, change in changes.items():
            change()
            outcome = in_a_process(run, place)
            print_line(place, name, outcome)
            if parts:
                print(json.dumps({name: outcome[name] for name in ("peaks", "calls", "steps")}), flush=True)
        seconds, rows, before, peak = in_a_process(read_back, place)
        print(
            f"{place.segments:>9} {'read back':<12}{seconds:>56.2f}{peak:>10.0f}"
            f"   ids and versions of {rows} rows by milvus.sync.read_rows; {before:.0f} MiB before"
        )
    finally:
        in_a_process(drop, place)


def print_line(place: Place, name: str, outcome: dict[str, Any]) -> None:
    """One line of the table."""
    seconds, calls = outcome["seconds"], outcome["calls"]
    writes = sum(calls.get(name, 0) for name in WRITES)
    print(
        f"{place.segments:>9} {name:<12}"
        + "".join(f"{seconds[stage]:>12.2f}" for stage in STAGES)
        + f"{sum(seconds.values()):>8.1f}{outcome['peaks']['collection']:>10.0f}{sum(calls.values()) - writes:>7}"
        f"{writes:>8}{outcome['embedded']:>10}{outcome['written']:>9}",
        flush=True,
    )


def write(place: Place, numbers: Iterable[int], edition: int, changed: int | None = None) -> None:
    """Write the documents of those numbers; the first `changed` passages of each, or all, tell of the edition."""
    changed = place.passages if changed is None else changed
    for number in numbers:
        folder = place.folders[number % len(place.folders)]
        path = Path(place.media, folder, f"{number // FILES_PER_FOLDER:04}", f"{number:07}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [
            f"Passage {passage} of document {number}, edition {edition if passage < changed else 0}, tells of tides, "
            "of lighthouses and of bread."
            for passage in range(place.passages)
        ]
        path.write_text("\n\n".join(texts))


def run(place: Place) -> dict[str, Any]:
    """Run every stage of every source, and tell its seconds, the peak memory after it, and what was done."""
    counted = CountingClient(connect(place.uri, place.token))
    client = cast("Any", counted)
    totals: Counter[str] = Counter()
    seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    steps: Counter[str] = Counter()
    peaks: dict[str, float] = {}

    def stage(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        report = work()
        seconds[name] += time.perf_counter() - started
        peaks[name] = peak_mib()
        return report

    encoder = DrawnEncoder(place.dimension)
    space, fingerprint, target = place.space, place.fingerprint, Target(place.space, place.fingerprint)
    for source in place.sources:
        cut = (place.store, "text", source, CUTTING)
        vectors = (place.store, space, source, fingerprint, CUTTING)
        stage("files", partial(reconcile_files, place.store, place.media, "text", source, place.listing))
        stage("segments", partial(reconcile_segments, *cut))
        embeddings = stage(
            "embeddings", partial(reconcile_embeddings, *vectors, lambda: encoder, BatchSettings(), "run")
        )
        totals["embedded"] += embeddings.embedded
        del embeddings
        rows = (LiveRows(*vectors), MilvusSettings(), QualitySettings())
        collection = stage("collection", partial(reconcile_collection, client, target, *rows))
        steps.update(collection.seconds)
        totals.update(rows=collection.rows, written=collection.sync.upserted + collection.sync.deleted)
    assert totals["rows"] == place.segments, f"{totals['rows']} rows, expected {place.segments}"
    close(place)
    return {"seconds": seconds, "peaks": peaks, "calls": dict(counted.calls), "steps": dict(steps), **totals}


def read_back(place: Place) -> tuple[float, int, float, float]:
    """Seconds to read ids and versions of all rows, their number, and the peak memory before and after in MiB."""
    client = connect(place.uri, place.token)
    target, each = Target(place.space, place.fingerprint), place.segments // len(place.sources)
    before, started = peak_mib(), time.perf_counter()
    rows = sum(len(read_rows(client, target.partition(source), expected=each)) for source in place.sources)
    seconds = time.perf_counter() - started
    close(place)
    return seconds, rows, before, peak_mib()


def drop(place: Place) -> None:
    """Drop the collection of this size."""
    client = connect(place.uri, place.token)
    name = Target(place.space, place.fingerprint).collection
    if client.has_collection(name):
        client.drop_collection(name)
    close(place)


def close(place: Place) -> None:
    """Leave a directory of Milvus Lite to the next process."""
    if "://" not in place.uri:
        close_directory(place.uri)


def in_a_process(work: Callable[[Place], Any], place: Place) -> Any:
    """What `work` returns in a process of its own, which shares no memory with this one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (place,))


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
