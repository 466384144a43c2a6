"""Asset checks: the verdicts on a stage's report; `check_specs` holds what is specified of them.

Each verdict has the numbers and the thresholds that it was passed on; one that fails names the
worst offenders, and says what to do. docs/metadata.md explains each of them.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

import dagster as dg
import numpy as np

from embedding_platform.defs import metadata
from embedding_platform.defs.check_specs import CHECKS
from embedding_platform.defs.failures import Failure
from embedding_platform.defs.freshness import MOST_LOOKED_AT, Listings
from embedding_platform.defs.tables import table
from embedding_platform.errors import UnsoundError
from embedding_platform.inference.golden import GoldenReport
from embedding_platform.reconcile.collection import CollectionReport
from embedding_platform.reconcile.distribution import Change
from embedding_platform.reconcile.duplicates import Repetition
from embedding_platform.reconcile.embeddings import EmbeddingsReport
from embedding_platform.reconcile.probing import Probe
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.rejects import NOTHING_BESIDE, Rejection
from embedding_platform.reconcile.segments import Reject
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import Space
from embedding_platform.vectors.judgement import normalise

MOST_EXAMPLES = 20

MOST_CELL_CHARACTERS = 500

MOST_NAMED = 3

FEWEST_TO_COLLAPSE = 10
"""A handful of alike files is no sign of a broken model."""


_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def of_error(error: UnsoundError, stage: str) -> dg.AssetCheckResult | None:
    """The verdict of the check that a failure stands for; None where the stage has no such check."""
    if error.check not in {check.name for check in CHECKS[stage]}:
        return None
    worst = _table(("worst",), ((one,) for one in error.worst)) if error.worst else None
    return _result(stage, error.check, False, str(error), dict(error.numbers), worst)


def of_rejects(
    rejected: Sequence[Reject],
    total: int,
    quality: QualitySettings,
    stage: str = "files",
    beside: Callable[[], Rejection] = lambda: NOTHING_BESIDE,
) -> dg.AssetCheckResult:
    """Verdict on a stage's rejects out of `total` things: passed, warned, or blocking.

    Those of a bucket block where they do together with those `beside` it, of the other buckets of its folder.
    """
    own, most = Rejection(len(rejected), total), quality.max_rejected_share
    blocks = own.share > most and own.with_others(beside()).share > most
    return _result(
        stage,
        "rejects",
        not rejected,
        (
            f"{len(rejected)} of {total} rejected, more than quality.max_rejected_share {most}"
            if blocks
            else f"{len(rejected)} of {total} rejected"
        ),
        {"rejected": len(rejected), "share": own.share, "most_allowed": most},
        _rejects(rejected) if rejected else None,
        severity=_ERROR if blocks else _WARN,
    )


def of_embeddings(
    report: EmbeddingsReport,
    space: Space,
    quality: QualitySettings,
    golden: GoldenReport | None,
    change: Change,
    repetition: Repetition,
    paths: Mapping[str, str],
    source: str,
) -> list[dg.AssetCheckResult]:
    """Verdicts on the vectors of one partition, the source.

    `golden` is None where no model was loaded. `paths` name files by the hash of a content.
    """
    accept = f"embedding-platform accept {space.key} --source {shlex.quote(source)}"
    return [
        *(_of_fault(fault, report, space, quality, paths) for fault in ("dimension", "finite", "zero", "norm")),
        _of_collapse(report, quality, paths),
        _result(
            "embeddings",
            "count",
            not report.missing,
            f"{len(report.missing)} of {report.contents} live contents have no vector",
            {
                "live_segments": report.segments,
                "live_contents": report.contents,
                "missing": len(report.missing),
            },
            _contents(report.missing, paths) if report.missing else None,
        ),
        of_rejects(report.rejected, report.contents, quality, "embeddings"),
        _of_duplicates(repetition, report.repeated, paths, accept),
        _of_distribution(change, paths, accept),
        _of_golden("embeddings", golden),
    ]


def offending_contents(
    report: EmbeddingsReport, change: Change, repetition: Repetition, quality: QualitySettings
) -> list[str]:
    """Content hashes that failing checks are to name by their files."""
    stored = [content for contents in report.judged.faults.values() for content in contents[:MOST_EXAMPLES]]
    repeated = report.repeated if repetition.exceeded else []
    alike = [content for *pair, _ in _alike(report) for content in pair] if _is_collapsed(report, quality) else []
    others = [content for content, _ in [*repeated, *change.outliers]]
    return [*stored, *report.missing[:MOST_EXAMPLES], *alike, *others]


def of_collection(
    report: CollectionReport, quality: QualitySettings, paths: Mapping[str, str]
) -> list[dg.AssetCheckResult]:
    """Verdicts on one Milvus partition, which the sync has read back; `paths` as in `of_embeddings`."""
    drift, index = report.drift, report.index
    return [
        _result(
            "collection",
            "rows",
            True,
            f"{report.rows} rows read back equal the desired ones",
            {"rows": report.rows, "repaired": report.sync.repaired},
        ),
        _result(
            "collection",
            "index",
            True,
            f"{index.type}, {'built now' if report.index_built else 'as it was'}; "
            + ("rows just written are found" if report.written else "no row had to be written"),
            {
                "type": index.type,
                "built_now": report.index_built,
                "seconds_indexed": round(report.seconds["indexed"], 3),
                "seconds_searchable": round(report.seconds["searchable"], 3),
                **index.build,
                **index.search,
            },
        ),
        _of_recall(report.recall, quality, paths),
        _result(
            "collection",
            "tampering",
            not (drift.dropped or drift.altered or drift.added),
            f"somebody else dropped {drift.dropped} rows, altered {drift.altered}, added {drift.added}",
            {"dropped": drift.dropped, "altered": drift.altered, "added": drift.added},
            _table(("row", "what others did"), drift.named) if drift.named else None,
        ),
    ]


def of_published(report: PublicationReport, listings: Listings, quality: QualitySettings) -> list[dg.AssetCheckResult]:
    """Verdicts on the alias; warnings but for the model, since the last good collection stays published."""
    due = report.waiting or report.behind
    told = "; ".join(f"{source}: {reason}" for source, reason in list(due.items())[:MOST_NAMED])
    if len(due) > MOST_NAMED:
        told += f"; {len(due) - MOST_NAMED} more sources"
    if report.waiting:
        unread = f", and {report.unread} more were not looked at" if report.unread else ""
        description = f"{report.alias} waits. {told}{unread}"
    elif report.behind:
        description = f"{report.alias} points to {report.collection}, which is behind. {told}"
    else:
        description = f"{report.alias} points to {report.collection}"
    return [
        _result(
            "published",
            "gate",
            not due,
            description,
            {"waiting": len(report.waiting), "unread": report.unread, "behind": len(report.behind)},
            _table(("source", "reason"), list(due.items())[:MOST_EXAMPLES]) if due else None,
        ),
        _result(
            "published",
            "alias",
            report.published,
            (
                f"{report.alias} points to {report.collection}"
                if report.published
                else f"{report.alias} points to {report.previous or 'nothing'}, and not to {report.collection}"
            ),
            {"moved": report.moved},
        ),
        _of_golden_at_the_gate(report),
        _of_freshness(listings, quality),
    ]


def of_probe(
    space: Space, found: Probe, failures: Sequence[Failure], quality: QualitySettings, stale_seconds: float
) -> list[dg.AssetCheckResult]:
    """Verdicts on what readers get of a space, all of them warnings on its alias."""
    key = dg.AssetKey([space.modality, space.name, "published"])
    verdicts = [_of_searches(found, quality), _of_behind(found, stale_seconds), _of_failures(failures)]
    return [verdict._replace(asset_key=key) for verdict in verdicts]


def _of_searches(found: Probe, quality: QualitySettings) -> dg.AssetCheckResult:
    recall = found.recall
    shortfall = recall.shortfall(quality) if recall else ""
    measured = f"lowest recall@10 of {len(found.recalls)} sources is {recall.at_10:.3f}" if recall else found.why_not
    lowest_first = sorted(found.recalls.items(), key=lambda item: (item[1].at_10, item[1].at_100))
    rows = ((source, f"{one.at_10:.3f}", f"{one.at_100:.3f}") for source, one in lowest_first)
    return _result(
        "probe",
        "probe_recall",
        not shortfall,
        f"{found.alias}: {shortfall or measured}",
        {
            "collection": found.published or "none",
            "searched": ", ".join(found.recalls) or "none",
            "rows": found.rows,
            "floor_at_10": quality.min_recall,
            "floor_at_100": quality.min_recall_at_100,
            **(metadata.of_recall(recall) if recall else {}),
        },
        _table(("source", "recall@10", "recall@100"), rows) if shortfall else None,
    )


def _of_behind(found: Probe, stale_seconds: float) -> dg.AssetCheckResult:
    behind = sorted(found.seconds_behind.items(), key=lambda item: -item[1])
    stale = [(source, seconds) for source, seconds in behind if seconds > stale_seconds]
    named = ", ".join(f"{source} for {seconds / 60:.0f} min" for source, seconds in stale[:MOST_NAMED])
    newest = {} if found.seconds_since_listing is None else {"seconds_since_listing": found.seconds_since_listing}
    rows = ((source, f"{seconds:.0f}") for source, seconds in stale[:MOST_EXAMPLES])
    return _result(
        "probe",
        "probe_freshness",
        not stale,
        (
            f"{len(stale)} sources are not in the collection as listed: {named}"
            if stale
            else f"{len(behind)} sources are on their way into the collection"
        ),
        {
            "behind": len(behind),
            "oldest_seconds_behind": behind[0][1] if behind else 0.0,
            "most_seconds": stale_seconds,
            **newest,
        },
        _table(("source", "seconds"), rows) if stale else None,
    )


def _of_failures(failures: Sequence[Failure]) -> dg.AssetCheckResult:
    named = "; ".join(f"{one.source}: {one.reason}" for one in failures[:MOST_NAMED])
    rows = ((one.source, one.asset, one.reason, one.mend, one.run_id) for one in failures[:MOST_EXAMPLES])
    return _result(
        "probe",
        "failed_sources",
        not failures,
        f"{len(failures)} sources' last run failed. {named}" if failures else "no source's last run failed",
        {"failed": len(failures)},
        _table(("source", "asset", "reason", "mend", "run"), rows) if failures else None,
    )


def _of_golden_at_the_gate(report: PublicationReport) -> dg.AssetCheckResult:
    if report.gate is None:
        # The gate asks the model last, and only of an alias that is to move.
        told = "the alias had not to move" if report.published else "the alias waits, see the check gate"
        return _result("published", "golden", True, f"the model was not asked: {told}", {})
    if report.gate.golden is None:
        return _result("published", "golden", True, "the model passed here before, and was not asked again", {})
    return _result("published", "golden", True, "the model passed", {"worst_cosine": report.gate.golden})


def _of_freshness(listings: Listings, quality: QualitySettings) -> dg.AssetCheckResult:
    most = quality.max_listing_hours
    old = {source: hours for source, hours in listings.oldest.items() if hours is None or hours > most}
    oldest = max((hours for hours in listings.oldest.values() if hours is not None), default=0.0)
    at_least = "at least " if len(old) == MOST_LOOKED_AT else ""
    rows = ((source, "never" if hours is None else f"{hours:.1f} hours ago") for source, hours in old.items())
    return _result(
        "published",
        "freshness",
        not old,
        f"{at_least}{len(old)} of {listings.sources} sources were not listed for {most:g} hours",
        {
            "sources": listings.sources,
            "not_listed": len(old),
            "hours_of_oldest": round(oldest, 3),
            "most_hours": most,
        },
        _table(("source", "listed"), rows) if old else None,
    )


def _of_golden(stage: str, golden: GoldenReport | None) -> dg.AssetCheckResult:
    if golden is None:
        return _result(stage, "golden", True, "no model was loaded, since nothing had to be embedded", {})
    numbers: dict[str, float] = {"compared": golden.compared, "floor": golden.floor}
    if golden.worst_cosine is None:
        return _result(stage, "golden", True, "the first vectors of this model are kept from now on", numbers)
    description = f"worst cosine {golden.worst_cosine:.6f} of {golden.compared} inputs"
    return _result(stage, "golden", True, description, {**numbers, "worst_cosine": golden.worst_cosine})


def _of_distribution(change: Change, paths: Mapping[str, str], command: str) -> dg.AssetCheckResult:
    numbers: dict[str, float | str] = {
        "vectors": change.vectors,
        "spread": change.spread,
        "mean_norm": change.mean_norm,
        "accepted_changes": change.accepted,
        "other_sources": change.others,
        "increment_vectors": change.arrived,
        **change.figures,
        **{f"{name}_limit": limit for name, limit in change.limits.items()},
    }
    if change.exceeded:
        numbers["accept_with"] = command
    if not change.figures:
        description = "nothing to compare with yet, or too few vectors to tell"
    else:
        beside = f"a new source beside {change.others} others: " if change.others else ""
        description = beside + ", ".join(
            f"{name.replace('_', ' ')} {value:.4f} of at most {change.limits[name]:.4f}"
            for name, value in change.figures.items()
        )
    rows = ((paths.get(content, content), f"{cosine:.3f}") for content, cosine in change.outliers)
    worst = _table(("farthest from the former centre", "cosine"), rows) if change.outliers else None
    return _result("embeddings", "distribution", not change.exceeded, description, numbers, worst)


def _of_recall(recall: Recall | None, quality: QualitySettings, paths: Mapping[str, str]) -> dg.AssetCheckResult:
    if recall is None:
        return _result("collection", "recall", True, "no rows to search", {})
    shortfall = recall.shortfall(quality)
    rows = ((paths.get(content, content), f"{share:.3f}") for content, share in recall.worst)
    return _result(
        "collection",
        "recall",
        not shortfall,
        shortfall or f"recall@10 is {recall.at_10:.3f}, recall@100 {recall.at_100:.3f}",
        {
            "queries": recall.queries,
            "held_out_queries": recall.held_out,
            "floor_at_10": quality.min_recall,
            "floor_at_100": quality.min_recall_at_100,
            "measured_now": recall.measured,
            **metadata.of_recall(recall),
        },
        _table(("searched with", "recall"), rows) if shortfall else None,
    )


def _of_fault(
    fault: str, report: EmbeddingsReport, space: Space, quality: QualitySettings, paths: Mapping[str, str]
) -> dg.AssetCheckResult:
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
    left_out = [reject for reject in report.rejected if reject[3].split(": ")[0] == fault]
    worst = _rejects(left_out) if left_out else _contents(stored, paths) if stored else None
    return _result(
        "embeddings",
        fault,
        share <= quality.max_failed_share and not stored,
        (
            f"{len(stored)} stored vectors offend; remove the shards of this source and run again"
            if stored
            else f"{len(offending)} of {report.contents} vectors offend and were left out"
        ),
        {
            "expected": expected,
            "offending": len(offending),
            "share": share,
            "most_allowed": quality.max_failed_share,
            "judged": report.judged.judged,
            **numbers,
        },
        worst,
    )


def _of_collapse(report: EmbeddingsReport, quality: QualitySettings, paths: Mapping[str, str]) -> dg.AssetCheckResult:
    spread = report.judged.spread
    if spread is None or report.judged.judged < FEWEST_TO_COLLAPSE:
        return _result("embeddings", "collapse", True, "too few vectors to tell", {})
    collapsed = _is_collapsed(report, quality)
    rows = (
        (paths.get(one, one), paths.get(other, other), f"{cosine:.6f}")
        for one, other, cosine in (_alike(report) if collapsed else ())
    )
    return _result(
        "embeddings",
        "collapse",
        not collapsed,
        f"cosine of random pairs: {spread.low:.3f} to {spread.high:.3f} (5th to 95th percentile)",
        {
            "cosine_p5": spread.low,
            "cosine_p50": spread.median,
            "cosine_p95": spread.high,
            "pairs": spread.pairs,
            "distance": spread.distance,
            "floor": quality.min_cosine_distance,
        },
        _table(("content of", "and of", "cosine"), rows) if collapsed else None,
    )


def _is_collapsed(report: EmbeddingsReport, quality: QualitySettings) -> bool:
    spread = report.judged.spread
    enough = report.judged.judged >= FEWEST_TO_COLLAPSE
    return spread is not None and enough and spread.distance < quality.min_cosine_distance


def _alike(report: EmbeddingsReport) -> list[tuple[str, str, float]]:
    """Pairs of different contents with almost one vector, those beside each other in the sample, nearest first."""
    unit, contents = normalise(report.judged.sample.vectors), report.judged.sample.contents
    cosines = np.einsum("nd,nd->n", unit[:-1], unit[1:])
    places = np.argsort(-cosines, kind="stable")[:MOST_NAMED]
    return [(contents[place], contents[place + 1], float(cosines[place])) for place in places]


def _of_duplicates(
    repetition: Repetition, repeated: Sequence[tuple[str, int]], paths: Mapping[str, str], command: str
) -> dg.AssetCheckResult:
    numbers: dict[str, float | str] = {
        "duplicates": repetition.duplicates,
        "share": repetition.share,
        "most_allowed": repetition.limit,
        "accepted_shares": repetition.accepted,
    }
    if repetition.exceeded:
        numbers["accept_with"] = command
    rows = ((paths.get(content, content), str(count)) for content, count in repeated)
    return _result(
        "embeddings",
        "duplicates",
        not repetition.exceeded,
        f"{repetition.duplicates} of {repetition.segments} segments repeat another's content",
        numbers,
        _table(("content of", "segments"), rows) if repetition.exceeded else None,
    )


def _result(
    stage: str,
    name: str,
    passed: bool,
    description: str,
    numbers: Mapping[str, dg.MetadataValue | str | int | float | bool],
    worst: dg.MetadataValue | None = None,
    severity: dg.AssetCheckSeverity | None = None,
) -> dg.AssetCheckResult:
    """A verdict; where its `severity` is not given, it is that of a check that blocks, or does not."""
    (check,) = (check for check in CHECKS[stage] if check.name == name)
    told = dict(numbers)
    if worst is not None:
        told["worst"] = worst
    if not passed:
        # Markdown would hide behind a click.
        told["what_to_do"] = check.mend.replace("`", "")
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=severity or (_ERROR if check.blocking else _WARN),
        description=description,
        metadata=told,
    )


def _rejects(rejected: Sequence[Reject]) -> dg.MetadataValue:
    return _table(("path", "reason"), ((path, reason) for path, _, _, reason in rejected[:MOST_EXAMPLES]))


def _contents(contents: Sequence[str], paths: Mapping[str, str]) -> dg.MetadataValue:
    rows = ((paths.get(content, ""), content) for content in contents[:MOST_EXAMPLES])
    return _table(("path", "content hash"), rows)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> dg.MetadataValue:
    return table(columns, (tuple(cell[:MOST_CELL_CHARACTERS] for cell in row) for row in rows))
