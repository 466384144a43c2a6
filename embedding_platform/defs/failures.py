"""Failed runs in one line each: of which source, at which asset, why, and what mends it."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from embedding_platform.alerts import post
from embedding_platform.defs.resources import PlatformResource
from embedding_platform.defs.runs_of_sources import PARTITION_TAG
from embedding_platform.errors import PlatformError

WILL_RETRY_TAG = "dagster/will_retry"

_BLOCKED = "DagsterAssetCheckFailedError"

_UNEXPLAINED = "marked as failed from outside"

_SEE_RUN = "see the run's page, and run again"


@dataclass(frozen=True)
class Failure:
    """Why a run failed. `asset` is the asset at which it did, "" where it ended between two."""

    run_id: str
    job: str
    source: str
    asset: str
    reason: str
    mend: str
    is_retried: bool

    @property
    def line(self) -> str:
        """All of it in one line, whatever names of folders and reasons hold."""
        place = " ".join(part for part in (f"source {self.source}" if self.source else "", self.asset) if part)
        where = place or "before its first step"
        told = f"run {self.run_id[:8]} of {self.job} failed: {where}: {self.reason}; {self.mend}"
        return " ".join(told.split())


def failure_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Failure:
    """What the run's events tell of its failure."""
    asset, reason, mend = next(_reasons(instance, run), ("", "", ""))
    is_retried = run.tags.get(WILL_RETRY_TAG) == "true"
    if not reason:
        asset, reason = _end(instance, run)
        mend = _SEE_RUN
    if run.status == dg.DagsterRunStatus.CANCELED:
        reason, mend = "it was cancelled", "nothing is lost: the next run goes on where it stood"
    if is_retried:
        mend = "nothing to do: it is started again from this step"
    return Failure(
        run_id=run.run_id,
        job=run.job_name,
        source=run.tags.get(PARTITION_TAG, ""),
        asset=asset,
        reason=reason,
        mend=mend,
        is_retried=is_retried,
    )


def reason_of(event: dg.DagsterEvent) -> str:
    """Why a step failed; "" for a blocking check, which speaks for itself."""
    failure = event.step_failure_data
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return failure.user_failure_data.description
    if failure.error is None or failure.error.cls_name == _BLOCKED:
        return ""
    return " ".join((failure.error.cause or failure.error).message.split())


def has_blocked(check: dg.AssetCheckEvaluation) -> bool:
    """Whether a check stopped what comes after its asset."""
    return bool(not check.passed and check.blocking and check.severity == dg.AssetCheckSeverity.ERROR)


def failure_sensor() -> dg.SensorDefinition:
    """The sensor that tells of each failed run in the log, and to the webhook where the settings name one.

    The webhook hears of those only that are not started again by themselves. One that does not
    answer costs a warning, and the line stays in the log.
    """

    @dg.run_failure_sensor(
        name="run_failures",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of each failed run in one line: source, asset, reason, mend.",
    )
    def sensor(context: dg.RunFailureSensorContext, platform: PlatformResource) -> None:
        failure = failure_of(context.instance, context.dagster_run)
        context.log.error(failure.line)
        alerts = platform.settings.alerts
        webhook = alerts.webhook.get_secret_value()
        if not webhook or failure.is_retried:
            return
        content = {
            "text": failure.line,
            "run_id": failure.run_id,
            "job": failure.job,
            "source": failure.source,
            "asset": failure.asset,
            "reason": failure.reason,
            "mend": failure.mend,
        }
        try:
            post(webhook, content, alerts.timeout_seconds)
        except PlatformError as error:
            context.log.warning(str(error))

    return sensor


def _reasons(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[tuple[str, str, str]]:
    """Asset, reason and mend of each failed step, or of the check that blocked it."""
    for record in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = record.dagster_event
        if event is None:
            continue
        asset = (event.step_key or "").replace("__", "/")
        said = reason_of(event)
        if event.step_failure_data.user_failure_data is not None and said:
            reason, _, mend = said.rpartition("; ")
            yield (asset, reason, mend) if reason else (asset, mend, _SEE_RUN)
        elif said:
            yield asset, said, "this is a fault of the platform or the machine; " + _SEE_RUN
        elif event.step_failure_data.error is not None:
            yield from _blocked(instance, run, asset)


def _blocked(instance: dg.DagsterInstance, run: dg.DagsterRun, asset: str) -> Iterator[tuple[str, str, str]]:
    for record in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        event = record.dagster_event
        if event is None:
            continue
        check = event.asset_check_evaluation_data
        if has_blocked(check):
            place = check.asset_key.to_user_string()
            yield (
                place,
                f"check {check.check_name} failed: {check.description}",
                f"see its page, mend what {place} shows",
            )
            return
    yield asset, "a blocking check failed", _SEE_RUN


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[str, str]:
    """The asset that was at work when a run ended without a failed step, and what Dagster says of that end.

    The process of such a run was killed, or never began.
    """
    at_work, said, reason = "", "", ""
    for record in instance.all_logs(run.run_id):
        event = record.dagster_event
        if event is None:
            continue
        if event.event_type == dg.DagsterEventType.STEP_START:
            at_work = (event.step_key or "").replace("__", "/")
        elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            at_work = ""
        elif event.event_type == dg.DagsterEventType.ENGINE_EVENT and not reason:
            said = event.message or said
        elif event.event_type == dg.DagsterEventType.RUN_FAILURE:
            # Where the code server noticed, it said why just before.
            reason = said if _UNEXPLAINED in (event.message or "") else event.message or said
    return at_work, " ".join(reason.split()) or "it ended without a word"
