"""Asset checks as they are specified: what each holds, whether a failure stops a run, and what to do then.

The verdicts are passed in `checks`. docs/metadata.md explains each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg


@dataclass(frozen=True)
class Check:
    """A check of one kind of asset: whether a failure stops what comes after, what it holds, and what to do if not."""

    name: str
    blocking: bool
    holds: str
    mend: str


_REJECTS = Check(
    "rejects",
    True,
    "Few enough items were rejected. Any reject is a warning; too large a share blocks.",
    "See the list with `embedding-platform rejects`; mend or remove the files, raise the limit that a reason "
    "names, or raise `quality.max_rejected_share`.",
)
_GOLDEN = Check(
    "golden",
    True,
    "The model gives the vectors of fixed inputs that it gave when it made its first.",
    "Go back to the library, runtime or device that the failure names, or set a higher number in `generations`, "
    "which embeds the space anew.",
)
_STORED_FAULT = "Remove the shards of this source, which the materialization names, and run again."
_FAULT = (
    f"Look at the files that were left out, and at precision and device. Where stored vectors offend: {_STORED_FAULT}"
)

CHECKS: Mapping[str, tuple[Check, ...]] = {
    "files": (_REJECTS,),
    "segments": (_REJECTS,),
    "embeddings": (
        Check("dimension", True, "Every vector has the space's dimension.", _FAULT),
        Check("finite", True, "Every value of every vector is finite.", _FAULT),
        Check("zero", True, "No vector is zero.", _FAULT),
        Check("norm", True, "Every norm lies in the space's band.", _FAULT),
        Check(
            "collapse",
            True,
            "Different contents have different vectors: not all pairs have a cosine near one.",
            "Suspect the model's files, its precision or its device; where the media are that much alike, lower "
            "`quality.min_cosine_distance`.",
        ),
        Check(
            "count",
            True,
            "Every live segment has a vector or a recorded rejection.",
            "Materialize embeddings of this source again, which does what is missing.",
        ),
        _REJECTS,
        Check(
            "duplicates",
            False,
            "Not many more segments share their content with another than when the checks last passed; in a source "
            "without a history, few do.",
            "Remove copies from the source; where they are meant to be there, accept it with `embedding-platform "
            "accept SPACE --source NAME`. Each content is embedded once.",
        ),
        Check(
            "distribution",
            False,
            "Centre, spread and mean norm of the vectors are as when the checks last passed, as far as is usual for "
            "this source; those of a new source as far from its space's other sources as they are from each other. "
            "The vectors that came since, by themselves, are neither almost one nor outside of where almost all lay.",
            "Look at the files that are named: where the media are meant to be that different, accept it with "
            "`embedding-platform accept SPACE --source NAME`; where not, put the media right, or see what changed in "
            "decoder and model.",
        ),
        _GOLDEN,
    ),
    "collection": (
        Check(
            "rows",
            True,
            "Milvus holds exactly the desired rows, read back at Strong consistency.",
            "See that nobody else writes to the collection, then materialize it again.",
        ),
        Check(
            "index",
            True,
            "The index that the settings ask for is built and loaded, and rows just written are found through it.",
            "See the log and the load of Milvus, choose an index type that it has, or raise "
            "`milvus.searchable_seconds`; where copies of one vector hide other rows, choose IVF_FLAT or FLAT. Then "
            "materialize again.",
        ),
        Check(
            "recall",
            True,
            "Recall@10 and recall@100 of the index against exact search reach their floors.",
            "Run `embedding-platform tune` for the space, which finds search parameters that suffice; or build the "
            "index with more effort (`indexes`), or lower the floors (`quality.min_recall`).",
        ),
        Check(
            "tampering",
            False,
            "Nobody else dropped, altered or added rows; where somebody did, they are put right.",
            "Nothing is left to do here; find out who else writes to this Milvus, and let them have a user without "
            "that right. `embedding-platform trace ID` tells what a row is of.",
        ),
    ),
    "published": (
        Check(
            "gate",
            False,
            "Every source is complete and sound in the collection that the alias is to name.",
            "Run the sources that are named: `embedding-platform run --source NAME`. After a rollback nothing is to be "
            "run: `embedding-platform publish SPACE` takes it back.",
        ),
        Check(
            "alias",
            False,
            "Readers search the collection of the present model: the alias points there.",
            "See the check `gate` for what it waits for; after a rollback, `embedding-platform publish`.",
        ),
        _GOLDEN,
        Check(
            "freshness",
            False,
            "Every source was listed not long ago, so that new media are not missed.",
            "See that the daemon runs and the schedules are on, and why the last runs of the sources that are named "
            "failed; then `embedding-platform run --source NAME`.",
        ),
    ),
    "probe": (
        Check(
            "probe_recall",
            False,
            "Searches through the alias find what exact search over the stored vectors finds.",
            "Run `embedding-platform tune` for the space, which finds search parameters that suffice; where rows are "
            "missing, `embedding-platform run --source NAME` puts them back.",
        ),
        Check(
            "probe_freshness",
            False,
            "No listed source has been missing from the collection for over `alerts.stale_seconds`.",
            "See the last runs of the sources that are named, and that the daemon runs and the sensors are on; then "
            "`embedding-platform run --source NAME`.",
        ),
        Check(
            "failed_sources",
            False,
            "No source's last run failed at an asset of this space, or upstream of it, however long ago.",
            "Do what the mend of each failure says, then `embedding-platform run --source NAME`.",
        ),
    ),
}
"""The checks by the last part of an asset's key, and those of the probe of what is published."""


def specs(asset: dg.AssetKey, partitions: dg.PartitionsDefinition | None, stage: str = "") -> list[dg.AssetCheckSpec]:
    """The check specifications of the asset, by the last part of its key, or those of another `stage`."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=asset,
            blocking=check.blocking,
            description=f"{check.holds}\n\nIf not: {check.mend}",
            partitions_def=partitions,
        )
        for check in CHECKS[stage or asset.path[-1]]
    ]
