"""Assets: one shape for every modality. Each body reads, calls a reconciliation, and reports."""

from collections.abc import Sequence

import dagster as dg

from embedding_platform.defs import checks, metadata
from embedding_platform.defs.partitions import set_name, sources_of
from embedding_platform.defs.resources import PlatformResource, clear_failures, progress_of
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.models.loading import is_remote
from embedding_platform.reconcile.collection import reconcile_collection
from embedding_platform.reconcile.embeddings import reconcile_embeddings
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.reconcile.segments import reconcile_segments
from embedding_platform.spaces import Modality, Space

OWNERS = ("team:data-platform",)


def modality_assets(
    modality: Modality, spaces: Sequence[tuple[Space, str]], cutting: Cutting
) -> list[dg.AssetsDefinition]:
    """The asset chain of one modality; `spaces` are its spaces with their fingerprints."""
    return [
        _files(modality),
        _segments(modality, cutting),
        *(make(space, fingerprint) for space, fingerprint in spaces for make in (_embeddings, _collection, _published)),
    ]


def _files(modality: Modality) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([modality.name, "files"]), sources_of(modality.name)

    @dg.asset(
        key=key,
        group_name=modality.name,
        partitions_def=partitions,
        kinds={"file"},
        owners=OWNERS,
        tags={"modality": modality.name, "stage": "files"},
        description=f"The listing of a source: {modality.holds}. Known by content first, hashed once.",
        check_specs=checks.specs(key, partitions),
    )
    def files(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        with clear_failures():
            report = reconcile_files(
                platform.store,
                platform.settings.media_url,
                modality.name,
                context.partition_key,
                platform.settings.listing,
                platform.settings.decoding,
            )
        total = len(report.items) + len(report.rejected)
        return dg.MaterializeResult(
            metadata=metadata.of_files(report),
            data_version=dg.DataVersion(report.data_version),
            check_results=[checks.of_rejects(report.rejected, total, platform.settings.quality)],
        )

    return files


def _segments(modality: Modality, cutting: Cutting) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([modality.name, "segments"]), sources_of(modality.name)

    @dg.asset(
        key=key,
        deps=[[modality.name, "files"]],
        group_name=modality.name,
        partitions_def=partitions,
        kinds={"parquet"},
        owners=OWNERS,
        tags={"modality": modality.name, "stage": "segments"},
        code_version=code_version(modality.name, cutting),
        description="The pieces that get one vector each: passages, images, captions, windows, clips.",
        check_specs=checks.specs(key, partitions),
    )
    def segments(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        with clear_failures():
            report = reconcile_segments(
                platform.store,
                modality.name,
                context.partition_key,
                platform.cutting,
                readers=platform.settings.batch.readers,
                progress=progress_of(context, platform, "files cut"),
            )
        return dg.MaterializeResult(
            metadata=metadata.of_segments(report),
            data_version=dg.DataVersion(report.data_version),
            check_results=[checks.of_rejects(report.rejected, report.items, platform.settings.quality)],
        )

    return segments


def _embeddings(space: Space, fingerprint: str) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([space.modality, space.name, "embeddings"]), sources_of(space.modality)

    @dg.asset(
        key=key,
        deps=[[space.modality, "segments"]],
        group_name=space.modality,
        partitions_def=partitions,
        kinds={"openai" if is_remote(space.model) else "pytorch", "parquet", space.name},
        owners=OWNERS,
        tags={"modality": space.modality, "space": space.name, "stage": "embeddings"},
        code_version=fingerprint,
        pool="gpu",
        description=(
            f"Vectors by {space.model.location}, {space.model.dimension} dimensions"
            f"{', normalised' if space.normalised else ''}: {space.model.source}."
        ),
        check_specs=checks.specs(key, partitions),
    )
    def embeddings(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        with clear_failures():
            report = reconcile_embeddings(
                platform.store,
                space,
                context.partition_key,
                platform.fingerprint(space),
                platform.cutting,
                lambda: platform.encoder(space),
                platform.settings.batch,
                run_id=context.run_id,
                progress=progress_of(context, platform, "segments embedded"),
            )
        return dg.MaterializeResult(
            metadata=metadata.of_embeddings(report, space),
            data_version=dg.DataVersion(report.data_version),
            check_results=checks.of_embeddings(report, space, platform.settings.quality),
        )

    return embeddings


def _collection(space: Space, fingerprint: str) -> dg.AssetsDefinition:
    key, partitions = dg.AssetKey([space.modality, space.name, "collection"]), sources_of(space.modality)

    @dg.asset(
        key=key,
        deps=[[space.modality, "segments"], [space.modality, space.name, "embeddings"]],
        group_name=space.modality,
        partitions_def=partitions,
        kinds={"milvus", space.name},
        owners=OWNERS,
        tags={"modality": space.modality, "space": space.name, "stage": "collection"},
        code_version=fingerprint,
        pool="milvus",
        description=f"One Milvus partition per source, {space.index.type} under {space.metric}, read back row by row.",
        check_specs=checks.specs(key, partitions),
    )
    def collection(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        live = platform.live(space, context.partition_key)
        with clear_failures():
            report = reconcile_collection(
                platform.milvus,
                platform.target(space),
                live,
                platform.settings.milvus_in_place,
                platform.settings.quality,
                run_id=context.run_id,
                held_out=lambda: platform.held_out(space),
                progress=progress_of(context, platform, "rows written"),
            )
        return dg.MaterializeResult(
            metadata=metadata.of_collection(report, live),
            data_version=dg.DataVersion(report.data_version),
            check_results=checks.of_collection(report, platform.settings.quality),
        )

    return collection


def _published(space: Space, fingerprint: str) -> dg.AssetsDefinition:
    key = dg.AssetKey([space.modality, space.name, "published"])

    @dg.asset(
        key=key,
        deps=[[space.modality, space.name, "collection"]],
        group_name=space.modality,
        kinds={"milvus", space.name},
        owners=OWNERS,
        tags={"modality": space.modality, "space": space.name, "stage": "published"},
        code_version=fingerprint,
        pool="milvus",
        description="The alias that readers search: moves to the newest collection when every source is complete.",
        check_specs=checks.specs(key, None),
    )
    def published(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult:
        with clear_failures():
            report = platform.published(
                space, lambda: context.instance.get_dynamic_partitions(set_name(space.modality))
            )
        return dg.MaterializeResult(
            metadata=metadata.of_published(report),
            data_version=dg.DataVersion(report.collection if report.published else (report.previous or "none")),
            check_results=[checks.of_published(report)],
        )

    return published
