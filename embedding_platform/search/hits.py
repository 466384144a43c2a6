"""What a search finds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embedding_platform.spaces import MODALITIES, Space


@dataclass(frozen=True)
class Hit:
    """One row found: where it is, how near, and what made it.

    `vector_score` is what Milvus says of query vector and row: their cosine or inner product
    (higher is nearer), or their squared distance where the space's metric is L2 (lower is
    nearer). `score` is what hits are ordered by: the same in a search by vectors, and in a
    hybrid search the fused score, which tells an order and no nearness (see `Searcher.search`).

    `start` and `end` are the place inside the file, in characters or seconds, 0 and 0 for a
    whole file; `where` says the same to people (see `place_in_file`). `text` is the passage or
    caption, "" for other roles. `attributes` are those of the file and of the segment.
    """

    space: str
    id: str
    score: float
    vector_score: float
    source: str
    path: str
    uri: str
    role: str
    position: int
    start: float
    end: float
    where: str
    text: str
    attributes: dict[str, Any]
    content_hash: str
    model: str
    run_id: str
    embedded_at: str


def hit_of(space: Space, row: Mapping[str, Any]) -> Hit:
    """The hit of a row that `search_rows` found."""
    fields = {name: row[name] for name in Hit.__dataclass_fields__ if name not in ("space", "where")}
    return Hit(space=space.key, where=place_in_file(space.modality, row["start"], row["end"]), **fields)


def as_json(hits: Mapping[str, Sequence[Hit]]) -> dict[str, list[dict[str, Any]]]:
    """Hits by space as plain data."""
    return {space: [asdict(hit) for hit in found] for space, found in hits.items()}


def place_in_file(modality: str, start: float, end: float) -> str:
    """A segment's place for people: "characters 120-840", "seconds 0.00-30.00", "" for a whole file."""
    unit = MODALITIES[modality].unit
    return "" if unit == "whole" else f"{unit} {_number(start, unit)}-{_number(end, unit)}"


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "characters" else f"{value:.2f}"
