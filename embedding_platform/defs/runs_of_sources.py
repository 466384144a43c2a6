"""What the instance knows of the runs of sources, asked in few questions however many sources there are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from embedding_platform.defs.jobs import PRIORITY_TAG, job_name

STATE_TAG = "embedding_platform/state"
"""Tag of a requested run: a hash of the media that it was requested for."""

PARTITION_TAG = "dagster/partition"

SECONDS_OF_MEMORY = 24 * 3600.0
"""How far back a run that failed is looked for. While the daemon runs, a source that keeps failing has one that is
younger; after a longer pause the nightly schedule meets it."""

MOST_FAILURES_COUNTED = 8

WAITING = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
UNFINISHED = (
    *WAITING,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
FAILED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class LastRun:
    """What is known of the newest run of a source: when it failed, and how often in a row over the same media."""

    run_id: str = ""
    state: str = ""
    failed_at: float | None = None
    failures: int = 0


def last_run(instance: dg.DagsterInstance, modality: str, source: str) -> LastRun:
    """The newest run of a modality's job for a source."""
    wanted = dg.RunsFilter(job_name=job_name(modality), tags={PARTITION_TAG: source})
    records = instance.get_run_records(wanted, limit=MOST_FAILURES_COUNTED)
    if not records:
        return LastRun()
    newest = records[0].dagster_run
    state = newest.tags.get(STATE_TAG, "")
    failures = 0
    for record in records:
        if record.dagster_run.status not in FAILED or record.dagster_run.tags.get(STATE_TAG, "") != state:
            break
        failures += 1
    return LastRun(newest.run_id, state, (records[0].end_time or 0.0) if failures else None, failures)


def under_way(instance: dg.DagsterInstance, modality: str) -> dict[str, float]:
    """The sources with runs that have not ended: the priority of the one that comes first, infinite if it has begun."""
    found: dict[str, float] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNFINISHED))):
        source = run.tags.get(PARTITION_TAG)
        if source is not None and is_of(run, modality):
            waits = run.status in WAITING
            found[source] = max(found.get(source, -math.inf), _priority(run) if waits else math.inf)
    return found


def failed_lately(instance: dg.DagsterInstance, modality: str, since: float) -> set[str]:
    """The sources of which a run of the modality's job failed or was cancelled since then, whatever came after it."""
    wanted = dg.RunsFilter(
        job_name=job_name(modality), statuses=list(FAILED), updated_after=datetime.fromtimestamp(since, UTC)
    )
    return {run.tags[PARTITION_TAG] for run in instance.get_runs(wanted) if PARTITION_TAG in run.tags}


def run_since(instance: dg.DagsterInstance, modality: str, since: float, assets: Sequence[dg.AssetKey]) -> set[str]:
    """The sources of which a run of the modality's job, over all of the `assets`, was requested since then."""
    wanted = dg.RunsFilter(job_name=job_name(modality), created_after=datetime.fromtimestamp(since, UTC))
    return {
        run.tags[PARTITION_TAG]
        for run in instance.get_runs(wanted)
        if PARTITION_TAG in run.tags and (run.asset_selection is None or run.asset_selection >= set(assets))
    }


def last_materialized(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Mapping[str, int]:
    """By source a number that grows with the time at which the asset was last materialized for it."""
    return instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)


def is_of(run: dg.DagsterRun, modality: str) -> bool:
    """Whether a run is of the modality's job, or one of the web UI over some of its assets."""
    return run.job_name == job_name(modality) or any(key.path[0] == modality for key in run.asset_selection or ())


def _priority(run: dg.DagsterRun) -> int:
    written = run.tags.get(PRIORITY_TAG, "0")
    return int(written) if written.lstrip("-").isdigit() else 0
