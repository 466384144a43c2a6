"""What the instance knows of the runs of sources, asked in few questions however many sources there are."""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from embedding_platform.defs.jobs import PRIORITY_TAG, job_name
from embedding_platform.spaces import MODALITIES

STATE_TAG = "embedding_platform/state"
"""Tag of a requested run: a hash of the media that it was requested for."""

CHANGED_TAG = "embedding_platform/changed_at"
"""Tag of a requested run: when the newest file of these media changed, in seconds since 1970. It is left out where that
cannot be told. Dagster gives it to the runs that follow a killed one, as it does with all tags of ours."""

PARTITION_TAG = "dagster/partition"

SECONDS_OF_MEMORY = 24 * 3600.0
"""How far back a run that failed is looked for. While the daemon runs, a source that keeps failing has one that is
younger; after a longer pause the nightly schedule meets it."""

SECONDS_OF_OVERLAP = 60.0
"""How far before the newest run that it knows a round reads again: runs need not be stored in order of time."""

MOST_RUNS_READ = 8
"""Runs of a source that are read to know of its last ones."""

MOST_FAILURES_READ = 5000
"""Failed runs, the newest, of which it is asked whether they are their source's last. Sources that keep failing have
young ones among them."""

WAITING = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
UNFINISHED = (
    *WAITING,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
STOPPED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class LastRun:
    """What is known of the newest runs of a source.

    `run_id`, `state` and `changed_at` are those of the newest, the latter two as its tags have them, and `stopped_at`
    is when it failed or was cancelled. `failed` is the newest run that failed and that no later one made good by
    doing all that it was to do: neither a cancelled run does, nor one over fewer assets. `failures` is how many
    failed so over the media of the newest.
    """

    run_id: str = ""
    state: str = ""
    changed_at: str = ""
    stopped_at: float | None = None
    failed: str = ""
    failures: int = 0


def last_run(instance: dg.DagsterInstance, modality: str, source: str) -> LastRun:
    """The newest runs for a source: of the modality's job, and of the web UI over some of its assets."""
    of_source = {PARTITION_TAG: source}
    of_job = dg.RunsFilter(job_name=job_name(modality), tags=of_source)
    of_graph = dg.RunsFilter(job_name=IMPLICIT_ASSET_JOB_NAME, tags=of_source)
    found = [
        *instance.get_run_records(of_job, limit=MOST_RUNS_READ),
        # Sources of several modalities may have one name.
        *instance.get_run_records(of_graph, limit=MOST_RUNS_READ * len(MODALITIES)),
    ]
    of_modality = (record for record in found if is_of(record.dagster_run, modality))
    records = sorted(of_modality, key=lambda record: record.storage_id, reverse=True)
    if not records:
        return LastRun()
    newest, state = records[0], records[0].dagster_run.tags.get(STATE_TAG, "")
    failed, done = [], []
    for run in (record.dagster_run for record in records):
        if run.status == dg.DagsterRunStatus.SUCCESS:
            done.append(run)
        elif run.status == dg.DagsterRunStatus.FAILURE and not any(
            _is_over(later, run.asset_selection or set()) for later in done
        ):
            failed.append(run)
    over_the_same = takewhile(lambda run: run.tags.get(STATE_TAG, "") == state, failed)
    return LastRun(
        run_id=newest.dagster_run.run_id,
        state=state,
        changed_at=newest.dagster_run.tags.get(CHANGED_TAG, ""),
        stopped_at=(newest.end_time or 0.0) if newest.dagster_run.status in STOPPED else None,
        failed=failed[0].run_id if failed else "",
        failures=sum(1 for _ in over_the_same),
    )


def media_changed_at(run: dg.DagsterRun) -> float | None:
    """When the media changed that a sensor requested the run for, in seconds since 1970, where it could tell."""
    written = run.tags.get(CHANGED_TAG, "")
    return float(written) if written.replace(".", "", 1).isdecimal() else None


def under_way(instance: dg.DagsterInstance, modality: str) -> dict[str, float]:
    """The sources with runs that have not ended: the priority of the one that comes first, infinite if it has begun."""
    found: dict[str, float] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=list(UNFINISHED))):
        source = run.tags.get(PARTITION_TAG)
        if source is not None and is_of(run, modality):
            waits = run.status in WAITING
            found[source] = max(found.get(source, -math.inf), _priority(run) if waits else math.inf)
    return found


def stopped_lately(instance: dg.DagsterInstance, modality: str, since: float) -> set[str]:
    """The sources of which a run failed or was cancelled since then, whatever came after it."""
    wanted = dg.RunsFilter(statuses=list(STOPPED), updated_after=datetime.fromtimestamp(since, UTC))
    return _sources_of(instance.get_runs(wanted), modality)


def ever_failed(instance: dg.DagsterInstance, modality: str) -> set[str]:
    """The sources of which a run failed, however long ago, whatever came after it."""
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    return _sources_of(instance.get_runs(wanted, limit=MOST_FAILURES_READ), modality)


@dataclass
class Met:
    """The sources of which a round has met a run of the modality's job over all of the `assets`.

    What it has read it keeps between the ticks of one round, so that each reads the runs since the last alone.
    """

    modality: str
    assets: Set[dg.AssetKey]
    began: float = 0.0
    read_to: float = 0.0
    sources: set[str] = field(default_factory=set)

    def since(self, instance: dg.DagsterInstance, began: float) -> set[str]:
        """The sources of which such a run was requested after `began`, in seconds since 1970."""
        if began != self.began:
            self.began, self.read_to, self.sources = began, began, set()
        after = max(began, self.read_to - SECONDS_OF_OVERLAP)
        wanted = dg.RunsFilter(job_name=job_name(self.modality), created_after=datetime.fromtimestamp(after, UTC))
        for record in instance.get_run_records(wanted):
            self.read_to = max(self.read_to, record.create_timestamp.timestamp())
            run = record.dagster_run
            if PARTITION_TAG in run.tags and _is_over(run, self.assets):
                self.sources.add(run.tags[PARTITION_TAG])
        return self.sources


def last_materialized(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Mapping[str, int]:
    """By source a number that grows with the time at which the asset was last materialized for it."""
    return instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)


def is_of(run: dg.DagsterRun, modality: str) -> bool:
    """Whether a run is of the modality's job, or one of the web UI over some of its assets."""
    return run.job_name == job_name(modality) or any(key.path[0] == modality for key in run.asset_selection or ())


def _is_over(run: dg.DagsterRun, assets: Set[dg.AssetKey]) -> bool:
    """Whether a run is over all of the assets; one without a choice is over all that its job has.

    Dagster leaves the choice None where the daemon launches such a run, and empty in a process of ours.
    """
    return not run.asset_selection or (bool(assets) and run.asset_selection >= assets)


def _sources_of(runs: Iterable[dg.DagsterRun], modality: str) -> set[str]:
    return {run.tags[PARTITION_TAG] for run in runs if PARTITION_TAG in run.tags and is_of(run, modality)}


def _priority(run: dg.DagsterRun) -> int:
    written = run.tags.get(PRIORITY_TAG, "0")
    return int(written) if written.lstrip("-").isdigit() else 0
