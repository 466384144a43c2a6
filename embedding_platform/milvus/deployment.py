"""What Milvus Lite, a Milvus server and Zilliz Cloud do differently, in one place: nothing else asks which answers."""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from embedding_platform.milvus.connection import CALL_SECONDS, explaining

if TYPE_CHECKING:
    from pymilvus import MilvusClient


NO_SUCH_ALIAS = (100, 1600)
"""Codes of the error that tells that there is no such alias: of Milvus Lite, and of a Milvus server."""


@dataclass(frozen=True)
class Deployment:
    """One of the three, by what matters to us.

    `page_rows` is how many rows one query may return. `needs_index` tells whether queries
    work only once there is an index; without that need it is built after the load, which is
    several times faster. `describes_index` tells whether the build parameters of an index can
    be read back, `chooses_index` whether it builds AUTOINDEX whatever is asked.
    `releases_partitions` tells whether a partition has to be released before it is dropped.
    `upserts_by_key` tells whether an upsert finds its partition by the partition key.
    `imports_files` tells whether it loads Parquet files from its object storage, `tears_indexes`
    whether it leaves half an index file when it is killed, and then never loads the collection.
    `names_indexes` tells whether an index is dropped by the name that it was given: Milvus Lite
    drops those of all fields then, but for the name of the field with _idx behind it.
    `searches_words` tells whether it makes a sparse vector of a text's words by itself, and
    finds rows by it (BM25). `loses_filtered` tells whether a search through an index misses rows
    where only few meet its filter. `buffers_rows` tells whether each search goes through rows just
    written one by one, until they are flushed.
    """

    name: str
    page_rows: int
    needs_index: bool
    describes_index: bool
    chooses_index: bool
    releases_partitions: bool
    upserts_by_key: bool
    imports_files: bool
    tears_indexes: bool
    names_indexes: bool
    searches_words: bool
    loses_filtered: bool
    buffers_rows: bool


LITE = Deployment(
    "Milvus Lite",
    # It scans the collection for each query and knows no limit: fewer, larger pages.
    page_rows=262_144,
    needs_index=False,
    describes_index=False,
    chooses_index=False,
    releases_partitions=False,
    upserts_by_key=True,
    imports_files=False,
    tears_indexes=True,
    names_indexes=False,
    searches_words=True,
    loses_filtered=True,
    buffers_rows=True,
)

SERVER = Deployment(
    "Milvus",
    page_rows=16_384,
    needs_index=True,
    describes_index=True,
    chooses_index=False,
    releases_partitions=True,
    upserts_by_key=True,
    imports_files=True,
    tears_indexes=False,
    names_indexes=True,
    searches_words=True,
    loses_filtered=False,
    buffers_rows=False,
)

CLOUD = replace(
    SERVER,
    name="Zilliz Cloud",
    chooses_index=True,
    # It imports through an interface of its own, with credentials of the cloud's storage.
    imports_files=False,
)


@lru_cache(maxsize=8)
def deployment_of(client: "MilvusClient") -> Deployment:
    """Which of the three the client talks to."""
    if not client.is_self_hosted:
        return CLOUD
    with explaining("tell its version"):
        version = str(client.get_server_version(timeout=CALL_SECONDS))
    if version.startswith("milvus_lite"):
        return LITE
    return replace(
        SERVER,
        # Milvus 2.3 puts upserted rows where no filter on the key finds them (2.3.5, measured).
        upserts_by_key=not version.startswith("v2.3."),
        # Functions on fields came with 2.5 (milvus.io, "Full Text Search").
        searches_words=not re.match(r"v2\.[0-4]\.", version),
    )
