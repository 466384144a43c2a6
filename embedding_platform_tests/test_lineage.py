"""`trace` and `rejects` as a person types them, on a project of text and captioned pictures."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from embedding_platform import storage
from embedding_platform.cli import main
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.records import vectors_schema
from embedding_platform.settings import load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder: a long letter, a picture with a caption, and files that cannot be used."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "dagster.yaml", folder)
    (folder / "embedding_platform.yaml").write_text("spaces: [text/minilm, image_text/clip]\nruntime: torch\n")
    letters, photos = folder / "media" / "letters", folder / "media" / "photos"
    letters.mkdir(parents=True)
    photos.mkdir()
    parts = (f"Part {number}. {'The tide comes in. ' * 60}" for number in range(3))
    (letters / "long.txt").write_text("\n\n".join(parts))
    (letters / "short.txt").write_text("A short one.")
    (letters / "empty.txt").write_text("")
    (letters / "void.md").write_text("")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(photos / "cat.png")
    (photos / "cat.txt").write_text("A cat of many colours.")
    (photos / "captions.jsonl").write_text('{"file_name": "nowhere.png", "text": "nothing"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run").exit_code == 0
    yield folder
    close_directory(str(folder / ".embedding_platform" / "milvus"))


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, list(arguments), catch_exceptions=False)


def traced(*arguments: str) -> list[dict]:
    result = call("trace", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refusal(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    return line


def platform_of(folder: Path) -> Platform:
    return Platform(load_settings(folder / "embedding_platform.yaml"))


def test_a_file_leads_to_all_its_rows_and_each_row_back_to_the_file(folder: Path) -> None:
    (file,) = traced("letters/long.txt")
    platform = platform_of(folder)
    collection = alias_target(platform.milvus, "text_minilm")
    rows = platform.milvus.query(collection, filter='id != ""', output_fields=["id", "path"], limit=100)
    assert {row["id"] for row in file["rows"]} == {row["id"] for row in rows if row["path"] == "long.txt"}
    assert len(rows) > len(file["rows"]) >= 3
    assert (file["without_row"], file["rejected"]) == ([], [])
    for row in file["rows"]:
        (back,) = traced(row["id"])
        assert back == row
        assert (back["source"], back["path"], back["space"]) == ("letters", "long.txt", "text/minilm")
        assert (back["collection"], back["alias"]) == (collection, "text_minilm")
        assert back["provenance"]["fingerprint"] == platform.fingerprint(platform.space("text/minilm"))
        assert back["file"]["content_hash"] == file["file"]["content_hash"]
        assert back["run_page"] == f"/runs/{back['run_id']}"
        assert back["partition"].startswith("letters_")
        place, _, name = back["shard"].rpartition("/")
        (shard,) = storage.iterate_shards(place, vectors_schema(384), names=[name])
        (kept,) = (one for one in shard.to_pylist() if one["content_hash"] == back["content_hash"])
        assert kept["run_id"] == back["run_id"]
        assert kept["embedded_at"].isoformat() == back["embedded_at"]


def test_the_run_of_a_row_is_one_that_dagster_knows(folder: Path) -> None:
    from embedding_platform.runs import instance

    (file, *_) = traced("letters/long.txt")
    with instance() as dagster:
        assert dagster.get_run_by_id(file["rows"][0]["run_id"]) is not None


def test_a_picture_leads_to_its_rows_of_both_roles() -> None:
    (file,) = traced("photos/cat.png")
    assert sorted(row["role"] for row in file["rows"]) == ["image", "text"]
    assert {row["space"] for row in file["rows"]} == {"image_text/clip"}


@pytest.mark.parametrize("name", ["letters/long.txt", "media/letters/long.txt", "{folder}/media/letters/long.txt"])
def test_a_file_may_be_named_in_any_way(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name.format(folder=folder)
    assert [file["file"]["path"] for file in traced(name)] == ["long.txt"]
    assert [file["file"]["path"] for file in traced(f"file://{folder}/media/letters/long.txt")] == ["long.txt"]
    monkeypatch.chdir(folder / "media" / "letters")
    monkeypatch.setenv("EMBEDDING_PLATFORM_SETTINGS", str(folder / "embedding_platform.yaml"))
    assert [file["file"]["path"] for file in traced("long.txt")] == ["long.txt"]


def test_both_ways_are_printed_for_people() -> None:
    output = call("trace", "letters/long.txt").output
    (file,) = traced("letters/long.txt")
    row = file["rows"][1]
    assert f"letters/long.txt: text, text/plain; rows: {len(file['rows'])}, without a row: 0, rejected: 0" in output
    for shown in (row["id"], row["content_hash"], row["run_id"], row["where"], "text/minilm"):
        assert shown in output
    output = call("trace", row["id"]).output
    names = ("collection", "alias", "partition", "content_hash", "run_page", "shard", "run_id", "embedded_at", "uri")
    for shown in (row[name] for name in names):
        assert shown in output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "letters/empty.txt",
            "letters/empty.txt was rejected by text/files: is empty (0 bytes); it is tried again ",
        ),
        ("photos/cat.txt", "photos/cat.txt is the caption of photos/cat.png; trace that"),
        ("photos/captions.jsonl", "gives captions to the images that it names"),
        ("letters/nothing.txt", "letters/nothing.txt is not there, and the last run did not find it either"),
        ("letters/late.txt", "letters/late.txt is not listed yet; run `embedding-platform run`"),
        ("letters/late.png", "letters/late.png is not listed yet, and will be rejected: "),
        ("letters/.hidden.txt", "is left out, because it or a folder above it has the name of a hidden or temporary"),
        ("letters/notes.xyz", "letters/notes.xyz holds no media that is indexed; those are text documents"),
        ("letters/tone.wav", "letters/tone.wav is audio, for which the settings keep no space; add one to `spaces`"),
        ("letters", "letters is no row id (32 digits of 0-9 and a-f) and no file in a source"),
        ("F" * 32, "is no row id"),
        ("../elsewhere.txt", "is neither a row id (32 digits of 0-9 and a-f) nor a file under media_root"),
        ("s3://bucket/a.txt", "nor a file under media_root"),
    ],
)
def test_a_file_that_is_not_indexed_is_told_why_in_one_line(folder: Path, name: str, said: str) -> None:
    from embedding_platform_tests.media.made import tone, write_sound

    letters = folder / "media" / "letters"
    late = {"late.txt": b"Late.", "late.png": b"no picture", ".hidden.txt": b"Hidden.", "notes.xyz": b"\0\1"}
    for file, payload in late.items():
        (letters / file).write_bytes(payload)
    write_sound(letters / "tone.wav", tone(0.2, 16_000), rate=16_000)
    try:
        assert said in refusal("trace", name)
    finally:
        for file in (*late, "tone.wav"):
            (letters / file).unlink()


def test_a_segment_without_a_row_is_told_why(folder: Path) -> None:
    platform = platform_of(folder)
    (before,) = traced("photos/cat.png")
    lost = next(row for row in before["rows"] if row["role"] == "text")
    platform.milvus.delete(lost["collection"], ids=[lost["id"]])
    try:
        (file,) = traced("photos/cat.png")
        (missing,) = file["without_row"]
        assert (missing["id"], missing["role"]) == (lost["id"], "text")
        assert missing["reason"] == "not in the published collection yet; run `embedding-platform run`"
        assert "no row: not in the published collection yet" in call("trace", "photos/cat.png").output
        assert "no published space holds the id" in refusal("trace", lost["id"])
    finally:
        assert call("run", "--modality", "image_text").exit_code == 0
    (after,) = traced("photos/cat.png")
    assert {row["id"] for row in after["rows"]} == {row["id"] for row in before["rows"]}


def test_rejects_are_grouped_and_counted() -> None:
    output = call("rejects").output
    assert "text/files letters: 2 rejected" in output
    assert "2 x is empty (0 bytes) (tried again when the file changes)" in output
    assert "image_text/files photos: 1 rejected" in output
    assert "names nowhere.png, which is not there" in output
    assert "3 rejected in all" in output


def test_rejects_of_one_modality_or_source_and_as_json() -> None:
    found = json.loads(call("rejects", "--modality", "text", "--json").stdout)
    assert [one["path"] for one in found] == ["empty.txt", "void.md"]
    assert {tuple(one) for one in found} == {("asset", "source", "path", "uri", "reason", "retried")}
    assert json.loads(call("rejects", "--source", "photos", "--json").stdout)[0]["path"] == "captions.jsonl:1"
    assert json.loads(call("rejects", "--modality", "text", "--source", "photos", "--json").stdout) == []
    nothing = call("rejects", "--modality", "text", "--source", "photos")
    assert (nothing.exit_code, nothing.output) == (0, "nothing is rejected\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--modality", "smell"), "'smell' is not there; choose from text, image_text"),
        (("--source", "nowhere"), "'nowhere' is not there; choose from letters, photos"),
    ],
)
def test_rejects_of_what_is_not_there(arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal("rejects", *arguments)
