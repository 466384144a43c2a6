"""The fields of a request by which a search is narrowed."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from pydantic import StringConstraints

from embedding_platform.search import Filter
from embedding_platform.search.filters import written_filter

_Word = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
_Words = list[_Word] | None


@dataclass(frozen=True)
class Narrowed:
    """The spaces to search, "image/clip" among them for instance, and what hits have to satisfy."""

    spaces: tuple[str, ...]
    filter: Filter


def narrowed(
    space: Annotated[_Words, Query(max_length=50, description='such as "image/clip"; may be repeated')] = None,
    source: Annotated[_Words, Query(max_length=50, description="only this source; may be repeated")] = None,
    role: Annotated[
        _Words, Query(max_length=4, description="only rows of this role: text, image, audio, video; may be repeated")
    ] = None,
    path_prefix: Annotated[str, Query(max_length=1024, description="how the path in the source begins")] = "",
    after: Annotated[str, Query(max_length=40, description="embedded then or later; ISO 8601")] = "",
    before: Annotated[str, Query(max_length=40, description="embedded before; ISO 8601")] = "",
    where: Annotated[
        _Words, Query(max_length=20, description='such as "width=1024.." or "format=JPEG"; may be repeated')
    ] = None,
) -> Narrowed:
    """Spaces and filter as they are written in an address.

    Raises:
        PlatformError: saying what cannot be read, and how it is written.
    """
    return Narrowed(
        tuple(dict.fromkeys(space or ())),
        written_filter(tuple(dict.fromkeys(source or ())), role or (), path_prefix, after, before, where or ()),
    )
