"""Metadata of runs: each number is true of what lies in store and Milvus, and what was left out is listed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pytest

from embedding_platform import storage
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.models.encoder import Encoder, Precision
from embedding_platform.records import REJECTED
from embedding_platform.runs import SourceRun, run_sources
from embedding_platform.settings import load_settings
from embedding_platform.spaces import Space
from embedding_platform_tests.convergence.small_platform import SmallPlatform
from embedding_platform_tests.inference.small_encoder import SmallEncoder
from embedding_platform_tests.reconcile.small_lake import write_text

SOUND = 4
"""Passages that get a row; a fifth gets the zero vector."""

EMPTY = 60
"""Files that hold nothing."""


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
    """A first run of a source with empty files and a bad vector, and a second that finds nothing to do."""
    folder = tmp_path_factory.mktemp("metadata")
    source = folder / "media" / "my notes"
    for number in (0, 1, 2, 3, 9):
        write_text(source / f"{number}.txt", number)
    for number in range(EMPTY):
        (source / f"{number:02}\n|`empty`.txt").write_bytes(b"")
    settings = load_settings(base=folder, spaces=["text/minilm"], quality={"max_failed_share": 1.0, "max_rejected_share": 1.0})
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


@pytest.mark.parametrize("place", [0, 1])
def test_rows_are_those_that_each_table_holds(runs: list[SourceRun], place: int) -> None:
    rows = {
        stage: told(runs[place], stage)["dagster/partition_row_count"]
        for stage in ("files", "segments", "embeddings", "collection")
    }
    assert rows == {"files": SOUND + 1, "segments": SOUND + 1, "embeddings": SOUND, "collection": SOUND}


@pytest.mark.parametrize("place", [0, 1])
def test_the_first_rejects_are_listed_with_their_reasons_and_a_command_for_all(
    runs: list[SourceRun], place: int
) -> None:
    files, segments, embeddings = (told(runs[place], stage) for stage in ("files", "segments", "embeddings"))
    assert (files["rejected"], segments["rejected"], embeddings["rejected"]) == (EMPTY, 0, 1)
    assert files["rejected_share"] == EMPTY / (EMPTY + SOUND + 1)
    shown = [row.data["path"] for row in files["rejects"].records]
    assert shown == [f"{number:02} |`empty`.txt" for number in range(50)]
    assert {row.data["reason"] for row in files["rejects"].records} == {"is empty (0 bytes)"}
    ((path, reason),) = [tuple(row.data.values()) for row in embeddings["rejects"].records]
    assert path == "9.txt"
    assert reason.startswith("zero: ")
    for metadata in (files, embeddings):
        assert metadata["rejects_list"] == "`embedding-platform rejects --modality text --source 'my notes'`"
        assert len(storage.read_table(metadata["rejects_table"], REJECTED)) == metadata["rejected"]
    assert not any(name.startswith("rejects") for name in segments)
