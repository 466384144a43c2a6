"""Jobs: one per modality, over its whole chain, and two of upkeep.

Sensors, schedules and the command line bring sources on by the first alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from embedding_platform.defs.partitions import sources_of

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

PRIORITY_TAG = "dagster/priority"
"""Runs of a higher one leave the queue first; what people start in the web UI, backfills among it, has 0."""

FRESH, REPAIR, NIGHTLY = 10, 5, -10
"""Priorities of runs for media that came or changed; for what a collection lacks; and for the nightly round."""

BACKGROUND_TAG = "embedding_platform/background"
"""Tag of runs that may wait. dagster.yaml limits how many of them go on at once."""

PROBE = "probe"
MAINTENANCE = "maintenance"


def job_name(modality: str) -> str:
    """Name of the job that takes one source of the modality from files to the published alias."""
    return f"{modality}_sync"


def modality_job(modality: str, probes: Sequence[dg.AssetChecksDefinition] = ()) -> "UnresolvedAssetJobDefinition":
    """The job of one modality; a run of it handles one source. The `probes` are left to their own job.

    Steps run in the run's own process: one model load serves all, and a killed run leaves no
    orphan behind. Parallelism is concurrent runs.
    """
    chain = dg.AssetSelection.groups(modality)
    return dg.define_asset_job(
        job_name(modality),
        selection=chain - dg.AssetSelection.checks(*probes) if probes else chain,
        partitions_def=sources_of(modality),
        executor_def=dg.in_process_executor,
        tags={"modality": modality},
        description=f"Bring one {modality} source from files to published collections.",
    )


def probe_job(probes: Sequence[dg.AssetChecksDefinition]) -> "UnresolvedAssetJobDefinition":
    """The job that looks at what readers get, and changes nothing."""
    return dg.define_asset_job(
        PROBE,
        selection=dg.AssetSelection.checks(*probes),
        executor_def=dg.in_process_executor,
        description="Search what is published, see how fresh it is, and name the sources whose last run failed.",
    )


def maintenance_job(assets: Sequence[dg.AssetsDefinition]) -> "UnresolvedAssetJobDefinition":
    """The job that tidies the store, and reports what a person may prune."""
    return dg.define_asset_job(
        MAINTENANCE,
        selection=dg.AssetSelection.assets(*assets),
        executor_def=dg.in_process_executor,
        description="Join small files of the store, and report what `embedding-platform prune` would remove.",
    )
