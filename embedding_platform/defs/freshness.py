"""Freshness: when each source was last listed, as Dagster's event log knows it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from embedding_platform.defs.partitions import set_name
from embedding_platform.defs.runs_of_sources import last_materialized

MOST_LOOKED_AT = 20
"""Sources whose times are read: those that were not listed for longest."""

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Listings:
    """How many sources there are, and hours since the MOST_LOOKED_AT oldest were listed, None for never."""

    sources: int
    oldest: Mapping[str, float | None]


def last_listings(instance: dg.DagsterInstance, modality: str) -> Listings:
    """When the sources of a modality, its partitions, were last listed: their last materializations of `files`.

    The tables themselves do not tell: a listing that finds nothing else is not written again.
    """
    files = dg.AssetKey([modality, "files"])
    sources = instance.get_dynamic_partitions(set_name(modality))
    newest = last_materialized(instance, files)
    never = [source for source in sources if source not in newest][:MOST_LOOKED_AT]
    listed = sorted((newest[source], source) for source in sources if source in newest)
    oldest = listed[: MOST_LOOKED_AT - len(never)]
    hours: dict[str, float | None] = dict.fromkeys(never)
    if oldest:
        wanted = dg.AssetRecordsFilter(asset_key=files, storage_ids=[place for place, _ in oldest])
        records = instance.fetch_materializations(wanted, limit=len(oldest)).records
        at = {record.storage_id: record.timestamp for record in records}
        hours |= {source: (time.time() - at[place]) / _SECONDS_PER_HOUR for place, source in oldest if place in at}
    return Listings(len(sources), hours)
