"""Assets: one shape for every modality. Each body reads, calls a reconciliation, and reports."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import TypeAlias

import dagster as dg

from embedding_platform.defs import check_specs, checks, metadata
from embedding_platform.defs.freshness import last_listings
from embedding_platform.defs.partitions import set_name, sources_of
from embedding_platform.defs.resources import PlatformResource, clear_failures, progress_of
from embedding_platform.defs.runs_of_sources import media_changed_at
from embedding_platform.errors import UnsoundError
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.media.items import verdict_code
from embedding_platform.milvus.schema import alias_name
from embedding_platform.models.loading import is_remote
from embedding_platform.platform import Platform
from embedding_platform.reconcile.collection import CollectionReport, reconcile_collection
from embedding_platform.reconcile.distribution import accept_distribution, compare_distribution
from embedding_platform.reconcile.duplicates import accept_duplicates, compare_duplicates
from embedding_platform.reconcile.embeddings import EmbeddingsReport, reconcile_embeddings
from embedding_platform.reconcile.rejects import rejected_files_beside, rejected_items_beside
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import reconcile_segments
from embedding_platform.settings import Settings
from embedding_platform.spaces import Index, Modality, Space

MOST_TAG_CHARACTERS = 63
"""Longest value of a tag that Dagster takes."""

Results: TypeAlias = Iterator[dg.MaterializeResult | dg.AssetCheckResult]


def modality_assets(
    modality: Modality, spaces: Sequence[tuple[Space, str]], cutting: Cutting, settings: Settings
) -> list[dg.AssetsDefinition]:
    """The asset chain of one modality; `spaces` are its spaces with their fingerprints."""
    return [
        _files(modality, settings),
        _segments(modality, cutting, settings),
        *(
            make(space, fingerprint, settings)
            for space, fingerprint in spaces
            for make in (_embeddings, _collection, _published)
        ),
    ]


def _files(modality: Modality, settings: Settings) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([modality.name, "files"]), sources_of(modality.name)

    @dg.asset(
        key=key,
        group_name=modality.name,
        partitions_def=partitions,
        kinds={"file"},
        owners=settings.owners,
        tags=_tags(modality.name, "files"),
        code_version=verdict_code(modality.name),
        description=(
            f"**The listing of a source**: {modality.holds}.\n\n"
            "Compared with the last listing by size and time; what differs is hashed, and known by its content "
            "from then on. A file that is not what its name promises is rejected with a reason."
        ),
        metadata=metadata.of_files_asset(settings, modality.name),
        check_specs=check_specs.specs(key, partitions),
    )
    def files(context: dg.AssetExecutionContext, platform: PlatformResource) -> Results:
        source = context.partition_key

        def work() -> dg.MaterializeResult:
            report = platform.listed(modality.name, source)
            total = report.table.num_rows + len(report.rejected)
            beside = partial(rejected_files_beside, platform.store, modality.name, source)
            return dg.MaterializeResult(
                metadata=metadata.of_files(report, platform, modality.name, source),
                data_version=dg.DataVersion(report.data_version),
                check_results=[checks.of_rejects(report.rejected, total, platform.settings.quality, beside=beside)],
            )

        yield from _told("files", work)

    return files


def _segments(modality: Modality, cutting: Cutting, settings: Settings) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([modality.name, "segments"]), sources_of(modality.name)

    @dg.asset(
        key=key,
        deps=[[modality.name, "files"]],
        group_name=modality.name,
        partitions_def=partitions,
        kinds={"parquet"},
        owners=settings.owners,
        tags=_tags(modality.name, "segments"),
        code_version=code_version(modality.name, cutting),
        description=(
            "**The pieces that get one vector each**: passages, images, captions, windows, clips.\n\n"
            "Files are compared by content with those that were cut already; each is decoded to its end. One that "
            "cannot be is rejected with a reason, and tried again when it, or the way of cutting, changes."
        ),
        metadata=metadata.of_segments_asset(settings, modality.name),
        check_specs=check_specs.specs(key, partitions),
    )
    def segments(context: dg.AssetExecutionContext, platform: PlatformResource) -> Results:
        source = context.partition_key

        def work() -> dg.MaterializeResult:
            place = (platform.store, modality.name, source)
            report = reconcile_segments(
                *place,
                platform.cutting,
                readers=platform.settings.batch.readers,
                progress=progress_of(context, platform, "files cut"),
                notes=platform.settings.decoding_notes,
            )
            beside, quality = partial(rejected_items_beside, *place, platform.cutting), platform.settings.quality
            return dg.MaterializeResult(
                metadata=metadata.of_segments(report, platform, modality.name, source),
                data_version=dg.DataVersion(report.data_version),
                check_results=[checks.of_rejects(report.rejected, report.items, quality, "segments", beside)],
            )

        yield from _told("segments", work)

    return segments


def _embeddings(space: Space, fingerprint: str, settings: Settings) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([space.modality, space.name, "embeddings"]), sources_of(space.modality)

    @dg.asset(
        key=key,
        deps=[[space.modality, "segments"]],
        group_name=space.modality,
        partitions_def=partitions,
        kinds={*_runtime_kind(space, settings), "parquet", space.name},
        owners=settings.owners,
        tags=_tags(space.modality, "embeddings", space),
        code_version=fingerprint,
        pool="gpu",
        description=(
            f"**Vectors** of {space.model.dimension} dimensions{', normalised' if space.normalised else ''}, by "
            f"`{space.model.location}`: {space.model.source}.\n\n"
            "A content that has a vector, in whatever source, is not embedded again. Each vector is judged before "
            "it is stored: dimension, finite values, zero, norm. The code version is the fingerprint: all that "
            "decides a vector's values."
        ),
        metadata=metadata.of_embeddings_asset(settings, space, fingerprint),
        check_specs=check_specs.specs(key, partitions),
    )
    def embeddings(context: dg.AssetExecutionContext, platform: PlatformResource) -> Results:
        source = context.partition_key

        def work() -> dg.MaterializeResult:
            report = reconcile_embeddings(
                platform.store,
                space,
                source,
                platform.fingerprint(space),
                platform.cutting,
                lambda: platform.encoder(space),
                platform.settings.batch,
                run_id=context.run_id,
                progress=progress_of(context, platform, "segments embedded"),
                notes=platform.settings.decoding_notes,
            )
            return dg.MaterializeResult(
                metadata=metadata.of_embeddings(report, platform, space, source),
                data_version=dg.DataVersion(report.data_version),
                check_results=judged_embeddings(report, platform, space, source),
            )

        yield from _told("embeddings", work)

    return embeddings


def judged_embeddings(
    report: EmbeddingsReport, platform: Platform, space: Space, source: str
) -> list[dg.AssetCheckResult]:
    """The verdicts on a source's vectors. Where all but warnings pass, later ones are compared with these vectors.

    What the checks of the distribution and of duplicates warn of is not accepted by itself.

    Raises:
        PlatformError: if what was accepted before cannot be read or written.
    """
    quality = platform.settings.quality
    place = (platform.store, space.key, platform.fingerprint(space), source)
    change = compare_distribution(*place, report.judged, report.data_version, quality.max_shift)
    repetition = compare_duplicates(*place, report.duplicates, report.segments, quality.max_duplicate_share)
    offending = checks.offending_contents(report, change, repetition, quality)
    named = platform.live(space, source).segments_of(offending) if offending else []
    verdicts = checks.of_embeddings(
        report,
        space,
        quality,
        platform.compared(space) if report.device else None,
        change,
        repetition,
        {segment.content_hash: segment.path for segment in named},
        source,
    )
    if all(verdict.passed or verdict.severity == dg.AssetCheckSeverity.WARN for verdict in verdicts):
        if not change.exceeded:
            accept_distribution(*place, report.judged, change, report.data_version)
        if not repetition.exceeded:
            accept_duplicates(*place, repetition)
    return verdicts


def _collection(space: Space, fingerprint: str, settings: Settings) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([space.modality, space.name, "collection"]), sources_of(space.modality)

    @dg.asset(
        key=key,
        deps=[[space.modality, "segments"], [space.modality, space.name, "embeddings"]],
        group_name=space.modality,
        partitions_def=partitions,
        kinds={"milvus", space.name},
        owners=settings.owners,
        tags=_tags(space.modality, "collection", space),
        code_version=f"{_collection_code(space, fingerprint, settings)} {_index_code(space.index)}",
        pool="milvus",
        description=(
            f"**The rows in Milvus**, {space.index.type} under {space.metric}; published as `{alias_name(space.key)}`."
            "\n\nRows that are missing, stale or orphaned are written or deleted, and read back at Strong "
            "consistency. Rows just written are searched for, and recall is measured against exact search."
        ),
        metadata=metadata.of_collection_asset(settings, space, fingerprint),
        check_specs=check_specs.specs(key, partitions),
    )
    def collection(context: dg.AssetExecutionContext, platform: PlatformResource) -> Results:
        def work() -> dg.MaterializeResult:
            target, live = platform.target(space), platform.live(space, context.partition_key)
            report = reconcile_collection(
                platform.milvus,
                target,
                live,
                platform.settings.milvus_in_place,
                platform.settings.quality,
                held_out=lambda: platform.held_out(space),
                progress=progress_of(context, platform, "rows written"),
            )
            return dg.MaterializeResult(
                metadata=metadata.of_collection(
                    report, platform, target, live, _requested(context), media_changed_at(context.run)
                ),
                data_version=dg.DataVersion(report.data_version),
                check_results=judged_collection(report, platform, live),
            )

        yield from _told("collection", work)

    return collection


def judged_collection(report: CollectionReport, platform: Platform, live: LiveRows) -> list[dg.AssetCheckResult]:
    """The verdicts on the rows of a source in Milvus."""
    quality, recall = platform.settings.quality, report.recall
    falls_short = recall is not None and recall.shortfall(quality)
    named = live.segments_of([content for content, _ in recall.worst]) if recall and falls_short else []
    return checks.of_collection(report, quality, {segment.content_hash: segment.path for segment in named})


def _published(space: Space, fingerprint: str, settings: Settings) -> dg.AssetsDefinition:
    key = dg.AssetKey([space.modality, space.name, "published"])

    @dg.asset(
        key=key,
        deps=[[space.modality, space.name, "collection"]],
        group_name=space.modality,
        kinds={"milvus", space.name},
        owners=settings.owners,
        tags=_tags(space.modality, "published", space),
        code_version=_collection_code(space, fingerprint, settings),
        pool="milvus",
        description=(
            f"**The alias `{alias_name(space.key)}` that readers search.**\n\n"
            "It moves, in one step, to the newest collection when every source is complete and sound in it; until "
            "then readers go on with the one before. `embedding-platform rollback` moves it back."
        ),
        metadata=metadata.of_published_asset(settings, space, fingerprint),
        check_specs=check_specs.specs(key, None),
    )
    def published(context: dg.AssetExecutionContext, platform: PlatformResource) -> Results:
        def work() -> dg.MaterializeResult:
            started = perf_counter()
            report = platform.published(
                space, lambda: context.instance.get_dynamic_partitions(set_name(space.modality))
            )
            return dg.MaterializeResult(
                metadata=metadata.of_published(report, platform, space, perf_counter() - started),
                data_version=dg.DataVersion(report.collection if report.published else (report.previous or "none")),
                check_results=checks.of_published(
                    report, last_listings(context.instance, space.modality), platform.settings.quality
                ),
            )

        yield from _told("published", work)

    return published


def _told(stage: str, work: Callable[[], dg.MaterializeResult]) -> Results:
    """What the work came to; a failure that a check stands for shows as failed there too."""
    with clear_failures():
        try:
            result = work()
        except UnsoundError as error:
            verdict = checks.of_error(error, stage)
            if verdict is not None:
                yield verdict
            raise
    yield result


def _requested(context: dg.AssetExecutionContext) -> float | None:
    """When the run was asked for, in seconds since 1970: before it waited in the queue."""
    record = context.instance.get_run_record_by_id(context.run_id)
    return record.create_timestamp.timestamp() if record is not None else None


def _runtime_kind(space: Space, settings: Settings) -> set[str]:
    """What runs the model, where the settings decide it: of `auto` the machine decides, and each run tells."""
    if is_remote(space.model):
        return {"openai"}
    return {"torch": {"pytorch"}, "openvino": {"openvino"}}.get(settings.runtime, set())


def _tags(modality: str, stage: str, space: Space | None = None) -> dict[str, str]:
    tags = {"modality": modality, "stage": stage}
    return tags if space is None else {**tags, "space": space.name, "model": _tag(space.model.location)}


def _tag(location: str) -> str:
    """The name of a model without the place it lies in, of letters that a tag may have."""
    name = location.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:MOST_TAG_CHARACTERS]


def _collection_code(space: Space, fingerprint: str, settings: Settings) -> str:
    """What decides which collection holds the rows, apart from the number of sources."""
    return f"{fingerprint} words" if settings.finds_words(space) else fingerprint


def _index_code(index: Index) -> str:
    return " ".join([index.type, *(f"{name}={value}" for name, value in index.build.items())])
