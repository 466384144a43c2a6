"""Sensors: one per modality notices media that came, changed or went, and requests runs."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from embedding_platform.defs.jobs import BACKGROUND_TAG, FRESH, PRIORITY_TAG, REPAIR, job_name
from embedding_platform.defs.partitions import most_at_once, set_name, sources_of
from embedding_platform.defs.resources import PlatformResource
from embedding_platform.defs.runs_of_sources import (
    CHANGED_TAG,
    SECONDS_OF_MEMORY,
    STATE_TAG,
    LastRun,
    last_materialized,
    last_run,
    stopped_lately,
    under_way,
)
from embedding_platform.records import digest
from embedding_platform.settings import ListingSettings
from embedding_platform.watching import Look, Round, Watch

MOST_RUNS_WAITING = 50
"""Requested runs of a modality that wait in the queue. Beyond them the choice is left to later ticks, which
put first what has waited longest then."""

SECONDS_TO_LOOK = 30.0
"""How long a tick waits for sources to be looked at; Dagster gives up a tick after 60 seconds."""

SECONDS_TO_RETRY = 600.0
"""Nothing is requested for so long after a run that failed or was cancelled, unless the media changed meanwhile.
Each further failure over the same media doubles it."""

MOST_SECONDS_TO_RETRY = 6 * 3600.0

MOST_SECONDS_UNNOTICED = 24 * 3600.0
"""Sensors notice a change within seconds. Media that changed longer ago and are met only now were moved here with the
times that they had, or nobody has looked for a day: neither wait is one for this platform."""

MOST_REMEMBERED = 200
"""Sources whose waiting a cursor remembers: those that wait longest. It is stored with every tick."""

MOST_TOLD = 10
"""Problems that the reason of an idle tick spells out."""

_FAILED = "failed"


def media_sensor(modality: str, seconds: int) -> dg.SensorDefinition:
    """The sensor of one modality, looking every `seconds`.

    A source whose files differ from its last listing, whose last run failed, or which a new
    collection does not hold yet, gets a run, unless one is still going. New files come before
    the rest, and those sources first that have gone without a run for longest. A new source gets its
    partition first; a vanished one is emptied by a run, and loses its partition when nothing of
    it is left.
    """
    partitions = sources_of(modality)
    watch = Watch(modality)

    @dg.sensor(
        name=f"{modality}_media",
        job_name=job_name(modality),
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Requests a run of {job_name(modality)} for each source whose {modality} media or model changed.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: PlatformResource) -> dg.SensorResult | dg.SkipReason:
        existing = set(context.instance.get_dynamic_partitions(set_name(modality)))
        seen = watch.look(platform, existing, SECONDS_TO_LOOK)
        if seen.error:
            return dg.SkipReason(seen.error)
        cursor = _Cursor.read(context.cursor)
        plan = _plan(context.instance, modality, seen, existing, cursor, platform.settings.listing)
        problems = sorted(f"{source}: {problem}" for source, problem in list(seen.problems.items()))
        told = digest(*problems) if problems else ""
        if told != cursor.told:
            # Each tick that logs leaves a file behind, so that a standing problem is logged once.
            for problem in problems:
                context.log.warning(problem)
        kept = _Cursor(plan.waiting, told).written()
        summary = _summary(seen, plan)
        if not plan.requests and not plan.added and not plan.gone:
            context.update_cursor(kept)
            return dg.SkipReason("; ".join([summary, *problems[:MOST_TOLD]]))
        context.log.info(summary)
        return dg.SensorResult(
            run_requests=plan.requests,
            cursor=kept,
            dynamic_partitions_requests=[
                *(partitions.build_add_request(part) for part in most_at_once(plan.added)),
                *(partitions.build_delete_request(part) for part in most_at_once(plan.gone)),
            ],
        )

    return sensor


@dataclass(frozen=True)
class _Waiting:
    """A source that is not quiet: its state, since when it has been in it, and since when it has been waiting."""

    state: str
    seen: float
    since: float


@dataclass(frozen=True)
class _Cursor:
    """What a tick leaves to the next: the sources that wait, by a hash of their name, and a hash of the problems told.

    Everything else is compared anew in each tick, so that a lost cursor loses no more than some waiting.
    """

    waiting: Mapping[str, _Waiting] = field(default_factory=dict)
    told: str = ""

    @classmethod
    def read(cls, written: str | None) -> "_Cursor":
        """The cursor of the last tick; an empty one where there is none, or one of another shape."""
        try:
            kept = json.loads(written or "{}")
            waiting = {
                str(name): _Waiting(str(state), float(seen), float(since))
                for name, (state, seen, since) in kept.get("waiting", {}).items()
            }
            return cls(waiting, str(kept.get("told", "")))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def written(self) -> str:
        longest = sorted(self.waiting.items(), key=lambda item: item[1].since)[:MOST_REMEMBERED]
        waiting = {name: [one.state, int(one.seen), int(one.since)] for name, one in longest}
        return json.dumps({"waiting": waiting, "told": self.told}, separators=(",", ":"))


@dataclass(frozen=True)
class _Candidate:
    """A source that is to have a run, how urgently, and why."""

    source: str
    look: Look
    priority: int
    why: str


@dataclass
class _Plan:
    """What a tick asks for, and how many sources are in which case."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    cases: Counter[str] = field(default_factory=Counter)
    left_out: int = 0


def _plan(
    instance: dg.DagsterInstance,
    modality: str,
    seen: Round,
    existing: set[str],
    cursor: _Cursor,
    listing: ListingSettings,
) -> _Plan:
    now = time.time()
    going = under_way(instance, modality)
    stopped = stopped_lately(instance, modality, now - SECONDS_OF_MEMORY)
    looks, candidates = seen.take(), []
    plan = _Plan(waiting=_carried(cursor, looks, now))
    for source, look in sorted(looks.items()):
        is_new = source not in existing
        why, priority = _case(look, source in stopped, is_new)
        if is_new and look.sight.holds:
            plan.added.append(source)
        name = _short(source)
        waiting = _waiting(look, cursor.waiting.get(name), listing) if look.sight.differs else None
        if waiting is not None:
            plan.waiting[name] = waiting
            plan.cases["changing, left to be quiet"] += 1
            continue
        if why and source in going and going[source] >= priority:
            plan.cases["at work"] += 1
            continue
        # Of the others it is asked only when they may be chosen, since each question takes a while.
        last = last_run(instance, modality, source) if why and source in stopped else LastRun()
        if not why or (why == _FAILED and not last.failed):
            plan.cases["as listed"] += 1
            if not is_new and not look.sight.holds and source not in going:
                plan.gone.append(source)
        elif _is_too_early(last, look, now):
            plan.cases["failed or cancelled, left for later"] += 1
        else:
            plan.cases[why] += 1
            candidates.append(_Candidate(source, look, priority, why))
    queued = sum(1 for priority in going.values() if priority in (FRESH, REPAIR))
    room = max(0, MOST_RUNS_WAITING - queued)
    ordered = _longest_without_a_run_first(instance, modality, candidates) if len(candidates) > room else candidates
    plan.requests = [_request(one, last_run(instance, modality, one.source)) for one in ordered[:room]]
    plan.left_out = len(candidates) - len(plan.requests)
    # One that is never quiet has had its wait, though there was no room for it.
    left_out = (_short(one.source) for one in ordered[room:])
    plan.waiting |= {name: cursor.waiting[name] for name in left_out if name in cursor.waiting}
    plan.added += [one.source for one in ordered[:room] if one.source not in existing and one.source not in plan.added]
    return plan


def _case(look: Look, was_stopped: bool, is_new: bool) -> tuple[str, int]:
    """Why a source is to have a run, and with which priority; "" where there is nothing to do.

    One that was stopped lately may have failed, or been cancelled, or been made good since: `last_run` tells.
    """
    if look.sight.differs:
        return ("new" if is_new else "changed" if look.sight.holds else "vanished"), FRESH
    if look.is_left:
        return "vanished", FRESH
    if look.is_unplaced:
        return "not in a collection", REPAIR
    if was_stopped:
        return _FAILED, REPAIR
    return "", REPAIR


def _waiting(look: Look, before: _Waiting | None, listing: ListingSettings) -> _Waiting | None:
    """How a source that differs waits; None if it had been quiet, or had waited, for long enough when it was looked at.

    What has come since is not known, however long ago that look was. Where the file system does not tell when a
    file changed, or tells a time that is still to come, the source has to look the same for so long.
    """
    if not listing.quiet_seconds:
        return None
    state, now = look.sight.state, look.sight.looked_at
    # A time to come is one from before the clock was set back.
    since = before.since if before is not None and before.since <= now else now
    seen = before.seen if before is not None and before.state == state and before.seen <= now else now
    changed_at = look.sight.changed_at
    newest = seen if changed_at is None or changed_at > now else changed_at
    if now - newest >= listing.quiet_seconds or (before is not None and now - since >= listing.longest_wait_seconds):
        return None
    return _Waiting(state, seen, since)


def _carried(cursor: _Cursor, looks: Mapping[str, Look], now: float) -> dict[str, _Waiting]:
    """What is known of waiting sources that this tick does not look at, since a round may take several."""
    met = {_short(source) for source in looks}
    return {
        name: one
        for name, one in cursor.waiting.items()
        if name not in met and now - SECONDS_OF_MEMORY < one.since <= now
    }


def _short(source: str) -> str:
    return digest(source)[:12]


def _is_too_early(last: LastRun, look: Look, now: float) -> bool:
    """Whether the last run was stopped so lately, over the same media, that another would only repeat it.

    One that a person launched does not tell over which media: they count as changed where a file is younger.
    """
    if last.stopped_at is None:
        return False
    changed_at = look.sight.changed_at
    is_younger = changed_at is not None and changed_at > last.stopped_at
    if last.state != look.sight.state and (last.state or is_younger):
        return False
    wait = min(SECONDS_TO_RETRY * 2 ** (max(last.failures, 1) - 1), MOST_SECONDS_TO_RETRY)
    # What was stopped in the future was so before the clock was set back.
    return 0 <= now - last.stopped_at < wait


def _longest_without_a_run_first(
    instance: dg.DagsterInstance, modality: str, candidates: Sequence[_Candidate]
) -> list[_Candidate]:
    listed = last_materialized(instance, dg.AssetKey([modality, "files"]))
    return sorted(candidates, key=lambda one: (-one.priority, listed.get(one.source, 0), one.source))


def _request(candidate: _Candidate, last: LastRun) -> dg.RunRequest:
    """One request per difference and attempt: the listing it differs from, what is there now, the run before."""
    look = candidate.look
    key = digest(candidate.source, look.age, look.sight.state, last.run_id)
    tags = {STATE_TAG: look.sight.state, PRIORITY_TAG: str(candidate.priority)}
    changed_at = _changed_at(candidate, last)
    if changed_at:
        tags[CHANGED_TAG] = changed_at
    if candidate.priority < FRESH:
        tags[BACKGROUND_TAG] = candidate.why
    return dg.RunRequest(run_key=key, partition_key=candidate.source, tags=tags)


def _changed_at(candidate: _Candidate, last: LastRun) -> str:
    """When the media changed that a run is requested for, as its tag has it; "" where that cannot be told.

    What the last run failed over has been waited for since its change. A file that was moved here with its folder
    has the time at which it was written elsewhere, one that went away has none at all, and of a clock that
    differs from ours a time may be still to come.
    """
    sight = candidate.look.sight
    if last.stopped_at is not None and last.state == sight.state:
        return last.changed_at
    if candidate.priority < FRESH or sight.changed_at is None:
        return ""
    earliest = max(sight.other_at or 0.0, sight.looked_at - MOST_SECONDS_UNNOTICED)
    return f"{sight.changed_at:.3f}" if earliest <= sight.changed_at <= sight.looked_at else ""


def _summary(seen: Round, plan: _Plan) -> str:
    parts: Iterable[str] = (f"{count} {case}" for case, count in sorted(plan.cases.items()))
    counted = ", ".join([*parts, *([f"{len(seen.problems)} not to be read"] if seen.problems else [])])
    told = [
        f"{len(seen.looks) + len(seen.problems)} of {seen.sources} sources looked at: {counted or 'nothing to tell'}"
    ]
    if seen.is_under_way:
        told.append(f"still looking, now at {seen.at}, for {time.monotonic() - seen.started:.0f} s")
    if plan.requests or plan.left_out:
        told.append(f"{len(plan.requests)} runs requested, {plan.left_out} left to later ticks")
    if plan.gone:
        told.append(f"{len(plan.gone)} gone altogether")
    return "; ".join(told)
