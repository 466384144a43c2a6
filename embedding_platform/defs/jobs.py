"""Jobs: one per modality, over its whole chain. Sensors, schedules and the command line run nothing else."""

from typing import TYPE_CHECKING

import dagster as dg

from embedding_platform.defs.partitions import sources_of

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def job_name(modality: str) -> str:
    """Name of the job that takes one source of the modality from files to the published alias."""
    return f"{modality}_sync"


def modality_job(modality: str) -> "UnresolvedAssetJobDefinition":
    """The job of one modality; a run of it handles one source.

    Steps run in the run's own process: one model load serves all, and a killed run leaves no
    orphan behind. Parallelism is concurrent runs.
    """
    return dg.define_asset_job(
        job_name(modality),
        selection=dg.AssetSelection.groups(modality),
        partitions_def=sources_of(modality),
        executor_def=dg.in_process_executor,
        tags={"modality": modality},
        description=f"Bring one {modality} source from files to published collections.",
    )
