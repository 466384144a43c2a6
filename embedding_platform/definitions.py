"""What Dagster loads: the asset graph, checks, jobs, sensors and schedules of one platform."""

import warnings

import dagster as dg

from embedding_platform.defs.assets import modality_assets
from embedding_platform.defs.jobs import modality_job
from embedding_platform.defs.schedules import nightly_schedule
from embedding_platform.defs.sensors import media_sensor
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings
from embedding_platform.spaces import MODALITIES

# Partitioned asset checks are in preview; the minor version of dagster is pinned for them.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def build_definitions(platform: Platform) -> dg.Definitions:
    """All that Dagster knows of a platform. Pure: nothing but the settings decides it."""
    modalities = [MODALITIES[name] for name in platform.modalities]
    return dg.Definitions(
        assets=[
            asset
            for modality in modalities
            for asset in modality_assets(
                modality,
                [(space, platform.fingerprint(space)) for space in platform.spaces if space.modality == modality.name],
                platform.cutting,
                platform.settings,
            )
        ],
        jobs=[modality_job(modality.name) for modality in modalities],
        sensors=[media_sensor(modality.name, platform.settings.sensor_seconds) for modality in modalities],
        schedules=[nightly_schedule(modality.name, platform.settings.nightly) for modality in modalities],
        resources={"platform": platform},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The platform of the settings in force where Dagster was started."""
    return build_definitions(Platform(load_settings()))
