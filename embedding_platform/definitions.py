"""What Dagster loads: the asset graph, checks, jobs, sensors and schedules of one platform."""

import warnings

import dagster as dg

from embedding_platform.defs.assets import modality_assets
from embedding_platform.defs.failures import failure_sensor
from embedding_platform.defs.jobs import maintenance_job, modality_job, probe_job
from embedding_platform.defs.pool_waits import wait_asleep
from embedding_platform.defs.schedules import schedules_of
from embedding_platform.defs.sensors import media_sensor
from embedding_platform.defs.upkeep import space_probes, upkeep_assets
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings
from embedding_platform.spaces import MODALITIES

# Partitioned asset checks are in preview; the minor version of dagster is pinned for them.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

wait_asleep()


def build_definitions(platform: Platform) -> dg.Definitions:
    """All that Dagster knows of a platform. Pure: nothing but the settings decides it."""
    modalities = [MODALITIES[name] for name in platform.modalities]
    settings = platform.settings
    upkeep = upkeep_assets(settings.owners)
    probes = {space.key: space_probes(space) for space in platform.spaces}
    return dg.Definitions(
        assets=[
            *(
                asset
                for modality in modalities
                for asset in modality_assets(
                    modality,
                    [
                        (space, platform.fingerprint(space))
                        for space in platform.spaces
                        if space.modality == modality.name
                    ],
                    platform.cutting,
                    settings,
                )
            ),
            *upkeep,
        ],
        asset_checks=list(probes.values()),
        jobs=[
            *(
                modality_job(
                    modality.name,
                    [probes[space.key] for space in platform.spaces if space.modality == modality.name],
                )
                for modality in modalities
            ),
            probe_job(list(probes.values())),
            maintenance_job(upkeep),
        ],
        sensors=[
            *(media_sensor(modality.name, settings.sensor_seconds) for modality in modalities),
            failure_sensor(),
        ],
        schedules=schedules_of(settings),
        resources={"platform": platform},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The platform of the settings in force where Dagster was started."""
    return build_definitions(Platform(load_settings()))
