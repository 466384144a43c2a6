"""Schedules: every night each source of every modality is reconciled, whatever the sensors saw."""

from collections.abc import Iterator

import dagster as dg

from embedding_platform.defs.jobs import job_name
from embedding_platform.defs.partitions import set_name


def nightly_schedule(modality: str, cron: str) -> dg.ScheduleDefinition:
    """Runs of the modality's job for all its sources at `cron`; where nothing differs, they do nothing."""

    @dg.schedule(
        name=f"{modality}_nightly",
        job_name=job_name(modality),
        cron_schedule=cron,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Reconciles every {modality} source, also with what changed inside Milvus.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        sources = sorted(context.instance.get_dynamic_partitions(set_name(modality)))
        if not sources:
            yield dg.SkipReason(f"no {modality} sources yet")
        for source in sources:
            yield dg.RunRequest(
                run_key=f"{context.scheduled_execution_time.isoformat()}/{source}", partition_key=source
            )

    return schedule
