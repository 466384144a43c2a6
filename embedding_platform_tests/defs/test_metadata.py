"""Metadata of runs: each number is true of what lies in store and Milvus, and what was left out is listed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_platform import storage
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.models.encoder import Encoder, Precision
from embedding_platform.reconcile import embeddings
from embedding_platform.records import REJECTED
from embedding_platform.runs import SourceRun, run_sources
from embedding_platform.settings import load_settings
from embedding_platform.spaces import Space
from embedding_platform_tests.convergence.small_platform import STAGES, SmallPlatform
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder
from embedding_platform_tests.reconcile.small_lake import Lake, write_text

SOUND = 4
"""Passages that get a row; a fifth gets the zero vector."""

EMPTY = 60
"""Files that hold nothing."""

FIRST, LONE, SECOND = 0, 1, 2
"""The runs: of a source with empty files and a bad vector, of one with a single file, and the first again."""


@dataclass(frozen=True)
class SpoilingPlatform(SmallPlatform):
    """Its model, of a family that there is, gives the zero vector to a passage that begins with a 9."""

    @property
    def spaces(self) -> tuple[Space, ...]:
        return tuple(
            replace(space, model=replace(space.model, family="sentence_transformer")) for space in super().spaces
        )

    def encoder(self, space: Space, precision: Precision | None = None, for_queries: bool = False) -> Encoder:
        return SmallEncoder(spoil=lambda content, vector: vector * 0 if str(content).startswith("9 ") else vector)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SourceRun]]:
    """Two runs of each source, of which the second finds nothing to do."""
    folder = tmp_path_factory.mktemp("metadata")
    source = folder / "media" / "my notes"
    for number in (*range(SOUND), 9):
        write_text(source / f"{number}.txt", number)
    write_text(folder / "media" / "one letter" / "10.txt", 10)
    for number in range(EMPTY):
        (source / f"{number:02}\n|`empty`.txt").write_bytes(b"")
    settings = load_settings(
        base=folder, spaces=["text/minilm"], quality={"max_failed_share": 1.0, "max_rejected_share": 1.0}
    )
    client = connect(settings.milvus_uri)
    platform = SpoilingPlatform(settings, client=client, kept=("text",))
    with dg.instance_for_test() as instance:
        found = [*run_sources(platform, instance), *run_sources(platform, instance)]
    assert all(run.succeeded for run in found), [run.failures for run in found]
    yield found
    close_directory(settings.milvus_uri)


def told(run: SourceRun, stage: str) -> dict[str, Any]:
    (metadata,) = (metadata for asset, metadata in run.metadata.items() if asset.endswith(f"/{stage}"))
    return metadata


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_rows_are_those_that_each_table_holds(runs: list[SourceRun], place: int) -> None:
    rows = {
        stage: told(runs[place], stage)["dagster/partition_row_count"]
        for stage in ("files", "segments", "embeddings", "collection")
    }
    assert rows == {"files": SOUND + 1, "segments": SOUND + 1, "embeddings": SOUND, "collection": SOUND}


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_the_first_rejects_are_listed_with_their_reasons_and_a_command_for_all(
    runs: list[SourceRun], place: int
) -> None:
    files, segments, embedded = (told(runs[place], stage) for stage in ("files", "segments", "embeddings"))
    assert (files["rejected"], segments["rejected"], embedded["rejected"]) == (EMPTY, 0, 1)
    assert files["rejected_share"] == EMPTY / (EMPTY + SOUND + 1)
    shown = [row.data["path"] for row in files["rejects"].records]
    assert shown == [f"{number:02} |`empty`.txt" for number in range(50)]
    assert {row.data["reason"] for row in files["rejects"].records} == {"is empty (0 bytes)"}
    ((path, reason),) = [tuple(row.data.values()) for row in embedded["rejects"].records]
    assert path == "9.txt"
    assert reason.startswith("zero: ")
    for metadata in (files, embedded):
        assert metadata["rejects_list"] == "`embedding-platform rejects --modality text --source 'my notes'`"
        assert len(storage.read_table(metadata["rejects_table"], REJECTED)) == metadata["rejected"]
    assert not any(name.startswith("rejects") for name in segments)


def test_a_run_tells_bytes_device_and_rates_of_what_it_did(runs: list[SourceRun]) -> None:
    files, segments, embedded, collection = (told(runs[FIRST], stage) for stage in STAGES[:4])
    folder = Path(files["dagster/uri"]).parents[4] / "media" / "my notes"
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert (files["bytes"], segments["bytes"]) == (written, written)
    assert embedded["bytes"] == collection["bytes"] == 4 * DIMENSION * SOUND
    assert (embedded["device"], embedded["runtime"], embedded["precision"]) == ("cpu", "numpy", "float32")
    assert files["hashed"] == SOUND + 1
    for metadata, rate, count, seconds in (
        (files, "files_per_second", EMPTY + SOUND + 1, "seconds_total"),
        (segments, "files_per_second", SOUND + 1, "seconds_cut"),
        (segments, "megabytes_per_second", written / 1e6, "seconds_cut"),
        (embedded, "items_per_second", SOUND, "seconds_embedded"),
        (collection, "rows_per_second", SOUND, "seconds_written"),
    ):
        # Both are rounded.
        assert metadata[rate] == pytest.approx(count / metadata[seconds], rel=0.1, abs=0.001), rate


def test_a_run_tells_where_its_time_went(runs: list[SourceRun]) -> None:
    parts = {
        "files": (),
        "segments": ("cut",),
        "embeddings": ("load", "embedded", "judge"),
        "collection": ("written", "indexed", "searchable", "verified", "recall"),
        "published": (),
    }
    for run in runs:
        for stage, names in parts.items():
            metadata = told(run, stage)
            known = [metadata[f"seconds_{name}"] for name in names if f"seconds_{name}" in metadata]
            assert metadata["seconds_total"] >= sum(known) - 0.01
            assert metadata["seconds_total"] > 0
    before = sum(told(runs[FIRST], stage)["seconds_total"] for stage in STAGES[:4])
    waited = told(runs[FIRST], "collection")["seconds_to_searchable"]
    assert waited >= before - told(runs[FIRST], "collection")["seconds_recall"] - 0.01


def test_a_run_that_did_nothing_tells_no_rate_and_no_device(runs: list[SourceRun]) -> None:
    segments, embedded, collection = (told(runs[SECOND], stage) for stage in STAGES[1:4])
    assert [metadata["bytes"] for metadata in (segments, embedded, collection)] == [0, 0, 0]
    shown = {name for metadata in (segments, embedded, collection) for name in metadata}
    assert {name for name in shown if name.endswith("_per_second")} == set()
    assert not shown & {"device", "runtime", "precision", "seconds_load", "seconds_to_searchable"}


def test_the_time_of_embeddings_begins_with_the_first_look_and_that_of_the_model_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def taking(seconds: float, name: str) -> None:
        owner, _, function = name.rpartition(".")
        module = getattr(embeddings, owner) if owner else embeddings
        usual = getattr(module, function)

        def slow(*arguments: Any, **named: Any) -> Any:
            nonlocal clock
            clock += seconds
            return usual(*arguments, **named)

        monkeypatch.setattr(module, function, slow)

    lake = Lake(tmp_path)
    lake.write("a", 1)
    lake.files()
    lake.segments()
    monkeypatch.setattr(embeddings, "perf_counter", lambda: clock)
    for seconds, name in ((1, "_distinct"), (2, "_increment"), (4, "vector_store.reuse"), (8, "vector_store.append")):
        taking(seconds, name)
    seconds = lake.embeddings().seconds
    assert (seconds["total"], seconds["load"], seconds["embedded"]) == (15, 0, 8)


def test_a_source_of_one_row_is_shown_among_the_others(runs: list[SourceRun]) -> None:
    shown = told(runs[LONE], "collection")
    assert shown["dagster/partition_row_count"] == 1
    assert "10\\.txt" in shown["neighbours"]
    assert "my notes/" in shown["neighbours"].splitlines()[2]
    assert shown["map"].startswith("![map of a sample of the space](data:image/svg+xml;base64,")
