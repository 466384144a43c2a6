"""Metadata: a stage's report as numbers that the UI plots, and as pictures where those say more."""

import base64
import io
from collections.abc import Mapping, Sequence

import dagster as dg
import numpy as np

from embedding_platform.errors import RejectedError
from embedding_platform.reconcile.collection import CollectionReport
from embedding_platform.reconcile.embeddings import EmbeddingsReport
from embedding_platform.reconcile.files import FilesReport
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import SegmentsReport
from embedding_platform.spaces import Space

Metadata = dict[str, dg.MetadataValue | str | int | float | bool]

MOST_POINTS = 400
MOST_THUMBNAILS = 6
THUMBNAIL_PIXELS = 72


def of_files(report: FilesReport) -> Metadata:
    """Counts of the increment and of what was read."""
    metadata: Metadata = {
        **report.increment.counts(),
        "dagster/partition_row_count": len(report.items),
        "rejected": len(report.rejected),
        "skipped": report.skipped,
        "hashed": report.hashed,
        "bytes": sum(item.size for item in report.items),
    }
    images = [item.uri for item in report.items if item.media_type.startswith("image/")]
    if images:
        metadata["thumbnails"] = _thumbnails(images[:MOST_THUMBNAILS])
    return metadata


def of_segments(report: SegmentsReport) -> Metadata:
    """Counts of items cut, and of live segments."""
    return {
        **report.increment.counts(),
        "dagster/partition_row_count": report.segments,
        "rejected": len(report.rejected),
    }


def of_embeddings(report: EmbeddingsReport, space: Space) -> Metadata:
    """Counts, rates, device, and the norms of the partition's vectors."""
    metadata: Metadata = {
        **report.increment.counts(),
        "dagster/partition_row_count": report.contents,
        "embedded": report.embedded,
        "reused": report.reused,
        "rejected": len(report.rejected),
        "dimension": space.model.dimension,
        "model": space.model.location,
        **{f"seconds_{name}": round(seconds, 3) for name, seconds in report.seconds.items()},
    }
    if report.embedded:
        metadata |= {"device": report.device, "runtime": report.runtime, "precision": report.precision}
        metadata["items_per_second"] = round(report.embedded / max(report.seconds["embedded"], 1e-9), 2)
    if len(report.judged.norms):
        metadata["mean_norm"] = round(float(report.judged.norms.mean()), 6)
        metadata["norms"] = _histogram(report.judged.norms)
    return metadata


def of_collection(report: CollectionReport, live: LiveRows) -> Metadata:
    """Counts of the increment, what was written, and a map of the source's vectors."""
    sync, drift = report.sync, report.drift
    metadata: Metadata = {
        **sync.counts,
        "dagster/partition_row_count": report.rows,
        "dagster/uri": f"milvus://{report.collection}",
        "dagster/table_name": report.collection,
        "imported": report.imported,
        "upserted": sync.upserted,
        "deleted": sync.deleted,
        "repaired": sync.repaired,
        "dropped_by_others": drift.dropped,
        "altered_by_others": drift.altered,
        "added_by_others": drift.added,
        "index": live.space.index.type,
        "index_built": report.index_built,
        **{f"seconds_{name}": round(seconds, 3) for name, seconds in report.seconds.items()},
    }
    if report.recall is not None:
        metadata |= of_recall(report.recall)
    vectors, paths = live.sample(MOST_POINTS)
    if len(vectors) > 2:
        metadata["map"] = _map(vectors, paths)
        metadata["sample_neighbours"] = _neighbours(vectors, paths)
    return metadata


def of_recall(recall: Recall) -> dict[str, float]:
    """Recall at both depths, of held-out queries where there are any."""
    figures = {
        "recall_at_10": recall.at_10,
        "recall_at_100": recall.at_100,
        "held_out_recall_at_10": recall.held_out_at_10,
        "held_out_recall_at_100": recall.held_out_at_100,
    }
    return {name: value for name, value in figures.items() if value is not None}


def of_published(report: PublicationReport) -> Metadata:
    """Where the alias points, what it pointed to before, and what was measured before it moved."""
    metadata: Metadata = {
        "alias": report.alias,
        "collection": report.collection,
        "previous": report.previous or "",
        "moved": report.moved,
        "partitions_removed": report.removed.partitions,
        "rows_removed": report.removed.rows,
        "published": report.published,
        "waiting": len(report.waiting),
        "behind": len(report.behind),
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


def _thumbnails(uris: Sequence[str]) -> dg.MetadataValue:
    from embedding_platform.media.image import open_image

    pictures = []
    for uri in uris:
        try:
            image = open_image(uri)
        except RejectedError:
            continue
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        png = io.BytesIO()
        image.save(png, "PNG", optimize=True)
        name = uri.rsplit("/", 1)[-1].replace("[", "(").replace("]", ")")
        pictures.append(f"![{name}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})")
    return dg.MetadataValue.md(" ".join(pictures))


def _histogram(values: np.ndarray, bins: int = 24) -> dg.MetadataValue:
    low, high = float(values.min()), float(values.max())
    margin = max((high - low) * 0.05, 1e-4)
    counts, _ = np.histogram(values, bins=bins, range=(low - margin, high + margin))
    bars = "".join(
        f'<rect x="{8 + 12 * place}" y="{90 - 80 * count / counts.max():.1f}" width="11" '
        f'height="{80 * count / counts.max():.1f}" fill="#4f6bed"/>'
        for place, count in enumerate(counts)
    )
    labels = f'<text x="8" y="106">{low - margin:.4f}</text><text x="240" y="106">{high + margin:.4f}</text>'
    return _svg(304, 110, bars + labels, "histogram of norms")


def _map(vectors: np.ndarray, paths: Sequence[str]) -> dg.MetadataValue:
    """The first two principal components, a dot for each vector, coloured by the folder or file it is from."""
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    hues = _hues(paths)
    dots = "".join(
        f'<circle cx="{10 + 300 * x:.0f}" cy="{10 + 200 * y:.0f}" r="3" fill="hsl({hues[path]},65%,50%)"/>'
        for (x, y), path in zip(points, paths, strict=True)
    )
    return _svg(320, 220, dots, "map of the vectors")


def _hues(paths: Sequence[str]) -> Mapping[str, int]:
    groups = sorted({_kind(path) for path in paths})
    return {path: 360 * groups.index(_kind(path)) // len(groups) for path in paths}


def _kind(path: str) -> str:
    """What files of one kind share in their names: all but the digits at the end."""
    return path.rsplit(".", 1)[0].rstrip("0123456789-_")


def _neighbours(vectors: np.ndarray, paths: Sequence[str], rows: int = 5, k: int = 3) -> dg.MetadataValue:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    chosen = np.linspace(0, len(unit) - 1, min(rows, len(unit))).astype(int)
    cosines = unit[chosen] @ unit.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    records = []
    for place, scores in zip(chosen, cosines, strict=True):
        nearest = np.argsort(-scores)[: min(k, len(unit) - 1)]
        found = ", ".join(f"{paths[other]} ({scores[other]:.3f})" for other in nearest)
        records.append(dg.TableRecord({"segment of": paths[place], "nearest": found}))
    columns = [dg.TableColumn("segment of"), dg.TableColumn("nearest")]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns=columns))


def _svg(width: int, height: int, body: str, alt: str) -> dg.MetadataValue:
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>'
    )
    return dg.MetadataValue.md(f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()})")
