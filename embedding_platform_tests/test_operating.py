"""Migration, rollback, tuning and pruning, as a person types them."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_platform.milvus.connection import close_directory
from embedding_platform_tests.test_cli import ROOT, call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder with one text source that was indexed under two generations of one model."""
    folder = tmp_path_factory.mktemp("operating")
    shutil.copy(ROOT / "dagster.yaml", folder)
    source = folder / "media" / "letters"
    source.mkdir(parents=True)
    for number in range(3):
        (source / f"{number}.txt").write_text(f"Letter number {number} tells of the sea.")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for generation in (0, 1):
            settings = f"spaces: [text/minilm]\ngenerations: {{text/minilm: {generation}}}\n"
            (folder / "embedding_platform.yaml").write_text(settings)
            assert call("run").exit_code == 0
    yield folder
    close_directory(str(folder / ".embedding_platform" / "milvus"))


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def published() -> str:
    """The collection in which a search finds its first hit."""
    row_id = re.search(r"id ([0-9a-f]{32})", call("search", "the sea").output)[1]
    return re.search(r"text_minilm_\w+", call("trace", row_id).output)[0]


def test_tuning_prints_recall_and_time_and_keeps_the_cheapest() -> None:
    table = call("tune", "text/minilm", "--dry-run")
    assert table.exit_code == 0
    assert "recall@100" in table.output
    assert "now use it" not in table.output
    assert "ef 8 is the cheapest" in call("tune", "text/minilm").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rollback", "text/nosuch"), "no space 'text/nosuch'; choose from text/minilm"),
        (("tune", "text/nosuch"), "no space 'text/nosuch'"),
        (("publish", "text/nosuch"), "no space 'text/nosuch'"),
    ],
)
def test_a_space_that_is_not_there_gets_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1


def test_a_model_is_rolled_back_published_again_and_its_former_one_pruned(folder: Path) -> None:
    latter = published()
    back = call("rollback", "text/minilm")
    assert back.exit_code == 0
    former = published()
    assert former != latter
    assert former in back.output
    assert call("run").exit_code == 0
    assert published() == former, "a run leaves the alias where it was rolled back to"
    assert "no collection left that was published before" in call("rollback", "text/minilm").output
    assert call("prune").output.strip() == "nothing to prune"

    assert call("publish", "text/minilm").exit_code == 0
    assert published() == latter
    assert call("prune").output.strip() == "nothing to prune", "one former collection is retained"
    with (folder / "embedding_platform.yaml").open("a") as settings:
        settings.write("retention: {collections: 0}\n")
    refused = call("prune", answer="n\n").output
    assert former in refused.partition("remove them?")[0], "what may go is shown before it is asked"
    assert "removed" not in refused
    shown = call("prune", "--yes").output
    assert former in shown
    assert "removed 3" in shown
    assert "nothing to prune" in call("prune").output
    assert published() == latter
    assert "nothing to do" in call("run").output


@pytest.mark.long
def test_more_sources_than_partitions_make_a_migration_to_a_partition_key(folder: Path) -> None:
    """Comes last: it adds sources to the folder that the other tests share."""
    named, table = published(), call("search", "penguins", "--json").output
    assert "_named" in named
    for number in range(2):
        source = folder / "media" / f"papers-{number}"
        source.mkdir()
        (source / "a.txt").write_text(f"Paper {number} tells of penguins.")
    with (folder / "embedding_platform.yaml").open("a") as settings:
        settings.write("milvus: {named_partitions: 2}\n")
    ran = call("run")
    assert ran.exit_code == 0, ran.output
    assert "_keyed" in published()
    found = call("search", "penguins", "--source", "papers-1", "--json").output
    assert "papers-1" in found
    assert "papers-0" not in found
    assert found != table
    assert "nothing to do" in call("run").output
    shutil.rmtree(folder / "media" / "papers-0")
    assert call("run").exit_code == 0
    assert (
        "unknown source 'papers-0'"
        in call("search", "penguins", "--source", "papers-0", "--space", "text/minilm").output
    )
