"""All stages of a lake in one call, and what readers must find afterwards."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from pymilvus import MilvusClient

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.index import ensure_loaded
from embedding_platform.milvus.schema import alias_name
from embedding_platform.reconcile.collection import CollectionReport
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.records import segment_id
from embedding_platform_tests.inference.small_encoder import vector_of
from embedding_platform_tests.reconcile import small_lake
from embedding_platform_tests.reconcile.small_lake import Lake, publish_to


class WaitingError(Exception):
    """The alias does not move: a source is not ready."""


class Disturbed:
    """A client that calls `disturb` with the name of each method before it is called."""

    def __init__(self, client: MilvusClient, disturb: Callable[[str], None]) -> None:
        self._client = client
        self._disturb = disturb

    def __getattr__(self, name: str):
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*arguments, **keywords):
            self._disturb(name)
            return found(*arguments, **keywords)

        return call


def index(client, lake: Lake, *sources: str) -> list[CollectionReport]:
    """Bring the sources from media to the alias.

    Raises:
        WaitingError: if the alias stays where it is.
    """
    reports = []
    for source in sources or ("one",):
        lake.run(source)
        reports.append(collect(client, lake, source))
    publication = publish_all(client, lake)
    if not publication.published:
        raise WaitingError(publication.waiting)
    return reports


def edit(lake: Lake) -> None:
    """One text new, one edited, one gone."""
    lake.write("new", 100)
    lake.write("n0", 101)
    lake.path("n1").unlink()


def collect(client, lake: Lake, source: str = "one") -> CollectionReport:
    return small_lake.collect(client, lake, source)


def publish_all(client, lake: Lake) -> PublicationReport:
    return publish_to(client, lake, *listed_sources(lake.store, lake.modality))


def texts_in_media(lake: Lake) -> dict[str, str]:
    """Text by the id of the row that it must have; each file holds one passage."""
    return {segment_id(path.parent.name, path.name, "text", 0): path.read_text() for path in lake.media.glob("*/*.txt")}


def published_texts(client, lake: Lake) -> dict[str, str]:
    """Text by id of all rows under the alias; no id comes twice, and each vector is that of its text."""
    alias = alias_name(lake.space.key)
    ensure_loaded(client, alias)
    rows = client.query(
        alias,
        filter='id != ""',
        output_fields=["id", "text", "vector"],
        limit=16_384,
        consistency_level="Strong",
        timeout=60,
    )
    assert max(Counter(row["id"] for row in rows).values(), default=1) == 1
    for row in rows:
        np.testing.assert_allclose(row["vector"], vector_of(row["text"]), atol=1e-6)
    return {row["id"]: row["text"] for row in rows}


def assert_true_to_media(client, lake: Lake) -> None:
    assert published_texts(client, lake) == texts_in_media(lake)


def one_line(failure: pytest.ExceptionInfo[PlatformError]) -> str:
    """What an error says, in one line."""
    said = str(failure.value)
    assert "\n" not in said
    return said
