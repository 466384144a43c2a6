"""Sensors: one per modality notices media that came, changed or went, and requests runs."""

from collections.abc import Mapping

import dagster as dg

from embedding_platform.defs.jobs import job_name
from embedding_platform.defs.partitions import set_name, sources_of
from embedding_platform.defs.resources import PlatformResource
from embedding_platform.errors import PlatformError
from embedding_platform.media.listing import list_sources
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import files_increment, listed_sources, listing_age
from embedding_platform.records import digest

MOST_RUNS_PER_TICK = 50


def media_sensor(modality: str, seconds: int) -> dg.SensorDefinition:
    """The sensor of one modality, looking every `seconds`.

    A source whose files differ from its last listing gets a run, once per difference; a new
    source gets its partition first; a vanished one is emptied by a run and loses its
    partition when that is done.
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
            present = list_sources(platform.settings.media_url)
            listed = listed_sources(platform.store, modality)
            seen = {source: platform.seen(modality, source) for source in present}
        except PlatformError as error:
            return dg.SkipReason(str(error))
        changed = {}
        for source in {*present, *listed}:
            states = seen.get(source, {})
            if not files_increment(platform.store, modality, source, states).is_empty:
                changed[source] = _run_key(platform, modality, source, states)
        existing = set(context.instance.get_dynamic_partitions(set_name(modality)))
        chosen = sorted(changed)[:MOST_RUNS_PER_TICK]
        added = [source for source in chosen if source not in existing]
        gone = sorted(existing - set(listed) - set(changed))
        if not chosen and not gone:
            return dg.SkipReason(f"{len(listed)} sources are as last listed")
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=changed[source], partition_key=source) for source in chosen],
            dynamic_partitions_requests=[
                *([partitions.build_add_request(added)] if added else []),
                *([partitions.build_delete_request(gone)] if gone else []),
            ],
        )

    return sensor


def _run_key(platform: Platform, modality: str, source: str, states: Mapping[str, str]) -> str:
    """One request per difference: the listing that it differs from, and what is there now."""
    age = listing_age(platform.store, modality, source)
    return digest(source, age, *(part for state in sorted(states.items()) for part in state))
