"""Schedules: rounds over all sources whatever the sensors saw, probes of what is published, and upkeep."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
from dagster._utils.schedules import get_latest_completed_cron_tick

from embedding_platform.buckets import among
from embedding_platform.defs.check_specs import CHECKS
from embedding_platform.defs.jobs import BACKGROUND_TAG, MAINTENANCE, NIGHTLY, PRIORITY_TAG, PROBE, job_name
from embedding_platform.defs.partitions import set_name
from embedding_platform.defs.runs_of_sources import UNFINISHED, Met, last_materialized
from embedding_platform.settings import ScheduleSettings, Settings
from embedding_platform.spaces import Space

MOST_RUNS_WAITING = 100
"""Runs of one round that wait or work at a time; one after the other they last for about as long as the time between
two ticks. What is left of the round follows at the next ones."""

BETWEEN = "*/10 * * * *"
"""Ticks at which a round goes on."""

ROUND_TAG = "embedding_platform/round"
"""Tag of a run that a round asked for: the schedule's name."""


def schedules_of(settings: Settings) -> list[dg.ScheduleDefinition]:
    """All schedules of a platform: the usual three, and those that the settings add."""
    usual = [
        ScheduleSettings(name="nightly", does="reconcile", cron=settings.nightly),
        ScheduleSettings(name="hourly", does="probe", cron=settings.hourly),
        ScheduleSettings(name="weekly", does="maintenance", cron=settings.weekly),
    ]
    return [
        schedule
        for named in (*usual, *settings.schedules)
        for schedule in _schedules(named, settings.active_spaces, settings.timezone)
    ]


def _schedules(named: ScheduleSettings, kept: Sequence[Space], timezone: str) -> list[dg.ScheduleDefinition]:
    spaces = named.of(kept)
    if named.does == "maintenance":
        return [_maintaining(named, timezone)]
    if named.does == "probe":
        return [_probing(named, spaces if len(spaces) < len(kept) else None, timezone)]
    rounds = []
    for modality in dict.fromkeys(space.modality for space in spaces):
        mine = [space for space in spaces if space.modality == modality]
        is_whole = len(mine) == sum(1 for space in kept if space.modality == modality)
        rounds.append(_round(named, modality, mine, is_whole, timezone))
    return rounds


def _round(
    named: ScheduleSettings, modality: str, spaces: Sequence[Space], is_whole: bool, timezone: str
) -> dg.ScheduleDefinition:
    """The schedule that reconciles sources of one modality once after each time that `named.cron` names.

    It asks for a few runs at each of its ticks, in between too, until each source has had one since; those
    come first whose last listing is oldest. A source that the sensor's run has reconciled since has had its
    own. Where the machine was off, the round begins when it is on again.
    """
    name = named.title(modality)
    assets = _assets(modality, spaces)
    met = Met(modality, set(assets))

    @dg.schedule(
        name=name,
        job_name=job_name(modality),
        cron_schedule=[named.cron, BETWEEN],
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            f"Reconciles {'every' if is_whole and not named.sources else 'some'} {modality} source after {named.cron}, "
            "also with what changed inside Milvus; the ticks in between take it on."
        ),
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        began = get_latest_completed_cron_tick(named.cron, context.scheduled_execution_time, timezone)
        instance = context.instance
        there = instance.get_dynamic_partitions(set_name(modality))
        sources, absent = _chosen(there, named.sources), _absent(named, modality, there)
        if not sources:
            return dg.SkipReason(f"no {modality} sources {'chosen' if there else 'yet'}{absent}")
        due = set(sources) - met.since(instance, began.timestamp())
        if not due:
            return dg.SkipReason(f"each of {len(sources)} sources has had a run since {_told(began)}{absent}")
        waiting = instance.get_runs_count(dg.RunsFilter(tags={ROUND_TAG: name}, statuses=list(UNFINISHED)))
        room = max(0, MOST_RUNS_WAITING - waiting)
        if not room:
            return dg.SkipReason(f"{waiting} runs are waiting or at work; {len(due)} sources follow{absent}")
        listed = last_materialized(instance, dg.AssetKey([modality, "files"]))
        first = sorted(due, key=lambda source: (listed.get(source, 0), source))[:room]
        tags = {PRIORITY_TAG: str(NIGHTLY), BACKGROUND_TAG: named.name, ROUND_TAG: name}
        return [
            dg.RunRequest(
                run_key=f"{name}/{began.astimezone(UTC).isoformat()}/{source}",
                partition_key=source,
                tags=tags,
                asset_selection=None if is_whole else assets,
            )
            for source in first
        ]

    return schedule


def _probing(named: ScheduleSettings, spaces: Sequence[Space] | None, timezone: str) -> dg.ScheduleDefinition:
    checks = None
    if spaces is not None:
        checks = [
            dg.AssetCheckKey(dg.AssetKey([space.modality, space.name, "published"]), check.name)
            for space in spaces
            for check in CHECKS["probe"]
        ]
    told = f"Searches what is published of {'some' if checks else 'all'} spaces and sees how fresh it is."
    return _single(named, PROBE, timezone, told, {PRIORITY_TAG: "0"}, checks)


def _maintaining(named: ScheduleSettings, timezone: str) -> dg.ScheduleDefinition:
    told = "Joins small files of the store and reports what may be pruned; nothing is removed."
    tags = {PRIORITY_TAG: str(NIGHTLY), BACKGROUND_TAG: named.name}
    return _single(named, MAINTENANCE, timezone, told, tags)


def _single(
    named: ScheduleSettings,
    job: str,
    timezone: str,
    description: str,
    tags: Mapping[str, str],
    checks: Sequence[dg.AssetCheckKey] | None = None,
) -> dg.ScheduleDefinition:
    """The schedule that asks for one run of a job at each of its times."""

    @dg.schedule(
        name=named.title(),
        job_name=job,
        cron_schedule=named.cron,
        execution_timezone=timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        at = context.scheduled_execution_time.astimezone(UTC).isoformat()
        return dg.RunRequest(run_key=at, tags=dict(tags), asset_check_keys=checks)

    return schedule


def _assets(modality: str, spaces: Sequence[Space]) -> list[dg.AssetKey]:
    """The chain from files to the published collections of some spaces."""
    upstream = [dg.AssetKey([modality, stage]) for stage in ("files", "segments")]
    stages = ("embeddings", "collection", "published")
    return [*upstream, *(dg.AssetKey([modality, space.name, stage]) for space in spaces for stage in stages)]


def _chosen(there: Collection[str], wanted: Sequence[str] | None) -> list[str]:
    return list(there) if wanted is None else among(there, wanted)


def _absent(named: ScheduleSettings, modality: str, there: Collection[str]) -> str:
    """What to add to a reason where the schedule names sources that are not there, or are misspelt."""
    absent = [source for source in named.sources or () if not among(there, [source])]
    return f"; no {modality} source is called {', '.join(absent)}, as schedule {named.name} names it" if absent else ""


def _told(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M %Z")
