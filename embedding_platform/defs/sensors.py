"""Sensors: one per modality notices media that came, changed or went, and requests runs."""

import time
from dataclasses import dataclass

import dagster as dg

from embedding_platform.defs.jobs import job_name
from embedding_platform.defs.partitions import set_name, sources_of
from embedding_platform.defs.resources import PlatformResource
from embedding_platform.errors import PlatformError
from embedding_platform.platform import Platform, Sight
from embedding_platform.reconcile.files import listed_sources, listing_age, present_sources
from embedding_platform.records import digest

MOST_RUNS_PER_TICK = 50

SECONDS_TO_RETRY = 600.0
"""A run that failed is requested again after so long, or at once when the media changed meanwhile."""

STATE_TAG = "embedding_platform/state"
"""Tag of a requested run: a hash of the media that it was requested for."""


@dataclass(frozen=True)
class _LastRun:
    """What is known of the newest run of a source."""

    run_id: str = ""
    state: str = ""
    is_going: bool = False
    failed_at: float | None = None


def media_sensor(modality: str, seconds: int) -> dg.SensorDefinition:
    """The sensor of one modality, looking every `seconds`.

    A source whose files differ from its last listing, or whose last run failed, gets a run,
    unless one is still going. A new source gets its partition first; a vanished one is emptied
    by a run, and loses its partition when nothing of it is left.
    """
    partitions = sources_of(modality)

    @dg.sensor(
        name=f"{modality}_media",
        job_name=job_name(modality),
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Requests a run of {job_name(modality)} for each source whose {modality} media changed.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        try:
            present = present_sources(platform.store, platform.settings.media_url)
        except PlatformError as error:
            return dg.SkipReason(str(error))
        existing = set(context.instance.get_dynamic_partitions(set_name(modality)))
        requests: list[dg.RunRequest] = []
        gone: list[str] = []
        for source in sorted({*present, *existing, *listed_sources(platform.store, modality)}):
            try:
                sight = platform.sight(modality, source)
                last = _last_run(context.instance, modality, source)
                if _is_due(platform, modality, source, sight, last, source in existing):
                    requests.append(_request(platform, modality, source, sight, last))
                elif (
                    source in existing and not sight.holds and not last.is_going and platform.is_gone(modality, source)
                ):
                    gone.append(source)
            except PlatformError as error:
                context.log.warning(f"{source}: {error}")
        requests = requests[:MOST_RUNS_PER_TICK]
        if not requests and not gone:
            return dg.SkipReason("all sources are as last listed, or at work")
        added = [str(request.partition_key) for request in requests if request.partition_key not in existing]
        return dg.SensorResult(
            run_requests=requests,
            dynamic_partitions_requests=[
                *([partitions.build_add_request(added)] if added else []),
                *([partitions.build_delete_request(gone)] if gone else []),
            ],
        )

    return sensor


def _is_due(platform: Platform, modality: str, source: str, sight: Sight, last: _LastRun, is_partition: bool) -> bool:
    if last.is_going:
        return False
    if last.failed_at is not None and last.state == sight.state:
        # A failure in the future is one before the clock was set back.
        return not 0 <= time.time() - last.failed_at < SECONDS_TO_RETRY
    if sight.differs:
        return True
    vanished = is_partition and not sight.holds and not platform.is_gone(modality, source)
    return vanished or last.failed_at is not None


def _request(platform: Platform, modality: str, source: str, sight: Sight, last: _LastRun) -> dg.RunRequest:
    """One request per difference and attempt: the listing it differs from, what is there now, the run before."""
    age = listing_age(platform.store, modality, source)
    key = digest(source, age, sight.state, last.run_id)
    return dg.RunRequest(run_key=key, partition_key=source, tags={STATE_TAG: sight.state})


def _last_run(instance: dg.DagsterInstance, modality: str, source: str) -> _LastRun:
    wanted = dg.RunsFilter(job_name=job_name(modality), tags={"dagster/partition": source})
    records = instance.get_run_records(wanted, limit=1)
    if not records:
        return _LastRun()
    run, ended = records[0].dagster_run, records[0].end_time
    failed = run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return _LastRun(run.run_id, run.tags.get(STATE_TAG, ""), not run.is_finished, (ended or 0.0) if failed else None)
