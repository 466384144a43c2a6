"""How things look in a terminal: progress bars, tables, hits."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from embedding_platform.lineage import FileTrace, RowTrace
from embedding_platform.milvus.index import keep_search
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import listed_sources
from embedding_platform.reconcile.pending import Pending
from embedding_platform.reconcile.pruning import Prunable
from embedding_platform.reconcile.publication import PublicationReport
from embedding_platform.reconcile.rejects import Rejected
from embedding_platform.reconcile.tuning import cheapest, sweep
from embedding_platform.runs import SourceRun, expected_sources, instance, run_sources
from embedding_platform.search import Hit
from embedding_platform.spaces import Space

CONSOLE = Console(width=None if sys.stdout.isatty() else 120)
MOST_TEXT = 160
MOST_PATHS = 10
"""Paths shown of those that were rejected for one reason."""
MOST_WAITING = 20
"""Sources shown that an alias waits for."""


class RateColumn(ProgressColumn):
    """What a task does in a second, once that is known."""

    def render(self, task: Task) -> Text:
        """The task's rate."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class RunProgress:
    """A bar over sources, and one below it for the stage at work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._sources = progress.add_task("sources", total=None)
        self._stage = progress.add_task("", total=None, visible=False)
        self._at_work = ("", "")

    def expect(self, sources: int) -> None:
        """Tell how many sources there will be in all."""
        self._progress.update(self._sources, total=sources)

    def starting(self, modality: str, source: str) -> None:
        """Tell which source is next."""
        self._progress.update(self._sources, description=f"{modality} {escape(source)}")

    def watch(self, asset: str, source: str, done: int, total: int) -> None:
        """Tell how far the stage at work is; what `Platform.watch` calls."""
        if (asset, source) != self._at_work:
            self._at_work = (asset, source)
            # A rate and a rest of time belong to one stage.
            self._progress.reset(self._stage)
        self._progress.update(self._stage, description=asset, completed=done, total=total, visible=done < total)

    def finished(self) -> None:
        """Tell that a source is done."""
        self._progress.advance(self._sources)
        self._progress.update(self._stage, visible=False)


@contextmanager
def run_progress() -> Iterator[RunProgress]:
    """Show the progress of a headless run while the block lasts."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE, transient=True) as progress:
        yield RunProgress(progress)


def run_with_progress(
    platform: Platform, modalities: Sequence[str] = (), sources: Sequence[str] = ()
) -> list[SourceRun]:
    """Run sources with a progress bar, and print what was done; "nothing to do" if nothing was."""
    with instance() as dagster, run_progress() as bars:
        watched = Platform(platform.settings, watch=bars.watch)
        expected = expected_sources(watched, dagster, sources)
        bars.expect(sum(len(names) for modality, names in expected.items() if not modalities or modality in modalities))
        runs = []
        for run in run_sources(watched, dagster, modalities, sources, starting=bars.starting):
            bars.finished()
            runs.append(run)
    if all(run.did_nothing and run.succeeded for run in runs):
        files = sum(run.of("files", "dagster/partition_row_count") for run in runs)
        CONSOLE.print(f"nothing to do: {files} files are as indexed; nothing embedded, nothing written")
    else:
        print_runs(runs)
    return runs


def print_runs(runs: Sequence[SourceRun]) -> None:
    """One line for each run: what it listed, cut, embedded and wrote, and what it rejected."""
    table = _table("source", "files", "cut", "embedded", "reused", "written", "deleted", "rejected")
    for run in runs:
        rejected = [run.of(stage, "rejected") for stage in ("files", "segments", "embeddings")]
        table.add_row(
            escape(f"{run.modality} {run.source}"),
            str(run.of("files", "dagster/partition_row_count")),
            str(run.of("segments", "new") + run.of("segments", "stale")),
            str(run.of("embeddings", "embedded")),
            str(run.of("embeddings", "reused")),
            str(run.of("collection", "imported") + run.of("collection", "upserted")),
            str(run.of("collection", "deleted")),
            str(sum(rejected)),
            style="" if run.succeeded else "red",
        )
    CONSOLE.print(table)
    for run in runs:
        for failure in run.failures:
            CONSOLE.print(f"[red]{run.modality} {escape(run.source)}:[/] {escape(failure)}", soft_wrap=True)


def print_spaces(rows: Sequence[Sequence[str]]) -> None:
    """The table of published spaces."""
    table = _table("space", "segments", "vectors", "dim", "parts", "recall@10", "index", "published as")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def print_hits(title: str, hits: Sequence[Hit]) -> None:
    """Hits of one space, best first."""
    CONSOLE.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    if not hits:
        CONSOLE.print("  nothing found")
    for place, hit in enumerate(hits, 1):
        where = f"  {hit.where}" if hit.where else ""
        CONSOLE.print(f"  {place}. {hit.score:.3f}  {escape(f'{hit.source}/{hit.path}')}{where}", soft_wrap=True)
        if hit.text:
            CONSOLE.print(f"     [dim]{escape(_shortened(hit.text))}[/]", soft_wrap=True)
        CONSOLE.print(f"     [dim]id {hit.id}  run {hit.run_id[:8]}  model {escape(hit.model)}[/]", soft_wrap=True)


def print_pending(rows: Sequence[Pending]) -> None:
    """The increment of each asset and source."""
    table = _table("asset", "source", "new", "stale", "orphaned", "unchanged")
    for row in rows:
        table.add_row(row.asset, escape(row.source), *map(str, row.increment.counts().values()))
    CONSOLE.print(table)
    CONSOLE.print("run `embedding-platform run` to do it" if any(map(_is_due, rows)) else "nothing to do")


def _table(*columns: str) -> Table:
    """A table without walls, so that it fits into 80 columns; words left, numbers right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    wide = ("asset", "source", columns[-1])
    for name in columns:
        words = name in ("asset", "source", "space", "index", "published as", "search", "kind", "reason", "name")
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=name not in wide)
    return table


def _is_due(row: Pending) -> bool:
    """Whether a run would do something; vectors of contents that are gone are kept."""
    increment = row.increment
    kept = row.asset.endswith("/embeddings")
    return bool(len(increment.new) or len(increment.stale) or (len(increment.orphaned) and not kept))


def print_rows(traces: Sequence[RowTrace], as_json: bool = False) -> None:
    """Rows, each back to its file, model and run; or all of it as JSON."""
    if as_json:
        _print_json(traces)
        return
    for trace in traces:
        made, file = trace.provenance, trace.file
        lines = {
            "row": trace.id,
            "space": trace.space,
            "collection": f"{trace.collection}, searched as {trace.alias}",
            "source": f"{trace.source}{f', partition {trace.partition}' if trace.partition else ''}",
            "segment": f"{trace.role} {trace.where}".strip(),
            "text": _shortened(trace.text),
            "content hash": trace.content_hash,
            "file": trace.uri,
            "file hash": file.content_hash if file else "the file is no longer listed",
            "media type": file.media_type if file else "",
            "model": f"{made.model}{f' at {made.revision}' if made.revision else ''}",
            "fingerprint": trace.fingerprint,
            "vector in": trace.shard or "no shard any more",
            "embedded": f"{trace.embedded_at} in run {trace.run_id}",
            "run page": trace.run_page,
        }
        for name, value in lines.items():
            if value:
                CONSOLE.print(f"{name:>13}  {escape(value)}", soft_wrap=True)


def print_files(traces: Sequence[FileTrace], as_json: bool = False) -> None:
    """A file as each modality lists it, with its rows in all spaces and what it lacks; or all of it as JSON."""
    if as_json:
        _print_json(traces)
        return
    for trace in traces:
        file = trace.file
        CONSOLE.print(
            f"[bold]{escape(f'{trace.source}/{file.path}')}[/]: {trace.modality}, {escape(file.media_type)}; "
            f"rows: {len(trace.rows)}, without a row: {len(trace.without_row)}, rejected: {len(trace.rejected)}",
            soft_wrap=True,
        )
        CONSOLE.print(f"  file hash {file.content_hash}", soft_wrap=True)
        for row in trace.rows:
            CONSOLE.print(f"  {escape(f'{row.space}  {row.role} {row.where}'.rstrip())}", soft_wrap=True)
            CONSOLE.print(f"     [dim]id {row.id}  content {row.content_hash}  run {row.run_id}[/]", soft_wrap=True)
        for segment in trace.without_row:
            place = f"{segment.space}  {segment.role} {segment.where}".rstrip()
            CONSOLE.print(f"  {escape(place)}  [red]no row[/]: {escape(segment.reason)}", soft_wrap=True)
            CONSOLE.print(f"     [dim]id {segment.id}  content {segment.content_hash}[/]", soft_wrap=True)
        for one in trace.rejected:
            CONSOLE.print(f"  [red]rejected[/] by {one.asset}: {escape(one.reason)}", soft_wrap=True)
            CONSOLE.print(f"     [dim]tried again {one.retried}[/]", soft_wrap=True)


def print_rejects(rejects: Sequence[Rejected], as_json: bool = False) -> None:
    """What was rejected: by stage and source, and there by reason; or all of it as JSON."""
    if as_json:
        _print_json(rejects)
        return
    by_place: dict[tuple[str, str], dict[tuple[str, str], list[str]]] = {}
    for one in rejects:
        reasons = by_place.setdefault((one.asset, one.source), {})
        reasons.setdefault((one.reason, one.retried), []).append(one.path)
    for (asset, source), reasons in by_place.items():
        count = sum(map(len, reasons.values()))
        CONSOLE.print(f"[bold]{escape(f'{asset} {source}')}[/]: {count} rejected", soft_wrap=True)
        for (reason, retried), paths in reasons.items():
            CONSOLE.print(f"  {len(paths)} x {escape(reason)} [dim](tried again {retried})[/]", soft_wrap=True)
            for path in paths[:MOST_PATHS]:
                CONSOLE.print(f"     {escape(path)}", soft_wrap=True)
            if len(paths) > MOST_PATHS:
                CONSOLE.print(f"     and {len(paths) - MOST_PATHS} more; --json prints all", soft_wrap=True)
    CONSOLE.print(f"{len(rejects)} rejected in all" if rejects else "nothing is rejected")


def tune_with_table(platform: Platform, space: Space, keep: bool) -> bool:
    """Sweep the search parameters of a space's collection and print what they cost; True if one suffices.

    With `keep`, the cheapest that does becomes what searches of the collection use.
    """
    target, quality = platform.target(space), platform.settings.quality
    sources = (platform.live(space, source) for source in listed_sources(platform.store, space.modality))
    table = _table("space", "search", "recall@10", "recall@100", "ms")
    trials = []
    with CONSOLE.status(f"searching {target.collection}"):
        for trial in sweep(platform.milvus, target, sources, quality.recall_sample, platform.held_out(space)):
            trials.append(trial)
            table.add_row(
                space.key,
                _parameters(trial.search),
                f"{trial.recall.at_10:.3f}",
                f"{trial.recall.at_100:.3f}",
                f"{trial.milliseconds:.1f}",
                style="dim" if trial.recall.shortfall(quality) else "",
            )
    CONSOLE.print(table)
    chosen = cheapest(trials, quality)
    if chosen is None:
        CONSOLE.print(
            f"none reaches recall@10 {quality.min_recall} and recall@100 {quality.min_recall_at_100}; "
            "build the index with more (M, efConstruction, nlist in the indexes setting), or lower the floors"
        )
        return False
    if keep:
        keep_search(platform.milvus, target.collection, space.index, chosen.search)
    CONSOLE.print(
        f"{_parameters(chosen.search)} is the cheapest that reaches recall@10 {quality.min_recall} and "
        f"recall@100 {quality.min_recall_at_100}" + (f"; searches of {target.collection} now use it" if keep else ""),
        soft_wrap=True,
    )
    return True


def _parameters(search: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in search.items())


def print_publication(report: PublicationReport) -> None:
    """Where an alias points, or what stands in the way."""
    if report.published:
        CONSOLE.print(f"{report.alias} is {report.collection}", soft_wrap=True)
    named = list(report.waiting.items())[:MOST_WAITING]
    for source, reason in named:
        CONSOLE.print(f"[red]{escape(source)}:[/] {escape(reason)}", soft_wrap=True)
    if more := len(report.waiting) + report.unread - len(named):
        CONSOLE.print(f"and {more} more sources wait, or were not looked at")


def print_prunable(things: Sequence[Prunable]) -> None:
    """What may be removed, and why."""
    if not things:
        CONSOLE.print("nothing to prune")
        return
    table = _table("kind", "size", "reason", "name")
    for thing in things:
        size = f"{thing.size} rows" if thing.kind == "collection" else f"{thing.size / 1e6:.1f} MB"
        table.add_row(thing.kind, size, thing.reason, escape(thing.name))
    CONSOLE.print(table)


def print_settings(settings: dict[str, Any], platform: Platform) -> None:
    """The settings in force, as YAML, and the spaces that they keep."""
    import yaml

    CONSOLE.print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), soft_wrap=True, markup=False)
    for space in platform.spaces:
        CONSOLE.print(
            f"# {space.key}: {escape(space.model.location)}, {space.model.dimension} dimensions", soft_wrap=True
        )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_TEXT else f"{line[:MOST_TEXT]}…"


def _print_json(records: Sequence[RowTrace] | Sequence[FileTrace] | Sequence[Rejected]) -> None:
    CONSOLE.file.write(json.dumps([asdict(record) for record in records], indent=2, ensure_ascii=False) + "\n")
