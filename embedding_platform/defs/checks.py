"""Asset checks: what is specified for each asset, and the verdicts on a stage's report."""

from collections.abc import Iterable, Sequence

import dagster as dg

from embedding_platform.defs import metadata
from embedding_platform.reconcile.collection import CollectionReport
from embedding_platform.reconcile.embeddings import EmbeddingsReport
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.segments import Reject
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Space

MOST_EXAMPLES = 20

MOST_NAMED = 3

FEWEST_TO_COLLAPSE = 10
"""A handful of alike files is no sign of a broken model."""

_REJECTS = ("rejects", True, "Few enough items were rejected. Any reject is a warning; too large a share blocks.")
_OF_EMBEDDINGS = (
    ("dimension", True, "Every vector has the space's dimension."),
    ("finite", True, "Every value of every vector is finite."),
    ("zero", True, "No vector is zero."),
    ("norm", True, "Every norm lies in the space's band."),
    ("collapse", True, "Different contents have different vectors: not all pairs have a cosine near one."),
    ("count", True, "Every live segment has a vector or a recorded rejection."),
    _REJECTS,
    ("duplicates", False, "Few segments share their content with another."),
)
_OF_COLLECTION = (
    ("rows", True, "Milvus holds exactly the desired rows, read back at Strong consistency."),
    ("recall", True, "Recall@10 and recall@100 of the index against exact search reach their floors."),
    ("drift", False, "Nobody else dropped, altered or added rows; where somebody did, they are put right."),
)
_OF_PUBLISHED = (("gate", False, "Every source is complete in the collection that the alias names."),)


def specs(asset: dg.AssetKey, partitions: dg.PartitionsDefinition | None) -> list[dg.AssetCheckSpec]:
    """The check specifications of the asset, by the last part of its key."""
    table = {
        "files": (_REJECTS,),
        "segments": (_REJECTS,),
        "embeddings": _OF_EMBEDDINGS,
        "collection": _OF_COLLECTION,
        "published": _OF_PUBLISHED,
    }[asset.path[-1]]
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=blocking, description=description, partitions_def=partitions)
        for name, blocking, description in table
    ]


def of_rejects(rejected: Sequence[Reject], total: int, quality: QualitySettings) -> dg.AssetCheckResult:
    """Verdict on a stage's rejects out of `total` things: passed, warned, or blocking."""
    share = len(rejected) / total if total else 0.0
    blocks = share > quality.max_rejected_share
    return dg.AssetCheckResult(
        check_name="rejects",
        passed=not rejected,
        severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
        description=(
            f"{len(rejected)} of {total} rejected, more than quality.max_rejected_share {quality.max_rejected_share}"
            if blocks
            else f"{len(rejected)} of {total} rejected"
        ),
        metadata={
            "rejected": len(rejected),
            "share": share,
            "worst": _table(
                ("path", "reason"), ((path, reason) for path, _, _, reason in list(rejected)[:MOST_EXAMPLES])
            ),
        },
    )


def of_embeddings(report: EmbeddingsReport, space: Space, quality: QualitySettings) -> list[dg.AssetCheckResult]:
    """Verdicts on the vectors of one partition."""
    return [
        *(_of_fault(fault, report, space, quality) for fault in ("dimension", "finite", "zero", "norm")),
        _of_collapse(report, quality),
        dg.AssetCheckResult(
            check_name="count",
            passed=not report.missing,
            description=f"{len(report.missing)} of {report.contents} live contents have no vector",
            metadata={
                "live_segments": report.segments,
                "live_contents": report.contents,
                "missing": _ids(report.missing),
            },
        ),
        of_rejects(report.rejected, report.contents, quality),
        _of_duplicates(report, quality),
    ]


def of_collection(report: CollectionReport, quality: QualitySettings) -> list[dg.AssetCheckResult]:
    """Verdicts on one Milvus partition, which the sync has read back."""
    drift = report.drift
    return [
        dg.AssetCheckResult(
            check_name="rows",
            passed=True,
            description=f"{report.rows} rows read back equal the desired ones",
            metadata={"rows": report.rows, "repaired": report.sync.repaired},
        ),
        _of_recall(report.recall, quality),
        dg.AssetCheckResult(
            check_name="drift",
            passed=not (drift.dropped or drift.altered or drift.added),
            severity=dg.AssetCheckSeverity.WARN,
            description=f"somebody else dropped {drift.dropped} rows, altered {drift.altered}, added {drift.added}",
            metadata={"dropped": drift.dropped, "altered": drift.altered, "added": drift.added},
        ),
    ]


def of_published(report: PublicationReport) -> dg.AssetCheckResult:
    """Verdict of the gate; a warning, since the last good collection stays published."""
    due = report.waiting or report.behind
    told = "; ".join(f"{source}: {reason}" for source, reason in list(due.items())[:MOST_NAMED])
    if report.waiting:
        description = f"{report.alias} waits. {told}"
    elif report.behind:
        description = f"{report.alias} points to {report.collection}, which is behind. {told}"
    else:
        description = f"{report.alias} points to {report.collection}"
    return dg.AssetCheckResult(
        check_name="gate",
        passed=not due,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={"waiting": _table(("source", "reason"), due.items())},
    )


def _of_recall(recall: Recall | None, quality: QualitySettings) -> dg.AssetCheckResult:
    if recall is None:
        return dg.AssetCheckResult(check_name="recall", passed=True, description="no rows to search")
    shortfall = recall.shortfall(quality)
    return dg.AssetCheckResult(
        check_name="recall",
        passed=not shortfall,
        description=shortfall or f"recall@10 is {recall.at_10:.3f}, recall@100 {recall.at_100:.3f}",
        metadata={
            "queries": recall.queries,
            "held_out_queries": recall.held_out,
            "floor_at_10": quality.min_recall,
            "floor_at_100": quality.min_recall_at_100,
            "measured_now": recall.measured,
            **metadata.of_recall(recall),
        },
    )


def _of_fault(fault: str, report: EmbeddingsReport, space: Space, quality: QualitySettings) -> dg.AssetCheckResult:
    offending = report.faults.get(fault, [])
    stored = report.judged.faults.get(fault, [])
    share = len(offending) / report.contents if report.contents else 0.0
    expected = {
        "dimension": f"{space.model.dimension}",
        "finite": "finite values",
        "zero": "no zero vector",
        "norm": f"{space.norm_band[0]} to {space.norm_band[1]}",
    }[fault]
    numbers: dict[str, float] = {}
    if fault == "norm" and len(report.judged.norms):
        numbers = {"norm_min": float(report.judged.norms.min()), "norm_max": float(report.judged.norms.max())}
    return dg.AssetCheckResult(
        check_name=fault,
        passed=share <= quality.max_failed_share and not stored,
        description=(
            f"{len(stored)} stored vectors offend; remove the shards of this source and run again"
            if stored
            else f"{len(offending)} of {report.contents} vectors offend and were left out"
        ),
        metadata={
            "expected": expected,
            "offending": len(offending),
            "share": share,
            "judged_again": report.judged.judged,
            "ids": _ids(offending),
            **numbers,
        },
    )


def _of_collapse(report: EmbeddingsReport, quality: QualitySettings) -> dg.AssetCheckResult:
    spread = report.judged.spread
    if spread is None or report.judged.judged < FEWEST_TO_COLLAPSE:
        return dg.AssetCheckResult(check_name="collapse", passed=True, description="too few vectors to tell")
    return dg.AssetCheckResult(
        check_name="collapse",
        passed=spread.distance >= quality.min_cosine_distance,
        description=f"cosine of random pairs: {spread.low:.3f} to {spread.high:.3f} (5th to 95th percentile)",
        metadata={
            "cosine_p5": spread.low,
            "cosine_p50": spread.median,
            "cosine_p95": spread.high,
            "pairs": spread.pairs,
            "floor": quality.min_cosine_distance,
        },
    )


def _of_duplicates(report: EmbeddingsReport, quality: QualitySettings) -> dg.AssetCheckResult:
    share = report.duplicates / report.segments if report.segments else 0.0
    return dg.AssetCheckResult(
        check_name="duplicates",
        passed=share <= quality.max_duplicate_share,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{report.duplicates} of {report.segments} segments repeat another's content",
        metadata={"duplicates": report.duplicates, "share": share, "ids": _ids(report.repeated)},
    )


def _ids(ids: Sequence[str]) -> dg.MetadataValue:
    return dg.MetadataValue.json(list(ids[:MOST_EXAMPLES]))


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> dg.MetadataValue:
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.MetadataValue.table(records, schema=schema)
