"""Partitions: the sources of each modality. Files are rows in tables, never partitions."""

from collections.abc import Iterator, Sequence

import dagster as dg

MOST_KEYS_AT_ONCE = 20_000
"""Keys that are added or removed in one statement; SQLite refuses one of more than 32,766 values."""


def sources_of(modality: str) -> dg.DynamicPartitionsDefinition:
    """The dynamic partitions of one modality: the sources that hold its media."""
    return dg.DynamicPartitionsDefinition(name=set_name(modality))


def set_name(modality: str) -> str:
    """The name under which the instance keeps a modality's partitions."""
    return f"{modality}_sources"


def most_at_once(sources: Sequence[str]) -> Iterator[Sequence[str]]:
    """The sources in pieces that the instance takes at once."""
    for first in range(0, len(sources), MOST_KEYS_AT_ONCE):
        yield sources[first : first + MOST_KEYS_AT_ONCE]
