"""The command line. Each command calls one function below and prints what it says."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from embedding_platform.errors import PlatformError

if TYPE_CHECKING:
    from embedding_platform.platform import Platform


class _Commands(click.Group):
    """Prints a user's mistake as one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PlatformError as error:
            click.echo(f"embedding-platform: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--settings", type=click.Path(), help="YAML file to read instead of ./embedding_platform.yaml.")
@click.version_option(package_name="embedding-platform")
@click.pass_context
def main(context: click.Context, settings: str | None) -> None:
    """Keep Milvus collections true to a lake of raw media."""

    def opened() -> "Platform":
        from embedding_platform.platform import Platform
        from embedding_platform.settings import load_settings

        return Platform(load_settings(settings))

    context.obj = opened


@main.command()
@click.pass_obj
def config(opened: Callable[[], "Platform"]) -> None:
    """Print the settings in force, secrets masked."""
    from embedding_platform import terminal
    from embedding_platform.settings import masked

    platform = opened()
    terminal.print_settings(masked(platform.settings), platform)


@main.command()
@click.option("--modality", "modalities", multiple=True, help="Only this modality; may be repeated.")
@click.option("--source", "sources", multiple=True, help="Only this source; may be repeated.")
@click.pass_obj
def run(opened: Callable[[], "Platform"], modalities: tuple[str, ...], sources: tuple[str, ...]) -> None:
    """Bring Milvus in line with the media, without the web UI."""
    from embedding_platform.terminal import run_with_progress

    runs = run_with_progress(opened(), modalities, sources)
    sys.exit(0 if all(run.succeeded for run in runs) else 1)


@main.command()
@click.pass_obj
def demo(opened: Callable[[], "Platform"]) -> None:
    """Make sample media, index them, and search them."""
    from embedding_platform.demo import run_demo

    sys.exit(0 if run_demo(opened()) else 1)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535))
@click.pass_obj
def up(opened: Callable[[], "Platform"], host: str, port: int) -> None:
    """Start the web UI, its daemon, the code location, and the local Milvus that they share."""
    from embedding_platform.up import up as start

    settings = click.get_current_context().find_root().params["settings"]
    sys.exit(start(opened(), host, port, settings))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one than this machine needs a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free one.")
@click.pass_obj
def serve(opened: Callable[[], "Platform"], host: str, port: int) -> None:
    """Serve the search page and its JSON API."""
    from embedding_platform.serving.server import serve_pages

    serve_pages(opened(), host, port, lambda address: click.echo(f"search at {address}; Ctrl-C stops it"))


@main.command()
@click.argument("text", required=False)
@click.option("--like", metavar="FILE", help="Search by a text, image, audio or video file instead of words.")
@click.option("--more-like", metavar="ID", help="Search by a row that the one --space holds, without a model.")
@click.option("--space", "spaces", multiple=True, help='A space such as "image/clip"; may be repeated.')
@click.option("--hybrid", is_flag=True, help="Find text by its words and by its meaning together.")
@click.option("--source", "sources", multiple=True, help="Only this source; may be repeated.")
@click.option("--role", "roles", multiple=True, help="Only text, image, audio or video; may be repeated.")
@click.option(
    "--path", "path_prefix", default="", metavar="BEGINNING", help="Only paths that begin so in their source."
)
@click.option("--after", default="", metavar="TIME", help="Only what was embedded then or later, as 2026-05-31; UTC.")
@click.option("--before", default="", metavar="TIME", help="Only what was embedded before.")
@click.option(
    "--where",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only with this attribute; width=1024.. from 1024 on; may be repeated.",
)
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 1000), help="Hits of each space.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def search(
    opened: Callable[[], "Platform"],
    text: str | None,
    like: str | None,
    more_like: str | None,
    spaces: tuple[str, ...],
    hybrid: bool,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find what is nearest to TEXT, to a file, or to a row."""
    from embedding_platform import terminal
    from embedding_platform.inference.query import text_query
    from embedding_platform.search import Searcher, written_filter
    from embedding_platform.search import as_json as plain

    if sum(given is not None for given in (text, like, more_like)) != 1:
        raise PlatformError("give one of words, --like FILE and --more-like ID")
    kept = written_filter(**filters)
    searcher = Searcher(opened())
    if more_like is not None:
        if hybrid or len(spaces) != 1:
            raise PlatformError("--more-like wants one --space, and no --hybrid: it has a row's vector and no words")
        name, found = more_like, {spaces[0]: searcher.more_like(more_like, spaces[0], filter=kept, limit=limit)}
    else:
        query = text_query(text) if text is not None else searcher.file_query(str(like))
        name, found = query.name, searcher.search_spaces(query, spaces, filter=kept, limit=limit, hybrid=hybrid)
    if as_json:
        click.echo(json.dumps(plain(found), indent=2, ensure_ascii=False))
        return
    for key, hits in found.items():
        terminal.print_hits(f"{key}: {name}", hits)


@main.command()
@click.pass_obj
def status(opened: Callable[[], "Platform"]) -> None:
    """Print the increment of each asset and source, without doing it."""
    from embedding_platform import terminal

    terminal.print_pending(list(opened().pending()))


@main.command()
@click.argument("name", metavar="ID|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def trace(opened: Callable[[], "Platform"], name: str, as_json: bool) -> None:
    """Follow a hit back to its file, content hash, model and run; or a file to all its rows."""
    from embedding_platform import lineage, terminal

    if lineage.is_row_id(name):
        terminal.print_rows(lineage.trace_row(opened(), name), as_json)
    else:
        terminal.print_files(lineage.trace_file(opened(), name), as_json)


@main.command()
@click.option("--modality", "modalities", multiple=True, help="Only this modality; may be repeated.")
@click.option("--source", "sources", multiple=True, help="Only this source; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def rejects(
    opened: Callable[[], "Platform"], modalities: tuple[str, ...], sources: tuple[str, ...], as_json: bool
) -> None:
    """Print what could not be used, why, and what makes it tried again."""
    from embedding_platform import terminal

    terminal.print_rejects(opened().rejects(modalities, sources), as_json)


@main.command()
@click.argument("space")
@click.option("--source", "sources", multiple=True, required=True, help="Of this source; may be repeated.")
@click.pass_obj
def accept(opened: Callable[[], "Platform"], space: str, sources: tuple[str, ...]) -> None:
    """Accept what the checks `distribution` and `duplicates` warned of, and compare what comes later with it."""
    from embedding_platform.reconcile.acceptance import accept_waiting

    platform = opened()
    chosen = platform.space(space)
    for source in sources:
        met = accept_waiting(platform.store, chosen.key, platform.fingerprint(chosen), source)
        click.echo(f"accepted the vectors of {space}, source {source}, as they were at {met}")


@main.command()
@click.argument("space")
@click.option("--dry-run", is_flag=True, help="Only measure; keep the search parameters as they are.")
@click.pass_obj
def tune(opened: Callable[[], "Platform"], space: str, dry_run: bool) -> None:
    """Measure recall against latency, and keep the cheapest search parameters that suffice."""
    from embedding_platform.terminal import tune_with_table

    platform = opened()
    sys.exit(0 if tune_with_table(platform, platform.space(space), keep=not dry_run) else 1)


@main.command()
@click.argument("space")
@click.pass_obj
def rollback(opened: Callable[[], "Platform"], space: str) -> None:
    """Let readers have the collection that was published before."""
    from embedding_platform.reconcile.publication import roll_back

    platform = opened()
    former, present = roll_back(platform.milvus, platform.space(space).key)
    click.echo(
        f"{space} is {present} again, no longer {former}; runs keep {former} in line with the media and leave the "
        f"alias alone until `embedding-platform publish {space}`"
    )


@main.command()
@click.argument("space")
@click.pass_obj
def publish(opened: Callable[[], "Platform"], space: str) -> None:
    """Take a rollback back: let readers have the present model's collection, if it is complete and sound."""
    from embedding_platform import terminal
    from embedding_platform.reconcile.publication import reinstate
    from embedding_platform.runs import instance, partitions_of

    platform = opened()
    target = platform.target(platform.space(space))
    reinstate(platform.milvus, target)
    with instance() as dagster:
        report = platform.published(target.space, lambda: partitions_of(dagster, target.space.modality))
    terminal.print_publication(report)
    sys.exit(0 if report.published else 1)


@main.command()
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.pass_obj
def prune(opened: Callable[[], "Platform"], yes: bool) -> None:
    """Remove what nothing protects, former models' collections and vectors of deleted media, after showing it."""
    from embedding_platform import terminal
    from embedding_platform.reconcile import pruning

    platform = opened()
    targets = [platform.target(space) for space in platform.spaces]
    retained = platform.settings.retention.collections
    things = pruning.prunable(platform.milvus, platform.store, targets, retained, platform.cutting)
    terminal.print_prunable(things)
    if things and (yes or click.confirm("remove them?")):
        pruning.prune(platform.milvus, things)
        click.echo(f"removed {len(things)}")


if __name__ == "__main__":
    main()
