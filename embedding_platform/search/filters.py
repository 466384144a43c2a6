"""What hits have to satisfy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias, cast

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
from embedding_platform.spaces import MODALITIES, Role

Range: TypeAlias = tuple[float | None, float | None] | tuple[str | None, str | None]
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
        for name in ("embedded_after", "embedded_before"):
            if not isinstance(time := getattr(self, name), datetime | None):
                raise PlatformError(f"{name} of a filter is {time!r}; give a datetime with a time zone")
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


def written_filter(
    sources: Sequence[str] = (),
    roles: Sequence[str] = (),
    path_prefix: str = "",
    after: str = "",
    before: str = "",
    where: Sequence[str] = (),
) -> Filter:
    """A filter as people write it: on the command line, or in an address.

    `after` and `before` are dates or times in ISO 8601, in UTC where they name no zone. `where`
    are NAME=VALUE, or NAME=LEAST..GREATEST with either end left out, each of another NAME; what
    reads as a number, as true or false is one, and text in double quotes is text.

    Raises:
        PlatformError: saying what cannot be read, and how it is written.
    """
    known = sorted({role for modality in MODALITIES.values() for role in modality.roles})
    for role in roles:
        if role not in known:
            raise PlatformError(f"no role {role!r}; choose from {', '.join(known)}")
    attributes: dict[str, Scalar | Range] = {}
    for name, wanted in map(_read_attribute, where):
        if name in attributes:
            raise PlatformError(f"{name} has two conditions; write them as one, such as {name}=LEAST..GREATEST")
        attributes[name] = wanted
    return Filter(
        sources=tuple(sources),
        roles=cast("tuple[Role, ...]", tuple(roles)),
        path_prefix=path_prefix,
        embedded_after=_read_moment(after) if after else None,
        embedded_before=_read_moment(before) if before else None,
        attributes=attributes,
    )


def _read_moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise PlatformError(f"{text!r} is no time; write 2026-05-31 or 2026-05-31T18:00:00+02:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_attribute(text: str) -> tuple[str, Scalar | Range]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise PlatformError(f"{text!r} is no condition; write NAME=VALUE or NAME=LEAST..GREATEST, such as width=1024..")
    whole, ends = _read_value(value), value.split("..")
    # Text in double quotes reads as another than it is written.
    if whole != value or len(ends) != 2:
        return name, whole
    return name, cast(Range, tuple(_read_value(end) if end else None for end in ends))


def _read_value(text: str) -> Scalar:
    try:
        # Brackets are text: nested deep enough they would stop the reader.
        value = None if text.lstrip()[:1] in ("[", "{") else json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float) else text


def _moment(time: datetime) -> str:
    """A time as rows carry it. Their texts order as the times do: one zone, and "+" sorts before "."."""
    if time.tzinfo is None:
        raise PlatformError(f"{time.isoformat()} has no time zone; write it as {time.isoformat()}+00:00")
    return time.astimezone(UTC).isoformat()


def _attribute_condition(name: str, wanted: Scalar | Range) -> Expression:
    if not isinstance(wanted, tuple):
        return compare(attribute(name), "==", wanted)
    if len(wanted) != 2 or wanted == (None, None):
        raise PlatformError(
            f"attribute {name} of a filter is {wanted!r}; give a value, or (least, greatest) with None for an open end"
        )
    ends = [end for end in wanted if end is not None]
    if any(isinstance(end, bool) for end in ends) or len({isinstance(end, str) for end in ends}) > 1:
        raise PlatformError(
            f"attribute {name} of a filter ranges over {wanted!r}; give two numbers or two texts, and write text that "
            'reads as a number in double quotes, such as "2024"'
        )
    least, greatest = wanted
    return all_of(
        *([compare(attribute(name), ">=", least)] if least is not None else []),
        *([compare(attribute(name), "<=", greatest)] if greatest is not None else []),
    )
