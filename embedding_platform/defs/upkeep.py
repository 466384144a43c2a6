"""Upkeep: two assets that tidy the store and report what may be pruned, and the probes of what is published."""

from collections.abc import Iterator, Sequence

import dagster as dg

from embedding_platform.defs.failures import Failure, failure_of
from embedding_platform.defs.metadata import explained, of_recall
from embedding_platform.defs.partitions import set_name
from embedding_platform.defs.resources import PlatformResource, clear_failures
from embedding_platform.defs.runs_of_sources import ever_failed, last_run
from embedding_platform.defs.tables import table
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.reconcile.probing import Probe, probe
from embedding_platform.reconcile.pruning import prunable
from embedding_platform.reconcile.upkeep import compact_all
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Space

GROUP = "upkeep"

MOST_LISTED = 50
"""Rows of a table in metadata."""

MOST_NAMED = 3
"""Sources that a check's description names."""


def upkeep_assets(owners: list[str]) -> list[dg.AssetsDefinition]:
    """The assets of the weekly maintenance."""
    return [_compacted(owners), _prunable(owners)]


def space_probes(space: Space) -> dg.AssetChecksDefinition:
    """The checks of what readers get of a space, beside the runs that make it: recall, freshness, failed sources."""
    key = dg.AssetKey([space.modality, space.name, "published"])
    described = {
        "probe_recall": "Searches through the alias find what exact search over the stored vectors finds.",
        "probe_freshness": "No listed source has been missing from the collection for over alerts.stale_seconds.",
        "failed_sources": "No source's last run failed at an asset of this space, or upstream of it, however long ago.",
    }

    @dg.multi_asset_check(
        name=f"{space.modality}_{space.name}_probe",
        specs=[dg.AssetCheckSpec(name, asset=key, description=told) for name, told in described.items()],
        description=f"What readers of {space.key} get, looked at without changing anything.",
    )
    def probes(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> Iterator[dg.AssetCheckResult]:
        with clear_failures():
            found = _probe(platform, space, context.run.run_id)
        yield _of_recall(key, found, platform.settings.quality)
        yield _of_freshness(key, found, platform.settings.alerts.stale_seconds)
        yield _of_failures(key, _failed_sources(context.instance, space))

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


def _of_recall(key: dg.AssetKey, found: Probe, quality: QualitySettings) -> dg.AssetCheckResult:
    recall = found.recall
    shortfall = recall.shortfall(quality) if recall else ""
    figures = of_recall(recall) if recall else {}
    measured = f"lowest recall@10 of {len(found.searched)} sources is {recall.at_10:.3f}" if recall else found.why_not
    mend = f"; run `embedding-platform tune {key.path[0]}/{key.path[1]}`" if shortfall else ""
    return dg.AssetCheckResult(
        check_name="probe_recall",
        asset_key=key,
        passed=not shortfall,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{found.alias}: {shortfall or measured}{mend}",
        metadata={
            "collection": found.published or "none",
            "searched": ", ".join(found.searched) or "none",
            "rows": found.rows,
            "floor_at_10": quality.min_recall,
            "floor_at_100": quality.min_recall_at_100,
            **figures,
        },
    )


def _of_freshness(key: dg.AssetKey, found: Probe, stale_seconds: float) -> dg.AssetCheckResult:
    behind = sorted(found.seconds_behind.items(), key=lambda item: -item[1])
    stale = [(source, seconds) for source, seconds in behind if seconds > stale_seconds]
    named = ", ".join(f"{source} for {seconds / 60:.0f} min" for source, seconds in stale[:MOST_NAMED])
    if stale:
        description = f"{len(stale)} sources are not in the collection as listed: {named}; see their last runs"
    else:
        description = f"{len(behind)} sources are on their way into the collection"
    newest = {} if found.seconds_since_listing is None else {"seconds_since_listing": found.seconds_since_listing}
    return dg.AssetCheckResult(
        check_name="probe_freshness",
        asset_key=key,
        passed=not stale,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "behind": len(behind),
            "oldest_seconds_behind": behind[0][1] if behind else 0.0,
            "stale_seconds": stale_seconds,
            "sources": table(("source", "seconds"), behind[:MOST_LISTED]),
            **newest,
        },
    )


def _of_failures(key: dg.AssetKey, failures: Sequence[Failure]) -> dg.AssetCheckResult:
    named = "; ".join(f"{one.source}: {one.reason}" for one in failures[:MOST_NAMED])
    return dg.AssetCheckResult(
        check_name="failed_sources",
        asset_key=key,
        passed=not failures,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(failures)} sources' last run failed. {named}" if failures else "no source's last run failed",
        metadata={
            "failed": len(failures),
            "failures": table(
                ("source", "asset", "reason", "mend", "run"),
                [(one.source, one.asset, one.reason, one.mend, one.run_id) for one in failures[:MOST_LISTED]],
            ),
        },
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
