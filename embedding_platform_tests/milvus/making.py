"""Collections and rows for the tests of this folder."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pandas as pd

from embedding_platform.milvus.schema import Provenance, Row, ensure_collection
from embedding_platform.spaces import Index

DIMENSION = 8
FLAT = Index("FLAT", {}, {})
HNSW = Index()


def provenance(**changes: object) -> Provenance:
    fingerprint = hashlib.sha256(uuid4().bytes).hexdigest()
    plain = Provenance("image/clip", fingerprint, "openai/clip", "abc", DIMENSION, "COSINE", True)
    return replace(plain, **changes)


def new_collection(client, index: Index = FLAT, **changes: object) -> str:
    return ensure_collection(client, provenance(**changes), index)


def row_id(number: int, of: str = "photos") -> str:
    return hashlib.sha256(f"{of}/{number}".encode()).hexdigest()[:32]


def vector(number: int, dimension: int = DIMENSION) -> np.ndarray:
    drawn = np.random.default_rng(number).normal(size=dimension).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def desired(numbers: Iterable[int], version: str = "1", of: str = "photos") -> pd.Series:
    numbers = list(numbers)
    return pd.Series(
        [f"{version}" for _ in numbers], index=pd.Index([row_id(n, of) for n in numbers], dtype="str"), dtype="str"
    )


def make_row(key: str, version: str, source: str = "photos", text: str = "") -> Row:
    number = int(key[:8], 16)
    return Row(
        id=key,
        vector=vector(number),
        source=source,
        uri=f"file:///media/{source}/{key}",
        path=key,
        role="image",
        position=0,
        start=0.0,
        end=1.5,
        text=text,
        content_hash=key * 2,
        item_version=key * 2,
        version=version,
        attributes={"width": 3, "nested": [None, {"é": 1.5}]},
        run_id="run",
        fingerprint="f" * 64,
        model="openai/clip",
        embedded_at="2026-01-01T00:00:00Z",
    )


def rows_for(wanted: pd.Series, source: str = "photos", size: int = 7):
    """What `sync_partition` calls to get rows."""

    def rows(ids: pd.Index) -> Iterator[list[Row]]:
        for first in range(0, len(ids), size):
            yield [make_row(key, wanted[key], source) for key in ids[first : first + size]]

    return rows


def no_rows(ids: pd.Index) -> Iterator[list[Row]]:
    raise AssertionError(f"nothing was to be written, yet rows are wanted for {len(ids)} ids")
