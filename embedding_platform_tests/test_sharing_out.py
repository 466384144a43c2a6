"""A folder that is shared out to buckets, and taken back: nothing is embedded again, and no search misses a file."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from embedding_platform.buckets import own_paths, sources_of
from embedding_platform.definitions import build_definitions
from embedding_platform.defs.jobs import job_name
from embedding_platform.errors import PlatformError
from embedding_platform.lineage import trace_file
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory
from embedding_platform.milvus.query import restricted
from embedding_platform.milvus.schema import alias_name, read_provenance
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

    def platform(
        self,
        count: int,
        large_source: int = 100,
        named_partitions: int = 512,
        search_words: bool = True,
        megabytes: int = 32,
    ) -> Platform:
        """As a new process opens it, with so many buckets; 0 for settings that do not name the folder."""
        buckets = {"letters": count} if count else {}
        return open_platform(
            self.place,
            spaces=list(self.spaces),
            runtime="torch",
            listing={"buckets": buckets, "quiet_seconds": 0, "large_source": large_source},
            milvus={"named_partitions": named_partitions, "search_words": search_words},
            decoding={"max_document_megabytes": megabytes},
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


@pytest.mark.long
def test_a_folder_goes_over_to_buckets_others_and_back_without_a_gap(folder: Folder) -> None:
    whole = sorted(f"{number}.txt" for number in range(9))
    assert embedded(folder.run(1)) == 9, "once each, though notes are the same"
    former = ["letters"]
    for count in (3, 2, 1):
        seen: list[set[str]] = []
        runs = folder.run(count, before=lambda count=count, seen=seen: seen.append({*folder.found(count)}))
        assert seen == [set(whole)] * len(runs), "before each run, by the folder's name"
        now = sources_of("letters", {"letters": count})
        assert [run.source for run in runs] == [*now, "notes", *former]
        assert embedded(runs) == 0
        assert folder.partitions() == [*now, "notes"]
        assert folder.found(count) == whole
        assert sorted(path for source in now for path in folder.found(count, source)) == whole
        for gone in (source for source in former if source != "letters"):
            with pytest.raises(PlatformError, match=f"unknown source '{gone}'"):
                folder.found(count, gone)
        former = now

    (folder.place / "media" / "letters" / "9.txt").write_text("Letter number 9.")
    assert embedded(folder.run(3, ["letters"])) == 1, "a folder stands for its buckets"
    assert folder.found(3) == [*whole, "9.txt"]


@pytest.mark.proof
def test_rows_stay_until_others_have_them_whoever_runs_their_source(folder: Folder) -> None:
    folder.run(1)
    platform = folder.platform(3)
    run = partial(run_by_hand, folder)

    for number, bucket in enumerate(BUCKETS):
        assert run(platform, "letters").success
        assert asked_for(platform) == {*BUCKETS[number:]}, "no sensor asks for the old source to be run"
        assert len(set(folder.found(3))) == 9
        assert run(platform, bucket).success
    assert asked_for(platform) == {"letters"}
    # The new file is in a bucket alone when the setting goes back.
    (folder.place / "media" / "letters" / "9.txt").write_text("Letter number 9.")
    (mine,) = (bucket for bucket in BUCKETS if own_paths(bucket)("9.txt"))
    assert run(platform, mine).success
    back = folder.platform(1)
    for bucket in BUCKETS:
        assert run(back, bucket).success
        assert len(set(folder.found(1))) == 10
    assert asked_for(back) >= {"letters"}
    assert mine not in asked_for(back)
    assert run(back, "letters").success
    assert mine in asked_for(back)
    for bucket in BUCKETS:
        assert run(back, bucket).success
        assert len(set(folder.found(1))) == 10
    assert asked_for(back) == set()
    assert all(back.is_gone("text", bucket) for bucket in BUCKETS)


def test_a_disk_that_is_away_while_a_folder_goes_over_takes_nothing_along(folder: Folder) -> None:
    folder.run(1)
    letters = folder.place / "media" / "letters"
    letters.rename(folder.place / "unmounted")
    letters.mkdir()
    platform = folder.platform(3, large_source=9)
    seen = Watch("text").look(platform, {"letters"}, 60)
    assert "9 files were listed there before" not in str(seen.problems.get("notes"))
    assert "files were listed there before" in seen.problems["letters"]
    assert not run_by_hand(folder, platform, "letters").success
    assert len(set(folder.found(3))) == 9


@pytest.mark.long
def test_a_change_of_buckets_that_changes_the_collection_ends_in_one_run(folder: Folder) -> None:
    """From a collection that places rows by a key to one of named partitions, with the number of sources."""
    names = sorted(f"{number}.txt" for number in range(9))
    for count, layout in ((9, "keyed"), (1, "named")):
        platform = folder.platform(count, named_partitions=5)
        done = list(run_sources(platform, folder.dagster, ["text"]))
        assert [failure for run in done for failure in run.failures] == []
        collection = alias_target(platform.milvus, alias_name(SPACES[0]))
        assert read_provenance(platform.milvus, collection).layout == layout
        sources = sources_of("letters", {"letters": count})
        holding = {source for source in sources if any(map(own_paths(source), names))}
        assert folder.partitions() == sorted({*holding, "notes"})
        assert folder.found(count) == names


def test_a_file_that_cannot_be_used_keeps_no_folder_from_going_over(folder: Folder) -> None:
    letters = folder.place / "media" / "letters"
    paths = {
        f"odd-{number}": bucket for number in range(99) for bucket in BUCKETS if own_paths(bucket)(f"odd-{number}")
    }
    for path in letters.iterdir():
        if own_paths(BUCKETS[1])(path.name):
            path.unlink()
    broken = next(path for path, bucket in paths.items() if bucket == BUCKETS[1])
    (letters / f"{broken}.pdf").write_bytes(b"%PDF-1.4 broken")
    large = next(path for path, bucket in paths.items() if bucket == BUCKETS[0])
    (letters / f"{large}.txt").write_text(f"A word.{' ' * 2**20}")
    folder.run(1)
    assert f"{large}.txt" in folder.found(1)

    platform = folder.platform(3, megabytes=1)
    done = list(run_sources(platform, folder.dagster, ["text"]))
    assert [(run.source, run.succeeded) for run in done] == [(name, True) for name in [*BUCKETS, "notes", "letters"]]
    assert folder.partitions() == [*BUCKETS, "notes"]
    assert (platform.sources()["text"], platform.is_gone("text", "letters")) == ([*BUCKETS, "notes"], True)
    assert f"{large}.txt" not in folder.found(3), "as a platform that begins now would have it"


def test_a_bucket_whose_files_cannot_be_used_blocks_where_those_of_its_folder_block(folder: Folder) -> None:
    letters = folder.place / "media" / "letters"
    for path in letters.iterdir():
        path.unlink()
    for number in range(9):
        (letters / f"{number}.pdf").write_bytes(b"%PDF-1.4 broken")
    done = list(run_sources(folder.platform(3), folder.dagster, ["text"], ["letters"]))
    assert [run.source for run in done if not run.succeeded] == BUCKETS


@pytest.mark.proof
def test_what_a_collection_alone_has_of_a_folder_stays_in_it_until_all_successors_are(folder: Folder) -> None:
    whole = sorted(f"{number}.txt" for number in range(9))
    without = partial(folder.platform, search_words=False)
    assert all(run.succeeded for run in run_sources(without(1), folder.dagster, ["text"]))
    # To another collection, that is not published since one source is left out; and back, to the one with the old rows.
    assert all(run.succeeded for run in run_sources(folder.platform(3), folder.dagster, ["text"], ["letters"]))
    assert folder.partitions() == [*BUCKETS, "notes"]
    for _ in run_sources(without(3), folder.dagster, ["text"], ["letters"]):
        assert sorted(set(folder.found(3))) == whole
    assert folder.found(3) == whole
    with pytest.raises(PlatformError, match="unknown source"):
        restricted(folder.platform(3).milvus, alias_name(SPACES[0]), ["letters"])


@pytest.mark.proof
def test_a_process_with_the_former_setting_finds_all_files_by_the_name_of_their_folder(folder: Folder) -> None:
    folder.run(0)
    former = folder.found(0)
    folder.run(3)
    assert folder.found(0) == folder.found(1) == folder.found(2) == former


def run_by_hand(folder: Folder, platform: Platform, source: str) -> dg.ExecuteInProcessResult:
    """The job of text on one source, as the launchpad starts it."""
    folder.dagster.add_dynamic_partitions("text_sources", [source])
    job = build_definitions(platform).resolve_job_def(job_name("text"))
    return job.execute_in_process(instance=folder.dagster, partition_key=source, raise_on_error=False)


def asked_for(platform: Platform) -> set[str]:
    """The sources that a sensor of text would have run."""
    looks = Watch("text").look(platform, {"letters", *BUCKETS}, 60).looks
    return {source for source, look in looks.items() if look.sight.differs or look.is_left or look.is_unplaced}


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
