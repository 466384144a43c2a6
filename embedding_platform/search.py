"""From a query to hits."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from embedding_platform.errors import PlatformError
from embedding_platform.inference.query import Query, encode, read_query
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.query import search_rows
from embedding_platform.milvus.schema import Provenance, alias_name, read_provenance
from embedding_platform.models.encoder import Precision
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.spaces import MODALITIES, MODEL_SETS, Space

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Hit:
    """One row found: where it is, how near, and what made it.

    `where` is the place inside the file; see `place_in_file`.
    """

    space: str
    id: str
    score: float
    source: str
    path: str
    uri: str
    role: str
    where: str
    text: str
    content_hash: str
    model: str
    run_id: str
    embedded_at: str


def file_query(platform: Platform, path: str) -> Query:
    """A query by example: the file's segments, decoded as if it were to be indexed; see `read_query`."""
    return read_query(path, platform.cutting)


def search(
    platform: Platform,
    query: Query,
    spaces: Sequence[Space] = (),
    sources: Sequence[str] = (),
    limit: int = 5,
) -> dict[str, list[Hit]]:
    """The `limit` nearest rows of each space, best first, by space key.

    Without `spaces`, every published space that embeds the query's role is searched. The
    query is encoded by the model that made the collection.

    Raises:
        PlatformError: if a space cannot encode the query, is not published, or was made by
            another model than the settings name.
    """
    able = [space for space in platform.spaces if query.role in space.model.roles]
    if not able:
        raise PlatformError(f"none of the spaces that the settings keep encodes {query.role}; add one to `spaces`")
    unable = [space.key for space in spaces if space not in able]
    if unable:
        those = ", ".join(space.key for space in able)
        raise PlatformError(f"{', '.join(unable)} cannot encode {query.role}; spaces that can: {those}")
    chosen = [(space, list(sources)) for space in spaces] or [
        (space, held)
        for space in able
        if (held := _held(platform, space, sources)) is not None
        and alias_target(platform.milvus, alias_name(space.key))
    ]
    if not chosen:
        among = f" with the source {' or '.join(sources)}" if sources else ""
        raise PlatformError(f"no published space{among} can answer this; run `embedding-platform run` first")
    return {space.key: _search_space(platform, query, space, held, limit) for space, held in chosen}


def as_json(hits: dict[str, list[Hit]]) -> dict[str, list[dict[str, Any]]]:
    """Hits as plain data."""
    return {space: [asdict(hit) for hit in found] for space, found in hits.items()}


def place_in_file(modality: str, start: float, end: float) -> str:
    """A segment's place for people: "characters 120-840", "seconds 0.00-30.00", "" for a whole file."""
    unit = MODALITIES[modality].unit
    return "" if unit == "whole" else f"{unit} {_number(start, unit)}-{_number(end, unit)}"


def _search_space(platform: Platform, query: Query, space: Space, sources: Sequence[str], limit: int) -> list[Hit]:
    # By its own name from here on: the alias may move while the model is loaded.
    collection = alias_target(platform.milvus, alias_name(space.key))
    if collection is None:
        raise PlatformError(f"{space.key} is not published yet; run `embedding-platform run` first")
    former, precision = _maker(platform, space, read_provenance(platform.milvus, collection))
    (vector,) = encode([query], former, platform.encoder(former, precision, for_queries=True))
    rows = search_rows(platform.milvus, collection, vector, limit, space.index, space.metric, list(sources) or None)
    return [_hit(space, row) for row in rows]


def _maker(platform: Platform, space: Space, provenance: Provenance) -> tuple[Space, Precision]:
    """Model and precision that made the collection; while a migration is under way those are the former ones."""
    own = platform.settings.precision
    for candidate in _candidates(space, provenance):
        for precision in (own, *(other for other in PRECISIONS if other != own)):
            try:
                fingerprint = platform.fingerprint(candidate, precision)
            except PlatformError:
                # A model that is not installed here did not make the collection, or cannot answer for it.
                break
            if fingerprint == provenance.fingerprint:
                return candidate, precision
    raise PlatformError(
        f"{space.key} is published with {provenance.model} (fingerprint {provenance.fingerprint[:12]}), which is no "
        "longer there as it was, and which the settings do not name; set that model back, or run "
        "`embedding-platform run` to migrate"
    )


def _candidates(space: Space, provenance: Provenance) -> Iterator[Space]:
    """Spaces that may have made the collection: as set, as in the catalogue, or as the collection says itself."""
    catalogue = [known for spaces in MODEL_SETS.values() for known in spaces if known.key == space.key]
    for known in (space, *catalogue):
        stored = replace(
            known.model,
            location=provenance.model,
            revision=provenance.revision or None,
            dimension=provenance.dimension,
            pooling=provenance.pooling,
        )
        for candidate in (known, replace(known, model=stored, normalised=provenance.normalised)):
            yield replace(candidate, generation=provenance.generation)


def _held(platform: Platform, space: Space, sources: Sequence[str]) -> list[str] | None:
    """Those of the sources asked for that the space has; None if it has none of them."""
    if not sources:
        return []
    return [source for source in listed_sources(platform.store, space.modality) if source in sources] or None


def _hit(space: Space, row: dict[str, Any]) -> Hit:
    names = ("id", "score", "source", "path", "uri", "role", "text", "content_hash", "model", "run_id", "embedded_at")
    where = place_in_file(space.modality, row["start"], row["end"])
    return Hit(space=space.key, where=where, **{name: row[name] for name in names})


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "characters" else f"{value:.2f}"
