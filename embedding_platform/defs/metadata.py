"""Metadata: a stage's report as numbers that the UI plots, and as pictures where those say more.

docs/metadata.md explains every name. Numbers are told by every run; pictures by those that made or
changed something, since each lies in Dagster's event log for good.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from itertools import islice

import dagster as dg

from embedding_platform import layout, records
from embedding_platform.defs import pictures
from embedding_platform.defs.columns import collection_columns, columns
from embedding_platform.defs.tables import table
from embedding_platform.errors import PlatformError
from embedding_platform.media.cutting import code_version
from embedding_platform.milvus.schema import alias_name
from embedding_platform.platform import Platform
from embedding_platform.reconcile.collection import CollectionReport
from embedding_platform.reconcile.embeddings import EmbeddingsReport
from embedding_platform.reconcile.files import FilesReport
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.samples import neighbours, sample_of_source, samples_of_others
from embedding_platform.reconcile.segments import Reject, SegmentsReport
from embedding_platform.reconcile.target import Target
from embedding_platform.settings import Settings, without_password
from embedding_platform.spaces import Space

Metadata = dict[str, dg.MetadataValue | str | int | float | bool]

MOST_REJECTS = 50
"""Rejects that are shown; a command lists all."""

FEWEST_POINTS = 3
"""Vectors, of all sources, from which on a map shows something."""


def of_files_asset(settings: Settings, modality: str) -> Metadata:
    """What is known of the asset before it is materialized: where its tables lie, and their columns."""
    return _of_asset(
        settings, "files", layout.items_folder(settings.store_url, modality), columns(records.ITEMS, "path")
    )


def of_segments_asset(settings: Settings, modality: str) -> Metadata:
    """The same of segments."""
    folder = layout.segments_root(settings.store_url, modality)
    return _of_asset(settings, "segments", folder, columns(records.SEGMENTS, "segment_id"))


def of_embeddings_asset(settings: Settings, space: Space, fingerprint: str) -> Metadata:
    """The same of embeddings, and which model makes them."""
    folder = layout.space_folder(settings.store_url, space.key, fingerprint)
    return {
        **_of_asset(settings, "embeddings", folder, columns(records.vectors_schema(space.model.dimension))),
        "model": space.model.location,
        "dimension": space.model.dimension,
        "licence": space.model.licence,
        "fingerprint": fingerprint,
    }


def of_collection_asset(settings: Settings, space: Space, fingerprint: str) -> Metadata:
    """The same of a collection, and a link to the alias by which it is published."""
    provenance = Target(space, fingerprint, words=settings.finds_words(space)).provenance
    return {
        **_of_asset(settings, "collection", settings.milvus_uri, collection_columns(provenance)),
        "published_as": dg.MetadataValue.asset(dg.AssetKey([space.modality, space.name, "published"])),
        "alias": alias_name(space.key),
        "fingerprint": fingerprint,
    }


def of_published_asset(settings: Settings, space: Space, fingerprint: str) -> Metadata:
    """The same of the alias, and a link to the collection that it is to point to."""
    provenance = Target(space, fingerprint, words=settings.finds_words(space)).provenance
    return {
        **_of_asset(settings, "published", settings.milvus_uri, collection_columns(provenance)),
        "dagster/table_name": alias_name(space.key),
        "collection_asset": dg.MetadataValue.asset(dg.AssetKey([space.modality, space.name, "collection"])),
        "fingerprint": fingerprint,
    }


def of_files(report: FilesReport, platform: Platform, modality: str, source: str) -> Metadata:
    """Counts of the increment and of what was read."""
    total = report.table.num_rows + len(report.rejected)
    url = layout.rejected_items_url(platform.store, modality, source)
    return {
        **report.increment.counts(),
        "dagster/partition_row_count": report.table.num_rows,
        "dagster/uri": without_password(layout.items_url(platform.store, modality, source)),
        "skipped": report.skipped,
        "hashed": report.hashed,
        "bytes": report.bytes_listed,
        **_of_rejects(report.rejected, total, url, modality, source),
        "seconds_total": round(report.seconds, 3),
        "files_per_second": round((total + report.skipped) / max(report.seconds, 1e-9), 2),
        "explained": explained(platform.settings, "files"),
    }


def of_segments(report: SegmentsReport, platform: Platform, modality: str, source: str) -> Metadata:
    """Counts of items cut, and of live segments, and pictures of some that are new."""
    version = code_version(modality, platform.cutting)
    url = layout.rejected_segments_url(platform.store, modality, source, version)
    metadata: Metadata = {
        **report.increment.counts(),
        "dagster/partition_row_count": report.segments,
        "dagster/uri": without_password(layout.segments_folder(platform.store, modality, source, version)),
        "files": report.items,
        "bytes": report.bytes_read,
        **_of_rejects(report.rejected, report.items, url, modality, source),
        **_seconds(report.seconds),
        "explained": explained(platform.settings, "segments"),
    }
    cut = len(report.increment.new) + len(report.increment.stale)
    if cut and "cut" in report.seconds:
        metadata["files_per_second"] = round(cut / max(report.seconds["cut"], 1e-9), 2)
        metadata["megabytes_per_second"] = round(report.bytes_read / 1e6 / max(report.seconds["cut"], 1e-9), 3)
    if report.some:
        decoder = pictures.Decoder(modality, platform.settings.decoding)
        metadata |= pictures.new_segments([decoder.drawing(segment) for segment in report.some])
    return metadata


def of_embeddings(report: EmbeddingsReport, platform: Platform, space: Space, source: str) -> Metadata:
    """Counts, rates, device, and the norms of the partition's vectors."""
    fingerprint = platform.fingerprint(space)
    url = layout.rejected_vectors_url(platform.store, space.key, fingerprint, source)
    metadata: Metadata = {
        **report.increment.counts(),
        "dagster/partition_row_count": report.judged.judged,
        "dagster/uri": without_password(layout.vectors_folder(platform.store, space.key, fingerprint, source)),
        "segments": report.segments,
        "duplicates": report.duplicates,
        "embedded": report.embedded,
        "reused": report.reused,
        "missing": len(report.missing),
        "bytes": report.bytes_stored,
        **_of_rejects(report.rejected, report.contents, url, space.modality, source),
        "dimension": space.model.dimension,
        "model": space.model.location,
        **_seconds(report.seconds),
        "explained": explained(platform.settings, "embeddings"),
    }
    if report.embedded:
        metadata |= {"device": report.device, "runtime": report.runtime, "precision": report.precision}
        metadata["items_per_second"] = round(report.embedded / max(report.seconds["embedded"], 1e-9), 2)
        metadata["model_items_per_second"] = round(report.embedded / max(report.seconds.get("model", 0.0), 1e-9), 2)
    norms = report.judged.norms
    if len(norms):
        metadata |= {
            "mean_norm": round(float(norms.mean()), 6),
            "least_norm": round(float(norms.min()), 6),
            "greatest_norm": round(float(norms.max()), 6),
        }
        if report.embedded or report.reused:
            metadata["norms"] = pictures.histogram(norms, space.norm_band, "norms")
    return metadata


def of_collection(
    report: CollectionReport,
    platform: Platform,
    target: Target,
    live: LiveRows,
    requested: float | None,
    changed: float | None,
) -> Metadata:
    """Counts of the increment, what was written, and, where that is anything, pictures of the space.

    `requested` is when the run was asked for, and `changed` when the media that it was asked for changed, both in
    seconds since 1970.
    """
    sync, drift, space = report.sync, report.drift, target.space
    metadata: Metadata = {
        **sync.counts,
        "dagster/partition_row_count": report.rows,
        "dagster/uri": without_password(f"{platform.settings.milvus_uri.rstrip('/')}/{report.collection}"),
        "dagster/table_name": report.collection,
        "published_as": dg.MetadataValue.asset(dg.AssetKey([space.modality, space.name, "published"])),
        "alias": target.alias,
        "imported": report.imported,
        "upserted": sync.upserted,
        "deleted": sync.deleted,
        "repaired": sync.repaired,
        "calls": sync.batches,
        "bytes": report.written * 4 * space.model.dimension,
        "dropped_by_others": drift.dropped,
        "altered_by_others": drift.altered,
        "added_by_others": drift.added,
        "index": report.index.type,
        "index_built": report.index_built,
        **_seconds(report.seconds),
        "explained": explained(platform.settings, "collection"),
    }
    if report.written:
        metadata["rows_per_second"] = round(report.written / max(report.seconds["written"], 1e-9), 2)
        # Recall is measured once rows are found.
        found = time.time() - report.seconds["recall"]
        if requested is not None:
            metadata["seconds_to_searchable"] = round(max(found - requested, 0.0), 3)
        # A change that is still to come is one by another clock.
        if changed is not None and changed <= found:
            metadata["seconds_from_change_to_searchable"] = round(found - changed, 3)
    if report.recall is not None:
        metadata |= of_recall(report.recall)
    if report.is_changed:
        metadata |= _of_space(report, platform, target, live)
    return metadata


def of_recall(recall: Recall) -> Metadata:
    """The figures of a recall that there are."""
    figures = {
        "recall_at_10": recall.at_10,
        "recall_at_100": recall.at_100,
        "held_out_recall_at_10": recall.held_out_at_10,
        "held_out_recall_at_100": recall.held_out_at_100,
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_published(report: PublicationReport, platform: Platform, space: Space, seconds: float) -> Metadata:
    """Where the alias points, what it pointed to before, what was measured before it moved, and how long all took."""
    metadata: Metadata = {
        "dagster/uri": without_password(f"{platform.settings.milvus_uri.rstrip('/')}/{report.alias}"),
        "dagster/table_name": report.alias,
        "collection_asset": dg.MetadataValue.asset(dg.AssetKey([space.modality, space.name, "collection"])),
        "alias": report.alias,
        "collection": report.collection,
        "previous": report.previous or "",
        "moved": report.moved,
        "partitions_removed": report.removed.partitions,
        "rows_removed": report.removed.rows,
        "published": report.published,
        "waiting": len(report.waiting),
        "behind": len(report.behind),
        "seconds_total": round(seconds, 3),
        "explained": explained(platform.settings, "published"),
    }
    if report.gate is not None:
        figures = {
            "rows": report.gate.rows,
            "lowest_recall_at_10": report.gate.recall_at_10,
            "lowest_recall_at_100": report.gate.recall_at_100,
            "worst_golden_cosine": report.gate.golden,
            "overlap_at_10": report.gate.overlap,
        }
        metadata |= {name: value for name, value in figures.items() if value is not None}
    return metadata


def explained(settings: Settings, section: str) -> dg.MetadataValue:
    """A link to the section of docs/metadata.md that explains the numbers; its name where nobody says who serves it."""
    if settings.metadata_page:
        return dg.MetadataValue.url(f"{settings.metadata_page}#{section}")
    return dg.MetadataValue.text(
        f"Section {section} of metadata.md in the documentation. The setting metadata_page turns this into a link."
    )


def rejects_command(modality: str, source: str) -> str:
    """The command that lists what was rejected of a source."""
    return f"embedding-platform rejects --modality {modality} --source {shlex.quote(source)}"


def _of_space(report: CollectionReport, platform: Platform, target: Target, live: LiveRows) -> Metadata:
    """A map of a sample of the space, and what search finds near some rows of the source."""
    sample = sample_of_source(live)
    if not len(sample.vectors):
        return {}
    try:
        near = neighbours(platform.milvus, target, live, sample, report.index)
        decoder = pictures.Decoder(target.space.modality, platform.settings.decoding)
        shown: Metadata = {**pictures.neighbours(near, decoder, target.space.metric)}
        sources = {live.source: sample.vectors, **samples_of_others(live)}
        if sum(map(len, sources.values())) >= FEWEST_POINTS:
            shown["map"] = pictures.space_map(sources)
        return shown
    except PlatformError as error:
        # The rows are there and sound: what they look like is not worth a failure.
        return {"map": pictures.undrawn(error)}


def _of_asset(settings: Settings, section: str, place: str, schema: dg.TableSchema) -> Metadata:
    return {
        "dagster/uri": without_password(place),
        "dagster/column_schema": dg.MetadataValue.table_schema(schema),
        "explained": explained(settings, section),
    }


def _of_rejects(rejected: Sequence[Reject], total: int, url: str, modality: str, source: str) -> Metadata:
    """How many were rejected, the first of them, and where all are listed."""
    metadata: Metadata = {"rejected": len(rejected), "rejected_share": len(rejected) / total if total else 0.0}
    if rejected:
        shown = ((pictures.printable(path), pictures.printable(reason)) for path, _, _, reason in rejected)
        metadata["rejects"] = table(("path", "reason"), islice(shown, MOST_REJECTS))
        metadata["rejects_list"] = dg.MetadataValue.md(f"`{_code(rejects_command(modality, source))}`")
        metadata["rejects_table"] = dg.MetadataValue.path(without_password(url))
    return metadata


def _code(text: str) -> str:
    """A text that may stand between backquotes, which nothing escapes."""
    return pictures.printable(text, 4 * pictures.MOST_CHARACTERS).replace("`", "\N{MODIFIER LETTER GRAVE ACCENT}")


def _seconds(seconds: Mapping[str, float]) -> Metadata:
    return {f"seconds_{name}": round(value, 3) for name, value in seconds.items()}
