"""What a collection is: its name, its fields, its rows and where its vectors come from."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform.errors import PlatformError
from embedding_platform.increments import series_of
from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.deployment import deployment_of
from embedding_platform.milvus.expressions import Expression, one_of
from embedding_platform.milvus.index import VECTOR_FIELD, ensure_index
from embedding_platform.records import digest
from embedding_platform.spaces import Index, Metric

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_TEXT_BYTES = 65_535
"""Longest VARCHAR of a Milvus server, which counts bytes (Milvus Lite counts characters)."""

MAX_ATTRIBUTES_BYTES = 65_536
"""Longest JSON value of a Milvus server."""

KEY_FIELD = "source"
"""The field by which a keyed collection places its rows."""

WORDS_FIELD = "words"
"""The sparse vector that Milvus makes of a row's text by itself, in a collection that is searched by words too.
It is no part of a row as we write, read and compare it."""

PROVENANCE_PROPERTY = "embedding_platform.provenance"

Layout: TypeAlias = Literal["named", "keyed"]
"""How a collection keeps the rows of a source together: a partition of its own, or the partition key."""

_SCHEMA = "2"
"""Part of a collection's name: other fields make another collection, filled from the stored vectors."""

_ROW_LAYOUT = "2"
"""Part of every row's version: another way to fill a row from a segment makes all rows stale."""

_PLACE_OF_MODEL = ("model", "revision")
"""Where a model lies decides nothing: the fingerprint tells which one it is."""

_SEGMENT_DIGITS = 24
_PLACE_DIGITS = 8
"""Hex digits of a row's version that tell of its segment, and of its collection and root."""

_FIELDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "id": ("VARCHAR", {"max_length": 32}),
    VECTOR_FIELD: ("FLOAT_VECTOR", {}),
    "source": ("VARCHAR", {"max_length": 1024}),
    "uri": ("VARCHAR", {"max_length": 8192}),
    "path": ("VARCHAR", {"max_length": 4096}),
    "role": ("VARCHAR", {"max_length": 16}),
    "position": ("INT32", {}),
    "start": ("DOUBLE", {}),
    "end": ("DOUBLE", {}),
    "text": ("VARCHAR", {"max_length": MAX_TEXT_BYTES}),
    "content_hash": ("VARCHAR", {"max_length": 64}),
    "item_version": ("VARCHAR", {"max_length": 64}),
    "version": ("VARCHAR", {"max_length": 32}),
    "attributes": ("JSON", {}),
    "run_id": ("VARCHAR", {"max_length": 64}),
    "fingerprint": ("VARCHAR", {"max_length": 64}),
    "model": ("VARCHAR", {"max_length": 1024}),
    "embedded_at": ("VARCHAR", {"max_length": 40}),
}
FIELD_NAMES = tuple(_FIELDS)
SCALAR_NAMES = tuple(name for name in _FIELDS if name != VECTOR_FIELD)


class Row(TypedDict):
    """One row of a collection: a segment, its vector float32 [d], and who made it when.

    `version` is a digest of everything, fingerprint and content hash among it, but `run_id`,
    `model` and `embedded_at`; two rows of equal id and version need no writing.
    """

    id: str
    vector: np.ndarray
    source: str
    uri: str
    path: str
    role: str
    position: int
    start: float
    end: float
    text: str
    content_hash: str
    item_version: str
    version: str
    attributes: dict[str, Any]
    run_id: str
    fingerprint: str
    model: str
    embedded_at: str


@dataclass(frozen=True)
class Provenance:
    """What made the vectors of a collection; stored with it, so that a reader can check.

    `space` is the space's key ("image/clip"), `fingerprint` 64 hex digits. `words` tells whether
    rows are found by the words of their texts too.
    """

    space: str
    fingerprint: str
    model: str
    revision: str
    dimension: int
    metric: Metric
    normalised: bool
    pooling: str = ""
    generation: int = 0
    layout: Layout = "named"
    words: bool = False


def collection_name(space_key: str, fingerprint: str, layout: Layout = "named", words: bool = False) -> str:
    """Name of the collection of one space, fingerprint, layout and set of fields: `image_clip_3fa9c1d2e4b5_named2`."""
    return f"{alias_name(space_key)}_{fingerprint[:12]}_{layout}{_SCHEMA}{'_words' if words else ''}"


def alias_name(space_key: str) -> str:
    """The stable name that readers search: "image/clip" -> `image_clip`."""
    return _safe(space_key)


def partition_name(source: str) -> str:
    """Milvus partition of a source: a readable prefix and 10 hex digits of its SHA-256."""
    return f"{_safe(source)[:40]}_{digest(source)[:10]}"


def source_filter(sources: Iterable[str]) -> Expression:
    """Rows of these sources, said so that a partition key finds them."""
    return one_of(KEY_FIELD, sources)


def ensure_collection(client: "MilvusClient", provenance: Provenance, index: Index) -> str:
    """Create the collection of `provenance`, or check that it is as it should be; its name.

    Where no query works without an index it is built at once; elsewhere that is left to
    `ensure_index` after the load, which is several times faster.

    Raises:
        PlatformError: the collection differs; every difference is named.
    """
    if provenance.words and not deployment_of(client).searches_words:
        raise PlatformError(
            f"this {deployment_of(client).name} has no search by words, which {provenance.space} is to have; set "
            "milvus.search_words to false, or use Milvus 2.5 or later"
        )
    name = collection_name(provenance.space, provenance.fingerprint, provenance.layout, provenance.words)
    if not has_collection(client, name):
        try:
            _create(client, name, provenance)
        except PlatformError:
            if not has_collection(client, name):
                raise
    with explaining(f"describe collection {name}"):
        description = client.describe_collection(name, timeout=CALL_SECONDS)
    differences = _differences(description, provenance)
    if differences:
        raise PlatformError(
            f"collection {name} in Milvus differs: {'; '.join(differences)}; "
            "drop the collection and run again: its rows are made anew from the stored vectors"
        )
    if provenance.words:
        _ensure_words_index(client, name)
    if deployment_of(client).needs_index and not _has_index(client, name, VECTOR_FIELD):
        ensure_index(client, name, index, provenance.metric)
    return name


def has_collection(client: "MilvusClient", name: str) -> bool:
    """Whether there is a collection of this name."""
    with explaining(f"look for collection {name}"):
        return bool(client.has_collection(name, timeout=CALL_SECONDS))


def read_provenance(client: "MilvusClient", collection: str) -> Provenance:
    """What made the vectors of a collection, given by its name or by an alias.

    Raises:
        PlatformError: there is no such collection, or it is not ours.
    """
    with explaining(f"describe collection {collection}"):
        description = client.describe_collection(collection, timeout=CALL_SECONDS)
    provenance = provenance_of(description)
    if provenance is None:
        raise PlatformError(
            f"collection {collection} in Milvus does not say which model made it; "
            "search a collection that this platform wrote, or choose another name"
        )
    return provenance


def provenance_of(description: Mapping[str, Any]) -> Provenance | None:
    """The provenance in a described collection, None where it is not ours.

    Kept as a property, since Milvus Lite forgets descriptions, and as the description, which
    is what other tools show.
    """
    stored = description.get("properties", {}).get(PROVENANCE_PROPERTY) or description.get("description")
    try:
        return Provenance(**json.loads(stored or ""))
    except (ValueError, TypeError):
        return None


def column_types(provenance: Provenance) -> dict[str, str]:
    """The type in words of each field of a collection, in order: "VARCHAR(32)", "FLOAT_VECTOR(384)"."""
    types = {}
    for name, (kind, parameters) in _fields(provenance).items():
        size = parameters.get("dim") or parameters.get("max_length")
        types[name] = f"{kind}({size})" if size else kind
    return types


def row_versions(segments: pa.Table, root: str, fingerprint: str) -> pd.Series:
    """Versions of the rows that segments should have; the index is the id.

    `segments` has the columns `segment_id` and `row_version` of SEGMENTS, `root` is what the
    uris of the source begin with, and `fingerprint` that of the collection.
    """
    place = digest(_ROW_LAYOUT, root, fingerprint)[:_PLACE_DIGITS]
    versions = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(segments["row_version"], 0, _SEGMENT_DIGITS), pa.scalar(place), ""
    )
    return series_of(segments["segment_id"], versions)


@dataclass(frozen=True)
class Maker:
    """What the rows of a source share: whose they are, and what made their vectors.

    `root` is what the uris of the source begin with.
    """

    source: str
    root: str
    model: str
    fingerprint: str


def make_rows(
    segments: pa.Table, maker: Maker, vectors: np.ndarray, run_ids: Sequence[str], embedded_at: Sequence[str]
) -> list[Row]:
    """The rows of a table of schema SEGMENTS, whose vectors are float32 [len(segments), d].

    `run_ids` and `embedded_at` (ISO 8601) tell of each vector who made it when. A text that a
    server could not hold is cut at a character boundary; the attributes say so.
    """
    versions = row_versions(segments, maker.root, maker.fingerprint)
    return [
        _row(segment, version, maker, vector, run_id, when)
        for segment, version, vector, run_id, when in zip(
            segments.to_pylist(), versions, vectors, run_ids, embedded_at, strict=True
        )
    ]


def _row(segment: dict[str, Any], version: str, maker: Maker, vector: np.ndarray, run_id: str, when: str) -> Row:
    attributes: dict[str, Any] = json.loads(segment["attributes"])
    if len(segment["attributes"].encode()) > MAX_ATTRIBUTES_BYTES - 64:
        attributes = {"attributes_dropped": True}
    text = cut_to_bytes(segment["text"] or "", MAX_TEXT_BYTES)
    if text != (segment["text"] or ""):
        attributes["text_truncated"] = True
    return Row(
        id=segment["segment_id"],
        vector=vector,
        source=maker.source,
        uri=segment["uri"],
        path=segment["path"],
        role=segment["role"],
        position=segment["position"],
        start=segment["start"],
        end=segment["end"],
        text=text,
        content_hash=segment["content_hash"],
        item_version=segment["item_version"],
        version=version,
        attributes=attributes,
        run_id=run_id,
        fingerprint=maker.fingerprint,
        model=maker.model,
        embedded_at=when,
    )


def cut_to_bytes(text: str, limit: int) -> str:
    """The longest beginning of `text` that takes at most `limit` bytes of UTF-8."""
    if len(text) * 4 <= limit:
        return text
    return text.encode()[:limit].decode(errors="ignore")


def _create(client: "MilvusClient", name: str, provenance: Provenance) -> None:
    from pymilvus import DataType, Function, FunctionType

    stored = json.dumps(asdict(provenance))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=stored)
    for field, (kind, parameters) in _fields(provenance).items():
        schema.add_field(
            field,
            DataType[kind],
            is_primary=field == "id",
            is_partition_key=field == KEY_FIELD and provenance.layout == "keyed",
            **parameters,
        )
    if provenance.words:
        schema.add_function(Function(WORDS_FIELD, FunctionType.BM25, ["text"], [WORDS_FIELD]))
    with explaining(f"create collection {name}"):
        client.create_collection(
            name,
            schema=schema,
            consistency_level="Strong",
            properties={PROVENANCE_PROPERTY: stored},
            timeout=CALL_SECONDS,
        )


def _ensure_words_index(client: "MilvusClient", name: str) -> None:
    """Index the words where they are not, which no query by words works without.

    Asked of each run, since a process may be killed between making a collection and its index.
    """
    if _has_index(client, name, WORDS_FIELD):
        return
    parameters = client.prepare_index_params()
    parameters.add_index(WORDS_FIELD, index_type="SPARSE_INVERTED_INDEX", metric_type="BM25", index_name=WORDS_FIELD)
    with explaining(f"index the words of collection {name}", lambda: _has_index(client, name, WORDS_FIELD)):
        client.create_index(name, parameters, timeout=CALL_SECONDS)


def _has_index(client: "MilvusClient", name: str, field: str) -> bool:
    with explaining(f"list the indexes of collection {name}"):
        return bool(client.list_indexes(name, field_name=field, timeout=CALL_SECONDS))


def _fields(provenance: Provenance) -> dict[str, tuple[str, Mapping[str, Any]]]:
    fields = {**_FIELDS, VECTOR_FIELD: ("FLOAT_VECTOR", {"dim": provenance.dimension})}
    if provenance.words:
        kind, parameters = fields["text"]
        fields["text"] = (kind, {**parameters, "enable_analyzer": True})
        fields[WORDS_FIELD] = ("SPARSE_FLOAT_VECTOR", {})
    return fields


def _differences(description: Mapping[str, Any], provenance: Provenance) -> list[str]:
    stored_provenance = provenance_of(description)
    if stored_provenance is None:
        return ["it does not say which model made it"]
    expected = asdict(provenance)
    found = [
        f"{name} stored={value!r}, expected={expected[name]!r}"
        for name, value in asdict(stored_provenance).items()
        if value != expected[name] and name not in _PLACE_OF_MODEL
    ]
    stored = {
        field["name"]: {
            "type": field["type"].name,
            "primary": bool(field.get("is_primary")),
            "partition key": bool(field.get("is_partition_key")),
            # A switch of a field comes back as text.
            **{key: True if value == "true" else value for key, value in field["params"].items()},
        }
        for field in description["fields"]
    }
    wanted = {
        name: {
            "type": kind,
            "primary": name == "id",
            "partition key": name == KEY_FIELD and provenance.layout == "keyed",
            **parameters,
        }
        for name, (kind, parameters) in _fields(provenance).items()
    }
    found += [f"field {name} is missing" for name in wanted if name not in stored]
    found += [f"field {name} is unknown" for name in stored if name not in wanted]
    found += [
        f"field {name}: {key} stored={stored[name].get(key)}, expected={value}"
        for name, properties in wanted.items()
        if name in stored
        for key, value in properties.items()
        if stored[name].get(key) != value
    ]
    if description.get("enable_dynamic_field"):
        found.append("it takes dynamic fields")
    return found


def _safe(name: str) -> str:
    """Letters, digits and underscores, a letter first: what a Milvus server accepts as a name."""
    safe = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return safe if re.match(r"[A-Za-z]", safe) else f"s_{safe}"
