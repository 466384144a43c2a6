"""Jobs killed at every named boundary and at random times, in processes of their own: nothing is lost or done twice."""

import json
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedding_platform.milvus.connection import serve
from embedding_platform.models.loading import resolve
from embedding_platform.spaces import MODEL_SETS
from embedding_platform_tests.convergence.crash_points import POINTS
from embedding_platform_tests.convergence.published import Published, same
from embedding_platform_tests.convergence.zygote import EMBEDDED, LOG, PUBLISHED, RESULTS, Job, Zygote
from embedding_platform_tests.media.made import tone, write_sound, write_video
from embedding_platform_tests.milvus_server import MilvusServer

MODALITIES = ("text", "image", "image_text", "audio", "video")
SOURCES = ("one", "zwei & 日本")
FILES = 4
MANY_FILES = {"image_text": 12}
"""Files of the first source, where a run that is killed while it embeds is to have far more to do than it may lose."""

CHUNK = 2
IN_FLIGHT = 6
"""Contents that the model may have embedded beyond the chunk that is being stored: of each of two lanes two batches
of one content, one more on its way to them, and one in the hands of who takes them."""

FIRST = (
    "after hashing a file",
    "mid write of what was examined",
    "mid listing write",
    "after the listing",
    "after decode",
    "mid segment shard write",
    "after a segment shard",
    "after segments",
    "after model",
    "mid vector shard write",
    "after a vector shard",
    "between store and Milvus",
    "before create_collection",
    "mid making of a collection",
    "after create_collection",
    "mid write of what is intended",
    "before create_partition",
    "after create_partition",
    "before upsert",
    "mid upsert",
    "after upsert",
    "before note of the index",
    "after note of the index",
    "before create_index",
    "mid index build",
    "after create_index",
    "before what is verified",
    "after the collection",
    "before create_alias",
    "after create_alias",
)
"""Boundaries that the first run comes by, in its order, so that a killed one has the later ones still before it."""

OF_A_CHANGE = ("between removals", "during compaction", "before delete", "after delete")
OF_AN_INDEX = ("before drop_index", "after drop_index", "mid index build", "after create_index")
OF_A_MODEL = ("before alter_alias", "mid alias switch", "after alter_alias")
OF_A_GOING = ("before drop_partition", "after drop_partition")
OF_AN_INDEX_FILE = ("mid index file",)
OF_A_CUTTING = ("before older segments go",)

INDEX_TYPES = ("IVF_FLAT", "FLAT", "HNSW")

COMPACTING = ("text", "video")
"""Modalities whose vectors are compacted as soon as there are a few shards of them."""

OTHER_MODELS = ("image", "audio", "video")
"""Modalities that go over to another model, each killed at another of OF_A_MODEL."""

OFTEN = ("after hashing a file", "after decode", "after model", "after a vector shard", "before upsert", "after upsert")
"""Boundaries that a run passes at least twice."""


@dataclass
class Figures:
    """What many kills and resumes came to."""

    kills: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    rows: int = 0
    missing: int = 0
    duplicated: int = 0
    orphaned: int = 0
    different: int = 0
    embedded: int = 0
    embedded_twice: int = 0
    lost: Counter[int] = field(default_factory=Counter)
    embedded_though_stored: int = 0
    blamed_on_others: int = 0
    not_reached: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Figures") -> None:
        for name, value in other.__dict__.items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        lines = [
            f"{self.kills.total()} kills in {self.jobs} jobs, {self.rows} rows compared with a rebuild:",
            f"missing {self.missing}, duplicated {self.duplicated}, orphaned {self.orphaned}, other {self.different}",
            f"{self.embedded} contents embedded, {self.embedded_twice} of them again after a kill that came "
            f"before they were stored, {self.embedded_though_stored} again although they were stored",
            f"jobs by the contents that they embedded and did not store: {dict(sorted(self.lost.items()))}",
            f"{self.blamed_on_others} rows that a run said somebody else had changed, though nobody had",
            *(f"{count:5}  {name}" for name, count in sorted(self.kills.items())),
            *(f"{count:5}  not reached: {name}" for name, count in sorted(self.not_reached.items())),
        ]
        return "\n".join(lines)


class Lake:
    """The media of one modality in two sources, and its jobs, killed or not."""

    def __init__(
        self,
        folder: Path,
        modality: str,
        zygote: Zygote,
        figures: Figures,
        seed: int,
        milvus: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.modality, self.zygote, self.figures = folder, modality, zygote, figures
        self.random = random.Random(f"{seed} {modality}")
        self.settings: dict[str, Any] = {
            "runtime": "torch",
            "batch": {"chunk": CHUNK, "text": 64, "image": 1, "audio": 1, "video": 1, "readers": 1},
            **({"milvus": milvus} if milvus else {}),
        }
        self.compacts = modality in COMPACTING
        self.drawn = 0
        folder.mkdir(parents=True)
        for source in SOURCES:
            (folder / "media" / source).mkdir(parents=True)
            for number in range(MANY_FILES.get(modality, FILES) if source == SOURCES[0] else FILES):
                self.write(source, f"f{number}")

    def write(self, source: str, stem: str) -> None:
        """Write a file whose content none had before."""
        self.drawn += 1
        path, seed = self.folder / "media" / source / stem, self.drawn
        path.parent.mkdir(exist_ok=True)
        if self.modality == "text":
            words = np.random.default_rng(seed).choice(WORDS, 60)
            path.with_suffix(".txt").write_text(f"{seed} {' '.join(words)}.\n\nThe end of {seed}.", encoding="utf-8")
        elif self.modality == "audio":
            write_sound(path.with_suffix(".wav"), tone(0.5, 16_000, hertz=200.0 + 10 * seed), rate=16_000)
        elif self.modality == "video":
            write_video(path.with_suffix(".mp4"), [(40 * seed + level) % 230 for level in range(20)], sound=None)
        else:
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path.with_suffix(".png"))
            if self.modality == "image_text":
                path.with_suffix(".txt").write_text(f"picture number {seed}", encoding="utf-8")

    def change_media(self) -> None:
        """Add, change, rename, move and delete a file each."""
        one, other = (self.folder / "media" / source for source in SOURCES)
        self.write(SOURCES[0], f"added-{self.drawn}")
        stems = sorted({path.stem for path in one.iterdir() if path.stem.startswith("f")})
        changed, renamed, moved, deleted = self.random.sample(stems, 4) if len(stems) >= 4 else (*stems, *stems)[:4]
        self.write(SOURCES[0], changed)
        for path in sorted(one.iterdir()):
            if path.stem == renamed:
                path.rename(path.with_stem(f"f-renamed-{self.drawn}"))
            elif path.stem == moved:
                path.rename(other / f"moved-{self.drawn}{path.suffix}")
            elif path.stem == deleted:
                path.unlink()
        for number in range(2):
            self.write(SOURCES[0], f"f-more-{self.drawn}-{number}")

    def kill_at(self, points: Sequence[str], sources: Sequence[str]) -> None:
        """Start the job and kill it at each point, one after the other, without letting it finish between."""
        for name in points:
            passage = self.random.randint(1, 2) if name in OFTEN else 1
            if self.job(sources, name, passage) == -signal.SIGKILL:
                self.figures.kills[name] += 1
            else:
                self.figures.not_reached[name] += 1

    def kill_at_random(self, sources: Sequence[str], seconds: float) -> None:
        """Kill the job some time within `seconds`."""
        child = self.zygote.start(self._job(sources))
        timer = threading.Timer(self.random.uniform(0.05, seconds), _kill, [child])
        timer.start()
        status = self.zygote.join()
        timer.cancel()
        self.figures.jobs += 1
        assert status in (0, -signal.SIGKILL), self.log()
        if status == -signal.SIGKILL:
            self.figures.kills["at a random time"] += 1

    def kill_server(self, server: MilvusServer, sources: Sequence[str], seconds: float) -> None:
        """Kill the server some time within `seconds` of a job and start it again; the job outlasts it, or fails."""
        self.figures.jobs += 1
        self.zygote.start(self._job(sources))
        time.sleep(self.random.uniform(0.5, seconds))
        server.kill()
        server.start()
        assert self.zygote.join() in (0, 1), self.log()
        self.figures.kills["of the server"] += 1

    def finish(self, sources: Sequence[str] = ()) -> None:
        """Let the job end; it succeeds whatever the kills before it left."""
        assert self.job(sources) == 0, self.log()

    def job(self, sources: Sequence[str] = (), point: str = "", passage: int = 1, reads: bool = False) -> int:
        self.figures.jobs += 1
        self.zygote.start(self._job(sources, point, passage, reads))
        status = self.zygote.join()
        assert status in (0, -signal.SIGKILL), self.log()
        return status

    def compare(self) -> None:
        """Run all sources to the end, and compare with a rebuild from nothing; a further run does nothing."""
        before = self.published()
        again = self.published()
        told = [json.loads(line) for line in (self.folder / RESULTS).read_text("utf-8").splitlines()]
        assert [what for run in told[-len(present(self.folder)) :] for what in done(run["metadata"])] == []
        self.figures.blamed_on_others += sum(
            int(numbers.get(name, 0)) for run in told for numbers in run["metadata"].values() for name in BLAMES
        )
        rebuilt = Lake.__new__(Lake)
        rebuilt.__dict__.update(self.__dict__)
        rebuilt.settings = {**self.settings, "store_root": "rebuilt/store", "milvus": {"uri": "rebuilt/milvus"}}
        shutil.rmtree(self.folder / "rebuilt", ignore_errors=True)
        kept = (self.folder / EMBEDDED).read_bytes()
        expected = rebuilt.published()
        (self.folder / EMBEDDED).write_bytes(kept)
        for found in (before, again):
            self._count_differences(found, expected)

    def count_embedded(self) -> None:
        """Count what the model embedded more than once, from the accounts that the jobs kept."""
        embedded: Counter[str] = Counter()
        stored: set[str] = set()
        lost: list[int] = []
        for line in (self.folder / EMBEDDED).read_text("utf-8").splitlines():
            what, _, content = line.partition("\t")
            if what == "begun":
                lost.append(0)
            elif what == "stored":
                stored.add(content)
                lost[-1] -= 1
            else:
                embedded[content] += 1
                lost[-1] += 1
                self.figures.embedded_though_stored += content in stored
        self.figures.lost.update(lost)
        self.figures.embedded += len(embedded)
        self.figures.embedded_twice += embedded.total() - len(embedded)

    def published(self) -> dict[str, Published]:
        assert self.job(reads=True) == 0, self.log()
        found: dict[str, Published] = pickle.loads((self.folder / PUBLISHED).read_bytes())
        return found

    def another_model(self) -> None:
        """The same weights under another configuration: equal vectors, and another fingerprint."""
        models = {}
        for space in MODEL_SETS["starter"]:
            if space.modality == self.modality:
                own, copy = Path(resolve(space.model)), self.folder / "models" / space.name
                copy.mkdir(parents=True)
                for path in own.rglob("*"):
                    if path.is_file():
                        (copy / path.relative_to(own)).parent.mkdir(parents=True, exist_ok=True)
                        (copy / path.relative_to(own)).symlink_to(path)
                config = json.loads((copy / "config.json").read_text("utf-8"))
                (copy / "config.json").unlink()
                (copy / "config.json").write_text(json.dumps(config, indent=7), encoding="utf-8")
                models[space.key] = str(copy)
        self.settings["models"] = models

    def another_index(self, kind: str) -> None:
        spaces = [space.key for space in MODEL_SETS["starter"] if space.modality == self.modality]
        # Milvus Lite gives each of so few rows its own list: the usual 16 lists hold 16 rows, which the gate refuses.
        search = {"nprobe": 128} if kind == "IVF_FLAT" else {}
        self.settings["indexes"] = {key: {"type": kind, "search": search} for key in spaces}

    def log(self) -> str:
        """The end of what the jobs printed, for a failed assertion."""
        log = self.folder / LOG
        results = self.folder / RESULTS
        return "\n".join(path.read_text("utf-8")[-3000:] for path in (log, results) if path.exists())

    def _job(self, sources: Sequence[str], point: str = "", passage: int = 1, reads: bool = False) -> Job:
        return Job(str(self.folder), self.modality, sources, self.settings, point, passage, reads, self.compacts)

    def _count_differences(self, found: dict[str, Published], expected: dict[str, Published]) -> None:
        assert found.keys() == expected.keys()
        for space, wanted in expected.items():
            there = found[space]
            self.figures.rows += len(wanted.rows)
            self.figures.missing += len(wanted.rows.keys() - there.rows.keys())
            self.figures.orphaned += len(there.rows.keys() - wanted.rows.keys())
            self.figures.duplicated += sum(len(rows) > 1 for rows in there.rows.values())
            both = wanted.rows.keys() & there.rows.keys()
            self.figures.different += sum(not same(there.rows[key][0], wanted.rows[key][0]) for key in both)
            assert there.partitions == wanted.partitions
            # A server tells of an index what Milvus Lite, in which the rebuild lies, does not.
            assert there.index[:2] == wanted.index[:2]


WORDS = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath", "inlet", "juniper", "kelp", "lagoon")

WORK = {
    "new": ("segments",),
    "stale": ("segments",),
    "orphaned": ("segments",),
    "embedded": ("embeddings",),
    "reused": ("embeddings",),
    "upserted": ("collection",),
    "deleted": ("collection",),
    "index_built": ("collection",),
    "moved": ("published",),
    "partitions_removed": ("published",),
    "rows_removed": ("published",),
}
"""Numbers of a run's metadata that are zero where there was nothing to do, and the assets that tell them."""


BLAMES = ("dropped_by_others", "altered_by_others", "added_by_others")


def present(folder: Path) -> list[str]:
    """Sources that hold a file."""
    return [source.name for source in (folder / "media").iterdir() if any(source.iterdir())]


def done(metadata: dict[str, dict[str, float]]) -> Iterator[str]:
    """What a run did, by the metadata of its assets."""
    for asset, numbers in metadata.items():
        for name, stages in WORK.items():
            if asset.rsplit("/", 1)[-1] in stages and numbers.get(name):
                yield f"{asset}: {name} {numbers[name]}"


def torment(lake: Lake, place: int, rounds: int) -> None:
    """A history of one modality in which every kind of change meets its kills. `place` shares the points out."""
    one, other = SOURCES
    lanes = len(MODALITIES)
    lake.kill_at(FIRST[place::lanes], [one])
    lake.finish()
    for number in range(rounds):
        turn = place + number
        lake.change_media()
        lake.kill_at([OF_A_CHANGE[turn % len(OF_A_CHANGE)]], [one])
        lake.kill_at_random([one], 1.5)
        lake.finish([one])
        lake.another_index(INDEX_TYPES[number % len(INDEX_TYPES)])
        lake.kill_at([OF_AN_INDEX[turn % len(OF_AN_INDEX)]], [other])
        lake.kill_at_random([other], 1.5)
        if number == 0 and lake.modality in OTHER_MODELS:
            lake.another_model()
            lake.kill_at_random([one], 2.0)
            lake.finish([one])
            lake.kill_at([OF_A_MODEL[OTHER_MODELS.index(lake.modality)]], [other])
        if number == 0 and lake.modality == "text":
            lake.settings["cutting"] = {"overlap_tokens": 8}
            lake.kill_at(OF_A_CUTTING, [one])
        lake.finish()
    shutil.rmtree(lake.folder / "media" / other)
    lake.kill_at([OF_A_GOING[place % len(OF_A_GOING)]], [other])
    lake.kill_at_random([other], 1.0)
    lake.finish([other])
    # A partition that was dropped made Milvus Lite write what it had in memory to files, each with an index.
    lake.another_index(INDEX_TYPES[rounds % len(INDEX_TYPES)])
    lake.kill_at(OF_AN_INDEX_FILE, [one])
    lake.write(other, "back")
    lake.compare()
    lake.count_embedded()


def torment_all(folder: Path, rounds: int, seed: int) -> Figures:
    def share(modalities: Sequence[str]) -> Figures:
        zygote, figures = Zygote(), Figures()
        try:
            for modality in modalities:
                lake = Lake(folder / modality, modality, zygote, figures, seed)
                torment(lake, MODALITIES.index(modality), rounds)
        finally:
            zygote.close()
        return figures

    total = Figures()
    with ThreadPoolExecutor(2) as pool:
        for figures in pool.map(share, [MODALITIES[::2], MODALITIES[1::2]]):
            total.add(figures)
    return total


def check(figures: Figures) -> None:
    assert figures.rows > 0
    assert (figures.missing, figures.duplicated, figures.orphaned, figures.different) == (0, 0, 0, 0)
    assert (figures.embedded_though_stored, figures.blamed_on_others) == (0, 0)
    assert max(figures.lost) <= CHUNK + IN_FLIGHT
    assert figures.embedded_twice <= sum(lost * jobs for lost, jobs in figures.lost.items())


def _kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        # It has ended just now.
        return


@pytest.mark.proof
def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path, tell: Callable[[str], None]) -> None:
    figures = torment_all(tmp_path, rounds=1, seed=0)
    tell(str(figures))
    check(figures)
    assert figures.kills.total() >= 50
    assert max(figures.lost) > 0, "no job was killed while it embedded"
    assert figures.kills.keys() >= {point.name for point in POINTS}


@pytest.mark.long
def test_two_hundred_kills(tmp_path: Path, tell: Callable[[str], None]) -> None:
    figures = torment_all(tmp_path, rounds=9, seed=1)
    tell(str(figures))
    check(figures)
    assert figures.kills.total() >= 200


@pytest.mark.long
def test_a_job_that_dies_leaves_the_bundled_server_whole(tmp_path: Path, tell: Callable[[str], None]) -> None:
    """The server goes on; only the job is killed."""
    figures, zygote = Figures(), Zygote()
    try:
        with serve(str(tmp_path / "served")):
            lake = Lake(tmp_path / "lake", "audio", zygote, figures, seed=2, milvus={"uri": str(tmp_path / "served")})
            lake.kill_at(["after create_partition", "after upsert", "mid index build", "before create_alias"], ["one"])
            lake.finish()
            lake.change_media()
            lake.kill_at(["before delete", "after delete"], ["one"])
            lake.compare()
            lake.count_embedded()
    finally:
        zygote.close()
    tell(str(figures))
    check(figures)
    assert figures.kills.total() == 6


@pytest.mark.long
@pytest.mark.server
def test_neither_jobs_nor_a_server_that_die_harm_what_is_published(
    tmp_path: Path, mortal_server: MilvusServer, tell: Callable[[str], None]
) -> None:
    figures, zygote = Figures(), Zygote()
    try:
        milvus = {"uri": mortal_server.uri, "token": mortal_server.token}
        lake = Lake(tmp_path / "lake", "audio", zygote, figures, seed=3, milvus=milvus)
        lake.kill_at(["after create_partition", "mid upsert", "mid index build", "before create_alias"], ["one"])
        lake.kill_server(mortal_server, ["one"], 5.0)
        lake.finish()
        lake.change_media()
        lake.kill_at(["after upsert", "before delete", "after delete"], ["one"])
        lake.kill_server(mortal_server, ["one"], 5.0)
        lake.finish()
        lake.compare()
        lake.count_embedded()
    finally:
        zygote.close()
    tell(str(figures))
    check(figures)
    assert figures.kills.total() >= 7
    assert figures.kills["of the server"] == 2
