"""How much an incremental run spares: the sample media from nothing, unchanged, and with one file changed.

    .venv/bin/python benchmarks/incremental_run.py [--rounds 3]

Each round starts from an empty folder with models already loaded. Prints median seconds, the
ratio to the run from nothing (the baseline), and exact counts of what was embedded and written.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import dagster as dg
from PIL import Image

from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.runs import run_sources
from embedding_platform.settings import load_settings
from embedding_platform.starter.sample_media import make_sample_media


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    measured: dict[str, list[tuple[float, int, int]]] = {}
    for _ in range(rounds):
        for name, outcome in measure_round().items():
            measured.setdefault(name, []).append(outcome)
    baseline = statistics.median(seconds for seconds, _, _ in measured["from nothing"])
    print(f"{'run':<18}{'seconds':>9}{'ratio':>8}{'embedded':>10}{'written':>9}   ({rounds} rounds, medians)")
    for name, outcomes in measured.items():
        seconds = statistics.median(seconds for seconds, _, _ in outcomes)
        (counts,) = {(embedded, written) for _, embedded, written in outcomes}
        print(f"{name:<18}{seconds:>9.2f}{baseline / seconds:>8.1f}{counts[0]:>10}{counts[1]:>9}")


def measure_round() -> dict[str, tuple[float, int, int]]:
    with tempfile.TemporaryDirectory() as folder, dg.instance_for_test() as instance:
        make_sample_media(str(Path(folder, "media")))
        platform = Platform(load_settings(base=Path(folder)))
        for space in platform.spaces:
            platform.encoder(space)
        outcomes = {
            "from nothing": timed(platform, instance),
            "nothing changed": timed(platform, instance),
        }
        Image.new("RGB", (64, 64), "orange").save(Path(folder, "media", "shapes", "new.png"))
        outcomes["one image added"] = timed(platform, instance)
        close_directory(platform.settings.milvus_uri)
        return outcomes


def timed(platform: Platform, instance: dg.DagsterInstance) -> tuple[float, int, int]:
    started = time.perf_counter()
    runs = list(run_sources(platform, instance))
    seconds = time.perf_counter() - started
    assert all(run.succeeded for run in runs), [run.failures for run in runs]
    written = sum(run.of("collection", "upserted") + run.of("collection", "deleted") for run in runs)
    return seconds, sum(run.of("embeddings", "embedded") for run in runs), written


if __name__ == "__main__":
    main()
