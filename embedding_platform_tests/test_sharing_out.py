"""A folder that is shared out to buckets, and taken back: nothing is embedded again, and no search misses a file."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from embedding_platform.definitions import build_definitions
from embedding_platform.defs.jobs import job_name
from embedding_platform.errors import PlatformError
from embedding_platform.lineage import trace_file
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.runs import SourceRun, run_sources
from embedding_platform.search import Filter, Searcher
from embedding_platform.serving.app import make_app
from embedding_platform.watching import Watch
from embedding_platform_tests.conftest import open_platform

SPACES = ("text/minilm", "image_text/clip")
BUCKETS = ["letters~0of3", "letters~1of3", "letters~2of3"]


@dataclass
class Folder:
    """A project of letters and captioned photos in one folder, and a small source beside it."""

    place: Path
    dagster: dg.DagsterInstance
    spaces: Sequence[str] = SPACES[:1]
    searchers: dict[int, Searcher] = field(default_factory=dict)

    def platform(self, count: int) -> Platform:
        """As a new process opens it, with so many buckets."""
        return open_platform(
            self.place,
            spaces=list(self.spaces),
            runtime="torch",
            listing={"buckets": {"letters": count}, "quiet_seconds": 0},
        )

    def run(
        self, count: int, sources: Sequence[str] = (), before: Callable[[], None] = lambda: None
    ) -> list[SourceRun]:
        """Run everything; `before` is called before each run."""
        done = list(run_sources(self.platform(count), self.dagster, (), sources, lambda *_: before()))
        assert [failure for run in done for failure in run.failures] == []
        return done

    def found(self, count: int, source: str = "letters") -> list[str]:
        """The paths of all passages that a search in a source finds, sorted."""
        searcher = self.searchers.setdefault(count, Searcher(self.platform(count)))
        hits = searcher.search("a letter", SPACES[0], filter=Filter(sources=(source,)), limit=100)
        return sorted(hit.path for hit in hits)

    def partitions(self) -> list[str]:
        """The sources of text that Dagster has as partitions."""
        return sorted(self.dagster.get_dynamic_partitions("text_sources"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    letters = tmp_path / "media" / "letters"
    letters.mkdir(parents=True)
    for number in range(9):
        (letters / f"{number}.txt").write_text(f"Letter number {number}.")
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(letters / f"photo-{number}.png")
    for number in range(3):
        (letters / f"photo-{number}.txt").write_text(f"Photo number {number}.")
    lines = (f'{{"file_name": "photo-{number}.png", "text": "Photo number {number}."}}\n' for number in range(3, 9))
    (letters / "captions.jsonl").write_text("".join(lines))
    shutil.copytree(letters, tmp_path / "media" / "notes", ignore=shutil.ignore_patterns("photo-*", "captions.*"))
    with dg.instance_for_test() as dagster:
        yield Folder(tmp_path, dagster)
    close_directory(str(tmp_path / ".embedding_platform" / "milvus"))


def embedded(runs: Sequence[SourceRun]) -> int:
    return sum(run.of("embeddings", "embedded") for run in runs)


def test_a_folder_goes_over_to_buckets_and_back_without_a_gap(folder: Folder) -> None:
    whole = sorted(f"{number}.txt" for number in range(9))
    assert embedded(folder.run(1)) == 9, "once each, though notes are the same"
    assert folder.found(1) == whole

    seen: list[set[str]] = []
    runs = folder.run(3, before=lambda: seen.append(set(folder.found(3))))
    assert seen == [set(whole)] * 5, "before each run"
    assert [run.source for run in runs] == [*BUCKETS, "notes", "letters"]
    assert embedded(runs) == 0
    assert folder.partitions() == [*BUCKETS, "notes"]
    assert folder.found(3) == whole
    assert sorted(path for bucket in BUCKETS for path in folder.found(3, bucket)) == whole

    (folder.place / "media" / "letters" / "9.txt").write_text("Letter number 9.")
    assert embedded(folder.run(3, ["letters"])) == 1, "a folder stands for its buckets"
    assert folder.found(3) == [*whole, "9.txt"]

    seen.clear()
    runs = folder.run(1, before=lambda: seen.append({*folder.found(3)}))
    assert all(paths >= {*whole, "9.txt"} for paths in seen)
    assert embedded(runs) == 0
    assert folder.partitions() == ["letters", "notes"]
    assert folder.found(1) == [*whole, "9.txt"]
    with pytest.raises(PlatformError, match="unknown source 'letters~0of3'"):
        folder.found(1, BUCKETS[0])


def test_rows_stay_until_others_have_them_whoever_runs_their_source(folder: Folder) -> None:
    folder.run(1)
    platform = folder.platform(3)
    job = build_definitions(platform).resolve_job_def(job_name("text"))

    def run(source: str) -> dg.ExecuteInProcessResult:
        folder.dagster.add_dynamic_partitions("text_sources", [source])
        return job.execute_in_process(instance=folder.dagster, partition_key=source, raise_on_error=False)

    def wanted() -> dict[str, bool]:
        looks = Watch("text").look(platform, {"letters"}, 60).looks
        return {source: look.sight.differs or look.is_left for source, look in looks.items()}

    for number, bucket in enumerate(BUCKETS):
        assert run("letters").success
        expected = {source: source in BUCKETS[number:] for source in (*BUCKETS, "letters", "notes")}
        assert wanted() == expected, "no sensor asks for the old source to be run"
        assert len(set(folder.found(3))) == 9
        assert run(bucket).success
    assert wanted() == {**dict.fromkeys(BUCKETS, False), "letters": True, "notes": False}
    assert run("letters").success
    assert wanted() == dict.fromkeys([*BUCKETS, "letters", "notes"], False)
    assert platform.is_gone("text", "letters")


def test_what_is_in_a_bucket_is_traced_and_served_by_the_name_of_its_folder(folder: Folder) -> None:
    folder.spaces = SPACES
    folder.run(3)
    platform = folder.platform(3)
    for name in ("letters/5.txt", str(folder.place / "media" / "letters" / "5.txt")):
        (trace,) = trace_file(platform, name)
        assert (trace.source in BUCKETS, trace.file.path, len(trace.rows)) == (True, "5.txt", 1)
    (same,) = trace_file(platform, f"{trace.source}/5.txt")
    assert same == trace
    with pytest.raises(
        PlatformError, match=r"^letters/photo-1\.txt is the caption of letters/photo-1\.png; trace that"
    ):
        trace_file(platform, "letters/photo-1.txt")
    client = TestClient(make_app(lambda: platform), base_url="http://127.0.0.1:8000")
    fields = {"words": "photo", "space": SPACES[1], "source": "letters", "limit": 100}
    (answer,) = client.get("/api/search", params=fields).raise_for_status().json()["spaces"]
    photos = {hit["path"]: hit for hit in answer["hits"] if hit["role"] == "image"}
    assert {hit["source"] for hit in photos.values()} == set(BUCKETS)
    for path, hit in photos.items():
        file = (folder.place / "media" / "letters" / path).read_bytes()
        assert client.get(hit["links"]["media"]).raise_for_status().content == file
    assert len(photos) == 9
