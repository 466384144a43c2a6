"""What the search API costs beside a bare pymilvus search of the same collection.

    .venv/bin/python benchmarks/serving.py                        # 5,000 passages in Milvus Lite
    .venv/bin/python benchmarks/serving.py --rows 20000 --clients 1 8 --rounds 5

Short texts are made, embedded and published as `embedding-platform run` does it, and served by
`embedding-platform serve` in a process of its own, on this machine alone. Each contestant asks the same questions from
so many threads at once, each with a connection of its own; contestants alternate, and a line is the median of
the rounds:

- bare search: `MilvusClient.search` with a vector at hand, which is the least that any search does
- bare get and search: the vector of a row, then its neighbours, which is what `more_like` does
- more_like: GET /api/more_like, in which no model runs
- words: GET /api/search, which encodes the words with MiniLM first
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.index import VECTOR_FIELD, search_parameters
from embedding_platform.milvus.schema import SCALAR_NAMES, alias_name
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings

SPACE = "text/minilm"
LIMIT = 10
SOURCES = 4
WORDS = (
    *("harbour", "lighthouse", "storm", "sailor", "compass", "bread", "sourdough", "oven", "flour", "volcano", "lava"),
    *(
        "ash",
        "crater",
        "bee",
        "flower",
        "meadow",
        "honey",
        "hive",
        "glacier",
        "moraine",
        "ice",
        "valley",
        "tide",
        "moon",
    ),
    *("water", "shore", "vector", "index", "graph", "recall", "backup", "disk", "lineage", "audio", "window", "frame"),
    *("clip", "picture", "colour", "shape", "circle", "square", "red", "blue", "green", "old", "new", "deep", "bright"),
)

Ask = Callable[[int], int]
"""Asks question number so-and-so, and returns how many hits came."""


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round: questions a second, and seconds of each question."""

    rate: float
    seconds: list[float]


def make_lake(folder: Path, rows: int) -> None:
    """Short texts in a few sources, each of them one passage."""
    drawn = random.Random(7)
    for number in range(rows):
        path = folder / "media" / f"source-{number % SOURCES}" / f"{number // 1000:03}" / f"{number:06}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(drawn.choices(WORDS, k=16)) + f" {number}.")
    (folder / "embedding_platform.yaml").write_text(f"spaces: [{SPACE}]\n")
    (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`embedding-platform serve` over a lake; yields its address."""
    command = [sys.executable, "-m", "embedding_platform.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("search at "):
            raise SystemExit(f"the server did not start: {line}")
        try:
            yield line.split()[2].rstrip(";")
        finally:
            process.terminate()


def bare_search(client: Any, platform: Platform, vectors: Sequence[list[float]], number: int) -> int:
    space = platform.space(SPACE)
    found = client.search(
        alias_name(SPACE),
        data=[vectors[number % len(vectors)]],
        anns_field=VECTOR_FIELD,
        limit=LIMIT,
        output_fields=list(SCALAR_NAMES),
        search_params=search_parameters(space.index, space.metric, LIMIT),
        consistency_level="Strong",
    )
    return len(found[0])


def bare_get_and_search(client: Any, platform: Platform, ids: Sequence[str], number: int) -> int:
    (row,) = client.get(alias_name(SPACE), ids=[ids[number % len(ids)]], output_fields=["*"])
    return bare_search(client, platform, [row[VECTOR_FIELD]], 0)


def asked(connections: threading.local, address: str, target: str) -> int:
    """Hits of one request, over the thread's own connection."""
    if not hasattr(connections, "one"):
        connections.one = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connections.one.request("GET", target)
    answer = connections.one.getresponse()
    payload = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{target} was answered with {answer.status}: {payload[:300]!r}")
    return sum(len(space["hits"]) for space in json.loads(payload)["spaces"])


def measured(ask: Ask, clients: int, questions: int) -> Round:
    """One round: so many questions, from so many threads at once."""
    waiting = iter(range(questions))
    turn = threading.Lock()
    seconds: list[float] = []

    def work() -> None:
        while True:
            with turn:
                number = next(waiting, None)
            if number is None:
                return
            started = time.perf_counter()
            hits = ask(number)
            seconds.append(time.perf_counter() - started)
            if hits != LIMIT:
                raise SystemExit(f"question {number} had {hits} hits, not {LIMIT}")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seconds) != questions:
        raise SystemExit(f"{questions - len(seconds)} of {questions} questions failed")
    return Round(questions / (time.perf_counter() - started), seconds)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(name: str, clients: int, rounds: Sequence[Round]) -> None:
    """One line: the medians of the rounds, and the least and greatest rate."""
    rates = [one.rate for one in rounds]
    shown = [
        f"{1000 * statistics.median(percentile(one.seconds, share) for one in rounds):.1f}"
        for share in (0.5, 0.95, 0.99)
    ]
    rate = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
    print(f"| {name} | {clients} | {rate} | {' | '.join(shown)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--questions", type=int, default=300, help="of each contestant in each round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_lake(folder, given.rows)
        subprocess.run([sys.executable, "-m", "embedding_platform.cli", "run"], cwd=folder, check=True)
        with served(folder) as address:
            compare(folder, address, given)


def compare(folder: Path, address: str, given: argparse.Namespace) -> None:
    platform = Platform(load_settings(folder / "embedding_platform.yaml"))
    # By its own client, which finds the server's Milvus by the folder.
    client = connect(platform.settings.milvus_uri)
    stored = client.query(alias_name(SPACE), filter='id >= ""', output_fields=["id", VECTOR_FIELD], limit=500)
    ids, vectors = [row["id"] for row in stored], [row[VECTOR_FIELD] for row in stored]
    drawn = random.Random(11)
    questions = [quote(" ".join(drawn.choices(WORDS, k=5))) for _ in range(500)]
    print(f"\n{given.rows} rows, {given.questions} questions a round, {given.rounds} rounds, {LIMIT} hits each\n")
    print("| | clients | a second (least-most) | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|---|")
    for clients in given.clients:
        connections = threading.local()

        def more_like(number: int, connections: threading.local = connections) -> int:
            return asked(connections, address, f"/api/more_like/{SPACE}/{ids[number % len(ids)]}?limit={LIMIT}")

        def words(number: int, connections: threading.local = connections) -> int:
            target = f"/api/search?words={questions[number % len(questions)]}&space={SPACE}&limit={LIMIT}"
            return asked(connections, address, target)

        contestants: dict[str, Ask] = {
            "bare search": partial(bare_search, client, platform, vectors),
            "bare get and search": partial(bare_get_and_search, client, platform, ids),
            "more_like": more_like,
            "words": words,
        }
        rounds: dict[str, list[Round]] = {name: [] for name in contestants}
        for ask in contestants.values():
            measured(ask, clients, min(20, given.questions))
        for _ in range(given.rounds):
            for name, ask in contestants.items():
                rounds[name].append(measured(ask, clients, given.questions))
        for name, done in rounds.items():
            report(name, clients, done)


if __name__ == "__main__":
    main()
