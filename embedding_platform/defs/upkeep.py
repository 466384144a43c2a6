"""Upkeep: two assets that tidy the store and report what may be pruned, and the probes of what is published."""

from collections.abc import Iterator

import dagster as dg

from embedding_platform.defs import check_specs, checks
from embedding_platform.defs.failures import Failure, failure_of
from embedding_platform.defs.metadata import explained
from embedding_platform.defs.partitions import set_name
from embedding_platform.defs.resources import PlatformResource, clear_failures
from embedding_platform.defs.runs_of_sources import ever_failed, last_run
from embedding_platform.defs.tables import table
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.reconcile.probing import Probe, probe
from embedding_platform.reconcile.pruning import prunable
from embedding_platform.reconcile.upkeep import compact_all
from embedding_platform.spaces import Space

GROUP = "upkeep"

MOST_LISTED = 50
"""Rows of a table in metadata."""


def upkeep_assets(owners: list[str]) -> list[dg.AssetsDefinition]:
    """The assets of the weekly maintenance."""
    return [_compacted(owners), _prunable(owners)]


def space_probes(space: Space) -> dg.AssetChecksDefinition:
    """The checks of what readers get of a space, beside the runs that make it: recall, freshness, failed sources."""
    key = dg.AssetKey([space.modality, space.name, "published"])

    @dg.multi_asset_check(
        name=f"{space.modality}_{space.name}_probe",
        specs=check_specs.specs(key, None, "probe"),
        description=f"What readers of {space.key} get, looked at without changing anything.",
    )
    def probes(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
        with clear_failures():
            found = _probe(platform, space, context.run.run_id)
        failures = _failed_sources(context.instance, space)
        settings = platform.settings
        yield from checks.of_probe(space, found, failures, settings.quality, settings.alerts.stale_seconds)

    return probes


def _compacted(owners: list[str]) -> dg.AssetsDefinition:
    @dg.asset(
        key=[GROUP, "compacted"],
        group_name=GROUP,
        kinds={"parquet"},
        owners=owners,
        tags={"stage": "upkeep"},
        description="The store with its small files joined into large ones. Nothing is dropped.",
    )
    def compacted(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        def told(done: int, total: int) -> None:
            platform.watch(f"{GROUP}/compacted", "", done, total)

        with clear_failures():
            compaction = compact_all(
                platform.store,
                {modality: listed_sources(platform.store, modality) for modality in platform.modalities},
                [(space, platform.fingerprint(space)) for space in platform.spaces],
                platform.cutting,
                told,
            )
        joined = sorted(compaction.joined.items(), key=lambda item: -item[1])
        for (place, source), shards in joined[:MOST_LISTED]:
            context.log.info(f"{place} {source}: {shards} shards joined")
        rows = [(place, source, shards) for (place, source), shards in joined[:MOST_LISTED]]
        return dg.MaterializeResult(
            metadata={
                "folders": compaction.folders,
                "joined_shards": sum(compaction.joined.values()),
                "joined": table(("what", "source", "shards"), rows),
                "explained": explained(platform.settings, "upkeep"),
            }
        )

    return compacted


def _prunable(owners: list[str]) -> dg.AssetsDefinition:
    @dg.asset(
        key=[GROUP, "prunable"],
        group_name=GROUP,
        kinds={"milvus", "parquet"},
        owners=owners,
        tags={"stage": "upkeep"},
        description="What `embedding-platform prune` would remove after asking. Nothing is removed here.",
    )
    def report(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        with clear_failures():
            targets = [platform.target(space) for space in platform.spaces]
            retained = platform.settings.retention.collections
            things = prunable(platform.milvus, platform.store, targets, retained, platform.cutting)
        for thing in things[:MOST_LISTED]:
            unit = "rows" if thing.kind == "collection" else "bytes"
            context.log.info(f"{thing.kind} {thing.name}: {thing.size} {unit}, {thing.reason}")
        kept = [(thing.kind, thing.name, thing.size, thing.reason) for thing in things[:MOST_LISTED]]
        return dg.MaterializeResult(
            metadata={
                "things": len(things),
                "bytes": sum(thing.size for thing in things if thing.kind != "collection"),
                "rows": sum(thing.size for thing in things if thing.kind == "collection"),
                "prunable": table(("kind", "name", "size", "reason"), kept),
                "to_remove_them": "embedding-platform prune",
                "explained": explained(platform.settings, "upkeep"),
            }
        )

    return report


def _probe(platform: Platform, space: Space, turn: str) -> Probe:
    sources = listed_sources(platform.store, space.modality)
    return probe(
        platform.milvus,
        platform.store,
        platform.target(space, len(sources)),
        sources,
        lambda source: platform.live(space, source),
        platform.settings.quality.recall_sample,
        turn,
    )


def _failed_sources(instance: dg.DagsterInstance, space: Space) -> list[Failure]:
    """Sources of which a failed run was not made good yet, but for failures at an asset of another space."""
    modality = space.modality
    mine = {f"{modality}/files", f"{modality}/segments", ""}
    failures = []
    there = instance.get_dynamic_partitions(set_name(modality))
    for source in sorted(ever_failed(instance, modality).intersection(there)):
        last = last_run(instance, modality, source)
        run = instance.get_run_by_id(last.failed) if last.failed else None
        if run is None:
            continue
        failure = failure_of(instance, run)
        if failure.asset in mine or failure.asset.startswith(f"{space.key}/"):
            failures.append(failure)
    return failures
