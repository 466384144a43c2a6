"""What the checks of a run cost that changes nothing: the source's vectors judged, and all sources looked at.

    .venv/bin/python benchmarks/checks.py
    .venv/bin/python benchmarks/checks.py --vectors 1000000 --dimension 768 --sources 1000

Vectors are drawn, in shards of the size that a compaction leaves. *Vectors* are judged and compared with the last
accepted distribution, as the embeddings asset does; *sources* are those that a collection is asked
for, as the asset `published` does. First where nothing is kept from an earlier run, then without a
change, in the median of five runs: seconds, those of a processor among them, and the bytes that the process read.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedding_platform import layout, storage
from embedding_platform.media.cutting import Cutting
from embedding_platform.reconcile.distribution import accept_distribution, compare_distribution
from embedding_platform.reconcile.drift import WriteAhead
from embedding_platform.reconcile.placed import unplaced
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.records import ITEMS
from embedding_platform.spaces import Model, Space
from embedding_platform.vectors.judged import judge_stored
from embedding_platform.vectors.store import SHARD_BYTES, append, stored_hashes

CUTTING = Cutting(tokenizer_file=None, max_tokens=24, overlap_tokens=0)
FINGERPRINT = "f" * 64
ROUNDS = 5
USUAL = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--sources", type=int, default=1000)
    options = parser.parse_args()
    model = Model("drawn", "drawn", options.dimension, ("text",), "none", "drawn")
    space = Space("text", "drawn", model)
    print(f"{'':<16}{'first s':>8}{'CPU s':>8}{'MB':>8}{'again s':>10}{'CPU s':>8}{'MB':>8}")
    with tempfile.TemporaryDirectory() as store:
        print_line(f"{options.vectors} vectors", judging(store, space, options.vectors))
        print_line(f"{options.sources} sources", looking(store, space, options.sources))


def judging(store: str, space: Space, count: int) -> Callable[[], None]:
    """Store drawn vectors of one source; returns what its checks do with them."""
    generator, folder = np.random.default_rng(0), layout.vectors_folder(store, space.key, FINGERPRINT, "drawn")
    shard = SHARD_BYTES // (4 * space.model.dimension)
    for first in range(0, count, shard):
        numbers = range(first, min(first + shard, count))
        vectors = generator.standard_normal((len(numbers), space.model.dimension), np.float32) + 0.5
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]
        append(folder, hashes, vectors, FINGERPRINT, "run", "cpu")
    live = stored_hashes(folder, FINGERPRINT)

    def check() -> None:
        judged = judge_stored(folder, space, live, FINGERPRINT)
        place = (store, space.key, FINGERPRINT, "drawn")
        change = compare_distribution(*place, judged, "version", USUAL)
        assert judged.judged == count
        assert not change.exceeded
        accept_distribution(*place, judged, change, "version")

    return check


def looking(store: str, space: Space, count: int) -> Callable[[], None]:
    """List sources of one file each and place them all; returns what asks for those that are not placed."""
    target, names = Target(space, FINGERPRINT), [f"source-{number}" for number in range(count)]

    def live(source: str) -> LiveRows:
        return LiveRows(store, space, source, FINGERPRINT, CUTTING)

    for source in names:
        storage.write_table(layout.items_url(store, space.modality, source), ITEMS.empty_table())
        WriteAhead(store, target.partition(source)).place(live(source).state())

    def look() -> None:
        assert unplaced(target, names, live) == []

    return look


def print_line(name: str, work: Callable[[], None]) -> None:
    """The figures of the first run, and the median of those of later ones."""
    first, *later = (measured(work) for _ in range(1 + ROUNDS))
    again = tuple(statistics.median(values) for values in zip(*later, strict=True))
    print(
        f"{name:<16}{first[0]:>8.2f}{first[1]:>8.2f}{first[2]:>8.1f}{again[0]:>10.2f}{again[1]:>8.2f}{again[2]:>8.1f}",
        flush=True,
    )


def measured(work: Callable[[], None]) -> tuple[float, float, float]:
    """Seconds, seconds of a processor, and megabytes read from files, whether or not they were in memory."""
    before, processor, started = bytes_read(), time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - started, time.process_time() - processor, (bytes_read() - before) / 1e6


def bytes_read() -> int:
    """Bytes that this process has read so far, as Linux counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


if __name__ == "__main__":
    main()
