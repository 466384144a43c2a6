"""The filter that a request's fields describe."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query
from pydantic import AwareDatetime, StringConstraints

from embedding_platform.search import Filter
from embedding_platform.serving.refused import RefusedError

Word = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Words = list[Word] | None


@dataclass(frozen=True)
class FilterFields:
    """The spaces to search, and what hits have to satisfy."""

    spaces: tuple[str, ...]
    filter: Filter


def filter_fields(
    space: Annotated[Words, Query(max_length=50, description='such as "image/clip"; may be repeated')] = None,
    source: Annotated[Words, Query(max_length=50, description="only this source; may be repeated")] = None,
    path_prefix: Annotated[str, Query(max_length=1024, description="how the path in the source begins")] = "",
    embedded_after: Annotated[AwareDatetime | None, Query(description="embedded then or later")] = None,
    embedded_before: Annotated[AwareDatetime | None, Query(description="embedded before")] = None,
    attribute: Annotated[
        Words, Query(max_length=20, description='such as "width>=1024" or "format=JPEG"; may be repeated')
    ] = None,
) -> FilterFields:
    """The fields by which each search can be narrowed.

    Raises:
        RefusedError: if an attribute's condition cannot be read.
        PlatformError: if a name or value can be no attribute's.
    """
    return FilterFields(
        tuple(dict.fromkeys(space or ())),
        Filter(
            sources=tuple(dict.fromkeys(source or ())),
            path_prefix=path_prefix,
            embedded_after=embedded_after,
            embedded_before=embedded_before,
            attributes=_attributes(attribute or ()),
        ),
    )


def _attributes(conditions: Sequence[str]) -> dict[str, Any]:
    """Values, or (least, greatest) values, by the attributes' names."""
    wanted: dict[str, Any] = {}
    for condition in conditions:
        found = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=|=)\s*(.+?)\s*", condition, re.DOTALL)
        if found is None:
            raise RefusedError(422, f"{condition!r} is no condition; write name=value, name>=number or name<=number")
        name, sign, value = found[1], found[2], _value(found[3])
        if sign == "=":
            wanted[name] = value
        elif isinstance(value, bool):
            raise RefusedError(422, f"{condition!r} compares with {found[3]}; write a number or a word")
        else:
            least, greatest = wanted[name] if isinstance(wanted.get(name), tuple) else (None, None)
            wanted[name] = (value, greatest) if sign == ">=" else (least, value)
    return wanted


def _value(text: str) -> str | int | float | bool:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?[0-9]{1,15}\.[0-9]{1,15}", text) else text
