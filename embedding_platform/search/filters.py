"""What hits have to satisfy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.expressions import (
    Expression,
    Scalar,
    all_of,
    attribute,
    begins_with,
    compare,
    one_of,
)
from embedding_platform.spaces import Role

Range: TypeAlias = "tuple[float | None, float | None] | tuple[str | None, str | None]"
"""Least and greatest value, both allowed; None leaves that end open."""


@dataclass(frozen=True)
class Filter:
    """What a hit has to satisfy: all that is named. Without anything named every row does.

    `sources` and `roles` name some of which it has to be one. `path_prefix` is how its path
    within the source begins, as "2024/may/". It was embedded at `embedded_after` or later and
    before `embedded_before`, times with a time zone. `attributes` maps names to the value, or
    to the (least, greatest) values, that the attribute has to have; what has no such attribute
    does not satisfy it.

        Filter(sources=("photos",), attributes={"width": (1024, None), "format": "JPEG"})

    Raises:
        PlatformError: a time without a zone, or a name or value that can be no attribute's.
    """

    sources: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    path_prefix: str = ""
    embedded_after: datetime | None = None
    embedded_before: datetime | None = None
    attributes: Mapping[str, Scalar | Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sources", "roles"):
            if isinstance(getattr(self, name), str):
                raise PlatformError(f"{name} of a filter are several names; write ({getattr(self, name)!r},)")
        _ = self.condition

    @property
    def condition(self) -> Expression:
        """All but the sources as Milvus reads it; which rows a source has, its partition may tell."""
        return all_of(
            *([one_of("role", self.roles)] if self.roles else []),
            *([begins_with("path", self.path_prefix)] if self.path_prefix else []),
            *([compare("embedded_at", ">=", _moment(self.embedded_after))] if self.embedded_after else []),
            *([compare("embedded_at", "<", _moment(self.embedded_before))] if self.embedded_before else []),
            *(_attribute_condition(name, wanted) for name, wanted in self.attributes.items()),
        )


ALL = Filter()


def _moment(time: datetime) -> str:
    """A time as rows carry it. Their texts order as the times do: one zone, and "+" sorts before "."."""
    if time.tzinfo is None:
        raise PlatformError(f"{time.isoformat()} has no time zone; write it as {time.isoformat()}+00:00")
    return time.astimezone(UTC).isoformat()


def _attribute_condition(name: str, wanted: "Scalar | Range") -> Expression:
    if not isinstance(wanted, tuple):
        return compare(attribute(name), "==", wanted)
    if len(wanted) != 2 or wanted == (None, None):
        raise PlatformError(
            f"attribute {name} of a filter is {wanted!r}; give a value, or (least, greatest) with None for an open end"
        )
    least, greatest = wanted
    return all_of(
        *([compare(attribute(name), ">=", least)] if least is not None else []),
        *([compare(attribute(name), "<=", greatest)] if greatest is not None else []),
    )
