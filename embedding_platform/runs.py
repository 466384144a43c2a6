"""Runs without the web UI: the same jobs, on the same instance, in this process."""

import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from embedding_platform.buckets import among, is_superseded
from embedding_platform.definitions import build_definitions
from embedding_platform.defs.failures import has_blocked, reason_of
from embedding_platform.defs.jobs import job_name
from embedding_platform.defs.partitions import set_name
from embedding_platform.errors import PlatformError
from embedding_platform.launcher import process_is_gone, process_tags
from embedding_platform.platform import Platform, refuse_unknown
from embedding_platform.reconcile.files import is_listed
from embedding_platform.settings import without_password

_POST_PROCESSING = "dagster._config.errors.PostProcessingError: "

_MOST_PASSES = 3
"""Passes over sources that others supersede: with one to spare beyond a migration in the middle of the first."""

_NO_MEDIA = "nothing, since the media root is empty"


@dataclass(frozen=True)
class SourceRun:
    """One run of a modality's job on one source, and the metadata of each asset by its key."""

    modality: str
    source: str
    run_id: str
    succeeded: bool
    failures: tuple[str, ...]
    metadata: dict[str, dict[str, object]] = field(default_factory=dict)

    def of(self, stage: str, name: str) -> int:
        """A counter of one stage ("files", "embeddings"), summed over the run's spaces."""
        values = [metadata.get(name, 0) for asset, metadata in self.metadata.items() if asset.endswith(f"/{stage}")]
        return sum(value for value in values if isinstance(value, int))

    @property
    def did_nothing(self) -> bool:
        """Whether nothing was cut, embedded, written, deleted, indexed or published."""
        cut = self.of("segments", "new") + self.of("segments", "stale") + self.of("segments", "orphaned")
        written = sum(self.of("collection", how) for how in ("imported", "upserted", "deleted"))
        embedded = self.of("embeddings", "embedded") + self.of("embeddings", "reused")
        removed = self.of("published", "partitions_removed") + self.of("published", "rows_removed")
        built, moved = self.of("collection", "index_built"), self.of("published", "moved")
        return not (cut or embedded or written or removed or built or moved)


def home() -> str:
    """The folder whose dagster.yaml counts: DAGSTER_HOME, or else this folder, as `dagster dev` takes it.

    Raises:
        PlatformError: if there is neither.
    """
    if named := os.environ.get("DAGSTER_HOME"):
        if not os.path.isdir(named):
            raise PlatformError(f"DAGSTER_HOME {named} is no folder; make it, or unset the variable")
        if not os.path.isabs(named):
            raise PlatformError(f"DAGSTER_HOME {named} is no absolute path; write {os.path.abspath(named)}")
        return named
    if not Path("dagster.yaml").is_file():
        raise PlatformError("no dagster.yaml in this folder; change to the project's folder or set DAGSTER_HOME")
    return os.getcwd()


@contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of `home`.

    Raises:
        PlatformError: if there is none, its dagster.yaml is wrong, or its storage cannot be reached.
    """
    folder = home()
    try:
        opened = dg.DagsterInstance.from_config(folder)
    except Exception as error:
        # Dagster, its storages and their drivers each have errors of their own.
        cause = _root_cause(error)
        mend = "correct it there"
        if isinstance(cause, ModuleNotFoundError):
            mend = "for PostgreSQL run pip install -e '.[postgres]', and begin its URL with postgresql+psycopg2://"
        raise PlatformError(
            f"Dagster cannot open what {folder}/dagster.yaml names: {_explanation(cause)}; {mend}"
        ) from error
    with opened:
        yield opened


def run_sources(
    platform: Platform,
    dagster: dg.DagsterInstance,
    modalities: Sequence[str] = (),
    sources: Sequence[str] = (),
    starting: Callable[[str, str], None] = lambda modality, source: None,
) -> Iterator[SourceRun]:
    """Run each modality's job for each of its sources, one after the other, and yield what came of it.

    Sources that appeared get their Dagster partition first; those that vanished lose it after
    the run that emptied them. A run that fails does not stop the others.

    Raises:
        PlatformError: if a modality or source that was asked for is not there.
    """
    found = expected_sources(platform, dagster, sources)
    refuse_unknown(modalities, list(found), _NO_MEDIA)
    if not all(among({source for names in found.values() for source in names}, [asked]) for asked in sources):
        everything = expected_sources(platform, dagster)
        there = sorted({source for names in everything.values() for source in names})
        refuse_unknown(sources, there, _NO_MEDIA)
    fail_dead_runs(dagster)
    definitions = build_definitions(platform)
    for modality in modalities or platform.modalities:
        job = definitions.resolve_job_def(job_name(modality))
        partitions = set_name(modality)
        succeeded: set[str] = set()
        for source in twice_where_needed(platform, modality, found[modality], succeeded):
            dagster.add_dynamic_partitions(partitions, [source])
            starting(modality, source)
            result = job.execute_in_process(
                instance=dagster,
                partition_key=source,
                raise_on_error=False,
                tags=process_tags(),
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            if _was_interrupted(result):
                raise KeyboardInterrupt
            if result.success:
                succeeded.add(source)
            yield _source_run(modality, source, result)
            if result.success and platform.is_gone(modality, source):
                dagster.delete_dynamic_partition(partitions, source)


def twice_where_needed(platform: Platform, modality: str, sources: Sequence[str], succeeded: Set[str]) -> Iterator[str]:
    """The sources, and once more those that a later one made a migration for: one too many for named partitions.

    Those that are superseded come last, since their rows stay until others have the files. `succeeded` is asked after
    each pass: a run that failed would only fail again.
    """
    counts = platform.settings.listing.buckets
    superseded = [source for source in sources if is_superseded(source, counts)]
    yield from (source for source in sources if source not in superseded)
    yield from sorted(platform.unplaced(modality) & succeeded)
    # With the sources their number may change the collection, where others have to follow before the rest can go.
    for _ in range(_MOST_PASSES if superseded else 0):
        yield from superseded
        yield from sorted((platform.unplaced(modality) & succeeded).difference(superseded))
        left = [source for source in superseded if source in succeeded and is_listed(platform.store, modality, source)]
        unplaced = platform.unplaced(modality, left)
        superseded = [
            source for source in left if source in unplaced or not platform.awaits_successors(modality, source)
        ]


def fail_dead_runs(dagster: dg.DagsterInstance) -> None:
    """Mark runs of the command line failed whose process died, and free the places that they hold in pools.

    Run monitoring does so too, but only where the daemon runs; without it the next run would
    wait for such a place for ever.
    """
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in dagster.get_runs(filters=started):
        if process_is_gone(run):
            dagster.report_run_failed(run, "the run's process is gone")
    # Asked of the pools, since this process too may die between the two.
    pools = dagster.event_log_storage
    for run_id in pools.get_concurrency_run_ids():
        holder = dagster.get_run_by_id(run_id)
        if holder is None or holder.is_finished:
            pools.free_concurrency_slots_for_run(run_id)


def expected_sources(platform: Platform, dagster: dg.DagsterInstance, only: Sequence[str] = ()) -> dict[str, list[str]]:
    """Sources by modality: on disk, listed last, or still a Dagster partition since a run did not finish with them."""
    expected: dict[str, list[str]] = {}
    for modality, names in platform.sources(only).items():
        known = partitions_of(dagster, modality)
        expected[modality] = sorted({*names, *among(known, only or known)})
    return expected


def partitions_of(dagster: dg.DagsterInstance, modality: str) -> Sequence[str]:
    """The sources that are Dagster partitions of a modality now."""
    return dagster.get_dynamic_partitions(set_name(modality))


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether somebody pressed Ctrl-C, which Dagster turns into a failed step."""
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    return any(error is not None and error.cls_name == "DagsterExecutionInterruptedError" for error in errors)


def _source_run(modality: str, source: str, result: dg.ExecuteInProcessResult) -> SourceRun:
    blocking = [check for check in result.get_asset_check_evaluations() if has_blocked(check)]
    blocked = [
        f"{check.asset_key.to_user_string()}: check {check.check_name} failed: {check.description or 'see the web UI'}"
        for check in blocking
    ]
    # What a check tells needs no second line.
    told = tuple(check.description for check in blocking if check.description)
    reasons = ((event.step_key, reason_of(event)) for event in result.get_step_failure_events())
    failed = [f"{step}: {reason}" for step, reason in reasons if reason and not reason.endswith(told)]
    return SourceRun(
        modality=modality,
        source=source,
        run_id=result.run_id,
        succeeded=result.success,
        failures=(*blocked, *failed),
        metadata={
            event.materialization.asset_key.to_user_string(): {
                name: value.value for name, value in event.materialization.metadata.items()
            }
            for event in result.get_asset_materialization_events()
        },
    )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _explanation(error: BaseException) -> str:
    """What an error says, in one line: without Dagster's stack traces and grammars, and without passwords."""
    faults = error.errors if isinstance(error, dg.DagsterInvalidConfigError) else ()
    said = [fault.message for fault in faults] or [str(error)]
    short = [re.split(r"Stack Trace:|\. Expected:", one)[0].replace(_POST_PROCESSING, "") for one in said]
    # Before it is cut: half a URL does not show that it holds a password.
    return without_password(" ".join("; ".join(short).split()))[:400]
