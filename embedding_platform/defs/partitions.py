"""Partitions: the sources of each modality. Files are rows in tables, never partitions."""

import dagster as dg


def sources_of(modality: str) -> dg.DynamicPartitionsDefinition:
    """The dynamic partitions of one modality: the sources that hold its media."""
    return dg.DynamicPartitionsDefinition(name=set_name(modality))


def set_name(modality: str) -> str:
    """The name under which the instance keeps a modality's partitions."""
    return f"{modality}_sources"
