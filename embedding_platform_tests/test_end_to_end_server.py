"""A small lake over a real Milvus server that asks for its token and is killed in the middle of a run."""

import itertools
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pymilvus
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import alias_name
from embedding_platform.milvus.sync import read_rows
from embedding_platform.platform import Platform
from embedding_platform.runs import SourceRun, run_sources
from embedding_platform.search import Searcher
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.milvus_server import MilvusServer
from embedding_platform_tests.reconcile.small_lake import write_image, write_text

pytestmark = [pytest.mark.server, pytest.mark.long]

SPACES = ["text/minilm", "image/resnet50"]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    for number in range(4):
        write_text(tmp_path / "media" / "notes" / f"{number}.txt", number)
        write_image(tmp_path / "media" / "photos" / f"{number}.png", number)
    return tmp_path


def over(server: MilvusServer, folder: Path, **milvus: object) -> Platform:
    named = {"uri": server.uri, "token": server.token, **milvus}
    return open_platform(folder, spaces=SPACES, milvus=named)


def run(platform: Platform, dagster: dg.DagsterInstance) -> list[SourceRun]:
    return list(run_sources(platform, dagster))


def published(platform: Platform) -> dict[str, dict[str, object]]:
    """All that readers find: whole rows by id, vectors as bytes."""
    found = {}
    for space in platform.spaces:
        collection = alias_target(platform.milvus, alias_name(space.key))
        assert collection is not None
        for source in platform.sources()[space.modality]:
            ids = read_rows(platform.milvus, Partition(collection, source)).index
            for row in get_rows(platform.milvus, collection, list(ids)):
                found[row["id"]] = {**row, "vector": np.asarray(row["vector"], np.float32).tobytes()}
    return found


def rebuilt(folder: Path, dagster: dg.DagsterInstance) -> dict[str, dict[str, object]]:
    """What a new Milvus is given from the stored vectors alone."""
    platform = open_platform(folder, spaces=SPACES, milvus={"uri": str(folder / "rebuilt")})
    runs = run(platform, dagster)
    assert all(run.succeeded for run in runs)
    assert sum(run.of("embeddings", "embedded") for run in runs) == 0
    found = published(platform)
    close_directory(platform.settings.milvus_uri)
    return found


def killing(server: MilvusServer, number: int) -> Callable[..., object]:
    """`MilvusClient.upsert` that has the server killed before the call of this number, counted from 1."""
    upsert, calls = pymilvus.MilvusClient.upsert, itertools.count(1)

    def upsert_after_all(client: pymilvus.MilvusClient, *args: object, **kwargs: object) -> object:
        if next(calls) == number:
            server.kill()
            # Rather than the two minutes in which a server may come back.
            kwargs["timeout"] = 1
        return upsert(client, *args, **kwargs)

    return upsert_after_all


def test_a_lake_lives_through_changes_and_a_killed_server(lake, mortal_server, instance, monkeypatch) -> None:
    refused = run(over(mortal_server, lake, token="root:wr0ngSecret"), instance)
    assert len(refused) == 2
    for failed in refused:
        (reason,) = failed.failures
        assert f"Milvus at {mortal_server.uri} refuses the token" in reason
        assert "\n" not in reason
        assert "wr0ngSecret" not in reason

    platform = over(mortal_server, lake)
    first = run(platform, instance)
    assert [done.failures for done in first] == [(), ()]
    assert sum(done.of("collection", "upserted") for done in first) == 8

    write_text(lake / "media" / "notes" / "0.txt", 70)
    (lake / "media" / "photos" / "1.png").unlink()
    changed = run(platform, instance)
    assert all(done.succeeded for done in changed)
    assert [sum(done.of("collection", name) for done in changed) for name in ("stale", "orphaned")] == [1, 1]

    write_text(lake / "media" / "notes" / "1.txt", 71)
    write_image(lake / "media" / "photos" / "9.png", 72)
    with monkeypatch.context() as patched:
        patched.setattr(pymilvus.MilvusClient, "upsert", killing(mortal_server, 2))
        notes, photos = run(platform, instance)
    assert notes.succeeded
    (reason,) = photos.failures
    assert "Milvus could not write 1 rows" in reason
    assert "run again" in reason
    assert "\n" not in reason
    with pytest.raises(PlatformError, match="no Milvus answers"):
        _ = over(mortal_server, lake, timeout_seconds=1).milvus

    mortal_server.start()
    again = over(mortal_server, lake)
    notes, photos = run(again, instance)
    assert (notes.failures, photos.failures) == ((), ())
    assert notes.did_nothing
    assert photos.of("embeddings", "embedded") == 0, "vectors that were stored before the kill are used"
    assert photos.of("collection", "upserted") == 1
    assert all(done.did_nothing for done in run(again, instance))
    held = published(again)
    assert len(held) == 8
    assert held == rebuilt(lake, instance)
    hits = Searcher(again).search("71 0", "text/minilm")
    assert hits[0].path == "1.txt"
