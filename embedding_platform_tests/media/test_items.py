import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import concat_tables

from embedding_platform.buckets import sources_of
from embedding_platform.errors import PlatformError
from embedding_platform.media import image, items, listing, reading, recognition
from embedding_platform.media.items import (
    Listing,
    classify,
    item_states,
    list_items,
    rejected_state,
)
from embedding_platform.media.listing import ENTRIES, Entry
from embedding_platform.records import ITEMS, Item, items_table, rejected_table
from embedding_platform.records import items as items_of_table
from embedding_platform.settings import DecodingSettings
from embedding_platform.spaces import MODALITIES

from .made import picture, tone, write_sound, write_video

Known = dict[str, Listing]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "s" / "sub").mkdir(parents=True)
    return tmp_path / "s"


def list_all(source: Path, known: Known | None = None) -> Known:
    """List every modality, each with what the last listing of all knew."""
    listed = {name: found.table for name, found in (known or {}).items()}
    rejected = {name: found.rejected for name, found in (known or {}).items()}
    return {
        modality: list_items(modality, str(source.parent), source.name, listed, rejected) for modality in MODALITIES
    }


def classified(source: Path, known: Known | None = None) -> dict[str, dict[str, str]]:
    return classify(
        str(source.parent),
        source.name,
        {name: found.table for name, found in (known or {}).items()},
        {name: found.rejected for name, found in (known or {}).items()},
    )


def states(known: Known) -> dict[str, dict[str, str]]:
    found = {
        modality: dict(zip(listed.table["path"].to_pylist(), item_states(listed.table).to_pylist(), strict=True))
        | {row[0]: rejected_state(row) for row in listed.rejected}
        for modality, listed in known.items()
    }
    return {modality: paths for modality, paths in found.items() if paths}


def paths(known: Known) -> dict[str, list[str]]:
    return {modality: [item.path for item in listed.items] for modality, listed in known.items() if listed.items}


def reasons(known: Known) -> dict[str, dict[str, str]]:
    found = {modality: {row[0]: row[3] for row in listed.rejected} for modality, listed in known.items()}
    return {modality: rows for modality, rows in found.items() if rows}


def write_lines(path: Path, *rows: object) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")


def fill(source: Path) -> None:
    (source / "notes.md").write_text("# Words")
    (source / "sub" / "käse 🧀.png").write_bytes(picture())
    (source / "pair.jpg").write_bytes(picture(format="JPEG"))
    (source / "pair.txt").write_text(" red and blue \n")
    write_sound(source / "tone.wav", tone(0.5, 16_000), rate=16_000)
    write_video(source / "clip.mp4", [10] * 12)
    (source / "broken.png").write_bytes(b"words")
    (source / "data.csv").write_text("a,b")
    (source / "code.py").write_text("print()")
    (source / ".hidden.jpg").write_bytes(picture())


def test_every_file_is_listed_once_under_its_modality(source: Path) -> None:
    fill(source)
    known = list_all(source)
    assert paths(known) == {
        "text": ["notes.md"],
        "image": ["sub/käse 🧀.png"],
        "image_text": ["pair.jpg"],
        "audio": ["tone.wav"],
        "video": ["clip.mp4"],
    }
    assert reasons(known) == {"image": {"broken.png": "named .png but holds plain text, not an image"}}
    assert {listed.skipped for listed in known.values()} == {2}
    assert {modality: listed.hashed for modality, listed in known.items()} == dict.fromkeys(MODALITIES, 1)
    (pair,) = known["image_text"].items
    assert pair.captions == ("red and blue",)
    assert pair.content_hash == hashlib.sha256((source / "pair.jpg").read_bytes()).hexdigest()
    assert (pair.media_type, pair.size) == ("image/jpeg", (source / "pair.jpg").stat().st_size)
    assert pair.attributes == {"width": 40, "height": 30, "format": "JPEG", "mode": "RGB"}
    assert pair.uri == str(source / "pair.jpg")


def test_a_listing_survives_its_table(source: Path) -> None:
    fill(source)
    for listed in list_all(source).values():
        assert items_table(items_of_table(listed.table)) == listed.table
        assert rejected_table(listed.rejected).num_rows == len(listed.rejected)


def test_what_has_not_changed_passes_from_table_to_table(source: Path) -> None:
    fill(source)
    known = list_all(source)
    tables = {modality: listed.table for modality, listed in known.items()}
    survey = items._survey(str(source.parent), "s", tables, {}, DecodingSettings())
    assert [found.entry.path for found in survey.sightings] == ["broken.png"], "rejected files are few"
    assert {modality: table for modality, table in survey.settled.items() if table.num_rows} == tables
    (source / "pair.txt").write_text("another caption")
    survey = items._survey(str(source.parent), "s", tables, {}, DecodingSettings())
    assert [found.entry.path for found in survey.sightings] == ["broken.png", "pair.jpg"]
    assert survey.settled["image_text"].num_rows == 0


STATES = st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 2), st.sampled_from(["1.1", "2.2"]))
"""Path, size and change mark of a file."""


@settings(deadline=None)
@given(
    listed=st.lists(STATES, unique_by=lambda state: state[0]).map(sorted),
    known=st.lists(STATES),
    rows=st.integers(1, 4),
)
def test_unchanged_rows_are_the_same_in_pieces_of_any_size(
    listed: list[tuple[str, int, str]], known: list[tuple[str, int, str]], rows: int
) -> None:
    """Even where the last listing is not sorted, and names a path again."""
    moved = [Entry(path, f"/moved/{path}", size, modified) for path, size, modified in listed]
    columns = [[getattr(entry, name) for entry in moved] for name in ENTRIES.names]
    table = items_table(
        Item(path, f"/{path}", size, modified, "", str(place)) for place, (path, size, modified) in enumerate(known)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "ROWS_PER_PIECE", rows)
        unchanged, places = items._unchanged(table, pa.table(columns, schema=ENTRIES))
    last = {path: place for place, (path, *_) in enumerate(known) if known[place] in listed}
    assert unchanged["content_hash"].to_pylist() == [str(place) for place in sorted(last.values())]
    assert unchanged["uri"].to_pylist() == [f"/moved/{path}" for path in unchanged["path"].to_pylist()]
    assert [listed[place][0] for place in places] == unchanged["path"].to_pylist()


def test_of_two_documents_beside_an_image_the_last_is_its_caption(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    for name in ("a.TXT", "a.txt"):
        (source / name).write_text(name)
    known = list_all(source)
    assert [item.captions for item in known["image_text"].items] == [("a.txt",)]
    assert paths(known) == {"image_text": ["a.png"], "text": ["a.TXT"]}


def test_known_files_in_any_order_are_listed_by_path(source: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (source / name).write_bytes(picture())
    listed = list_all(source)["image"]
    later = listed.table.take([2, 0, 1])
    older = later.set_column(later.schema.get_field_index("modified"), "modified", [["0.0"] * 3])
    again = list_items("image", str(source.parent), "s", {"image": concat_tables([older, later])}, {})
    assert (again.hashed, again.table) == (0, listed.table)


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files opened through the file system, wherever the package does it."""
    opened: list[str] = []
    real = reading._handle

    def counting(path: str) -> int:
        opened.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(reading, "_handle", counting)
    return opened


def test_what_is_known_is_neither_opened_nor_hashed(source: Path, openings: list[str]) -> None:
    fill(source)
    (source / "notes.md").write_text(" ")  # rejected by its content, not by its name
    known = list_all(source)
    assert "pair.jpg" in openings
    openings.clear()
    again = list_all(source, known)
    classified(source, known)
    assert openings == []
    assert paths(again) == paths(known)
    assert reasons(again) == reasons(known)
    assert {listed.hashed for listed in again.values()} == {0}


def test_the_cheap_pass_agrees_with_the_listing(source: Path) -> None:
    fill(source)
    write_lines(source / "captions.jsonl", {"file_name": "sub/käse 🧀.png", "text": "cheese"}, "not json")
    before = classified(source)
    known = list_all(source)
    assert before == classified(source, known) == states(known)
    (source / "new.txt").write_text("more")
    os.utime(source / "tone.wav", ns=(1, 1))
    (source / "pair.jpg").unlink()
    after = classified(source, known)
    differing = {modality for modality in MODALITIES if after.get(modality) != states(known).get(modality)}
    assert differing == {"text", "audio", "image_text"}
    assert states(list_all(source, known)) == after


def test_a_source_with_only_a_broken_image_is_an_image_source(source: Path) -> None:
    (source / "broken.jpg").write_bytes(b"")
    assert list(classified(source)) == ["image"]
    known = list_all(source)
    assert reasons(known) == {"image": {"broken.jpg": "is empty (0 bytes)"}}
    assert list(classified(source, known)) == ["image"]


def test_a_touched_or_renamed_file_keeps_its_version(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    first = list_all(source)
    os.utime(source / "a.png", ns=(1, 1))
    second = list_all(source, first)
    assert second["image"].hashed == 1
    assert second["image"].items[0].version == first["image"].items[0].version
    assert second["image"].items[0].modified.startswith("1.")


def test_an_image_moves_between_modalities_with_its_captions_unhashed(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    alone = list_all(source)
    (source / "a.txt").write_text("one")
    paired = list_all(source, alone)
    assert paths(paired) == {"image_text": ["a.png"]}
    (source / "a.txt").write_text("another")
    changed = list_all(source, paired)
    (source / "a.txt").unlink()
    apart = list_all(source, changed)
    assert paths(apart) == {"image": ["a.png"]}
    assert {listed.hashed for known in (paired, changed, apart) for listed in known.values()} == {0}
    versions = [paired["image_text"], changed["image_text"], apart["image"]]
    assert len({listed.items[0].version for listed in versions}) == 3
    assert apart["image"].items[0] == alone["image"].items[0]


def test_captions_come_from_the_file_beside_and_from_lines(source: Path) -> None:
    for name in ("a.png", "b.jpg", "sub/c.png", "sub/d.png"):
        (source / name).write_bytes(picture(format="JPEG" if name.endswith("jpg") else "PNG"))
    (source / "a.txt").write_text("beside")
    write_lines(
        source / "captions.jsonl",
        {"file_name": "a.png", "text": ["first", "second", "beside"]},
        "",
        {"file": "./sub/c.png", "caption": "from above"},
    )
    write_lines(
        source / "sub" / "captions.jsonl",
        {"file_name": "c.png", "text": "from beside"},
        {"file": "../b.jpg", "caption": "up"},
    )
    known = list_all(source)
    captions = {item.path: item.captions for item in known["image_text"].items}
    assert captions == {
        "a.png": ("beside", "first", "second"),
        "b.jpg": ("up",),
        "sub/c.png": ("from above", "from beside"),
    }
    assert paths(known)["image"] == ["sub/d.png"]
    assert "text" not in paths(known)
    assert known["text"].skipped == 0


def test_faulty_lines_are_rejected_one_by_one(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    (source / "b.txt").write_text("words")
    write_lines(
        source / "captions.jsonl",
        {"file_name": "a.png", "text": "good"},
        "{broken",
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "b.txt", "text": "x"},
        {"file_name": "a.png", "text": " "},
        {"file_name": "a.png", "text": ["x", 3]},
        {"text": "x"},
        [1],
        {"file_name": "../../etc/passwd", "text": "x"},
    )
    known = list_all(source)
    assert known["image_text"].items[0].captions == ("good",)
    found = reasons(known)["image_text"]
    assert {path: reason.partition(":")[0] for path, reason in found.items()} == {
        "captions.jsonl:2": "is not JSON",
        "captions.jsonl:3": "names gone.png, which is not there",
        "captions.jsonl:4": "names b.txt, which is not an image",
        "captions.jsonl:5": "holds an empty caption",
        "captions.jsonl:6": 'has no "text" that is a text or a list of texts',
        "captions.jsonl:7": 'has no "file_name"',
        "captions.jsonl:8": 'is not an object like {"file_name"',
        "captions.jsonl:9": "names ../../etc/passwd, which is not there",
    }
    (source / "gone.png").write_bytes(picture())
    assert "captions.jsonl:3" not in reasons(list_all(source, known))["image_text"]


def test_the_buckets_of_a_folder_list_together_what_the_folder_lists(source: Path) -> None:
    for number in range(12):
        (source / f"{number}.png").write_bytes(picture(size=(20 + number, 30)))
    (source / "sub" / "notes.txt").write_text("words")
    (source / "3.txt").write_text("beside")
    (source / "4.txt").write_bytes(b"")
    (source / "broken.jpg").write_bytes(b"")
    lines = [{"file_name": f"{number}.png", "text": f"picture {number}"} for number in (1, 2, 3)]
    faulty = [
        "{broken",
        {"text": "x"},
        {"file_name": "sub/notes.txt", "text": "x"},
        {"file_name": "9.png", "text": " "},
    ]
    gone = [{"file_name": f"gone-{number}.png", "text": "x"} for number in range(4)]
    write_lines(source / "captions.jsonl", *lines, *faulty, *gone)
    (source / "sub" / "captions.jsonl").write_bytes(b"x" * (1024 * 1024 + 1))
    limits = DecodingSettings(max_document_megabytes=1)
    whole = {name: list_items(name, str(source.parent), "s", {}, {}, limits) for name in MODALITIES}
    known: dict[str, Known] = {}
    for bucket in sources_of("s", {"s": 3}):
        known[bucket] = {name: list_items(name, str(source.parent), bucket, {}, {}, limits) for name in MODALITIES}
    assert len(reasons(whole)["image_text"]) == 10
    for name in MODALITIES:
        parts = [listings[name] for listings in known.values()]
        assert sorted((item for part in parts for item in part.items), key=lambda item: item.path) == whole[name].items
        assert sorted(row for part in parts for row in part.rejected) == sorted(whole[name].rejected)
    assert {len(listings["image"].items) > 0 for listings in known.values()} == {True}
    (source / "1.png").write_bytes(picture(size=(99, 30)))
    for bucket, listings in known.items():
        before = (
            {name: found.table for name, found in listings.items()},
            {name: found.rejected for name, found in listings.items()},
        )
        again = [list_items(name, str(source.parent), bucket, *before, limits) for name in MODALITIES]
        assert sum(found.hashed for found in again) == int(
            "1.png" in [item.path for item in listings["image_text"].items]
        )


@pytest.mark.parametrize("payload", [b"", b"  \n", b"zero\x00byte"])
def test_a_caption_file_without_a_caption_is_rejected_and_its_image_stays_an_image(
    source: Path, payload: bytes
) -> None:
    (source / "a.png").write_bytes(picture())
    (source / "a.txt").write_bytes(payload)
    known = list_all(source)
    assert paths(known) == {"image": ["a.png"]}
    assert reasons(known)["image_text"]["a.txt"].startswith("is no caption: ")
    assert paths(list_all(source, known)) == paths(known)
    assert reasons(list_all(source, known)) == reasons(known)
    (source / "a.txt").write_text("mended")
    assert paths(list_all(source, known)) == {"image_text": ["a.png"]}


def test_a_rejected_caption_is_a_document_once_its_image_is_gone(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    (source / "a.txt").write_text("x" * 10_001)
    known = list_all(source)
    assert "a caption at most 10000" in reasons(known)["image_text"]["a.txt"]
    (source / "a.png").unlink()
    again = list_all(source, known)
    assert (paths(again), reasons(again)) == ({"text": ["a.txt"]}, {})


def test_a_broken_image_with_a_caption_is_a_rejected_pair(source: Path) -> None:
    (source / "a.png").write_bytes(picture()[:20])
    (source / "a.txt").write_text("was a picture")
    known = list_all(source)
    assert list(reasons(known)["image_text"]) == ["a.png"]
    assert classified(source, known) == states(known)
    assert {listed.hashed for listed in list_all(source, known).values()} == {0}


def test_a_misnamed_file_goes_by_its_content_and_says_so(source: Path) -> None:
    write_sound(source / "a.mp3", tone(0.5, 44_100), codec="libmp3lame").rename(source / "a.jpg")
    (source / "b.jpg").write_bytes(picture(format="PNG"))
    (source / "c.jpeg").write_bytes(picture(format="JPEG"))
    known = list_all(source)
    assert paths(known) == {"audio": ["a.jpg"], "image": ["b.jpg", "c.jpeg"]}
    named = {item.path: item.attributes.get("named_as") for listed in known.values() for item in listed.items}
    assert named == {"a.jpg": "image/jpeg", "b.jpg": "image/jpeg", "c.jpeg": None}


def changing(path: Path, times: int) -> Callable[[Item | object, object], object]:
    real = items._item
    payloads = iter([picture(size=(40 + n, 30)) for n in range(times)])

    def read_while_it_changes(*arguments: object) -> object:
        outcome = real(*arguments)  # type: ignore[arg-type]
        payload = next(payloads, None)
        if payload is not None:
            path.write_bytes(payload)
            os.utime(path, ns=(payload[20], payload[20]))
        return outcome

    return read_while_it_changes


def test_a_file_that_changes_once_while_it_is_read_is_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "a.png").write_bytes(picture())
    monkeypatch.setattr(items, "_item", changing(source / "a.png", times=1))
    (item,) = list_all(source)["image"].items
    assert item.content_hash == hashlib.sha256((source / "a.png").read_bytes()).hexdigest()
    assert (item.size, item.modified) == listing.current_state(str(source / "a.png"))


def test_a_file_that_keeps_changing_is_rejected_until_it_rests(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "a.png").write_bytes(picture())
    with monkeypatch.context() as patched:
        patched.setattr(items, "_item", changing(source / "a.png", times=2))
        known = list_all(source)
    assert "changed while it was read" in reasons(known)["image"]["a.png"]
    assert paths(list_all(source, known)) == {"image": ["a.png"]}


def test_a_file_that_goes_away_is_rejected_not_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "a.png").write_bytes(picture())
    classified(source)
    real = items._item

    def vanish(*arguments: object) -> object:
        (source / "a.png").unlink()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(items, "_item", vanish)
    known = list_items("image", str(source.parent), "s", {}, {})
    assert [row[3] for row in known.rejected] == ["went away while it was read"]


def test_a_name_that_is_not_utf8_is_rejected_in_a_form_that_can_be_stored(source: Path) -> None:
    (source / os.fsdecode(b"caf\xe9.png")).write_bytes(picture())
    known = list_all(source)
    assert reasons(known) == {"image": {"caf\ufffd.png": "has a name that is not UTF-8: rename it"}}
    assert rejected_table(known["image"].rejected).num_rows == 1


def test_a_source_that_is_gone_has_nothing(tmp_path: Path) -> None:
    assert list_items("image", str(tmp_path), "gone", {}, {}) == Listing(ITEMS.empty_table(), [], 0, 0)
    assert classify(str(tmp_path), "gone", {}, {}) == {}


def test_any_file_system_serves() -> None:
    root = f"memory://{uuid4().hex}"
    fs = fsspec.url_to_fs(root)[0]
    fs.pipe_file(f"{root}/s/a.png", picture())
    fs.pipe_file(f"{root}/s/a.txt", b"caption")
    fs.pipe_file(f"{root}/s/b.txt", b"document")
    known = {modality: list_items(modality, root, "s", {}, {}) for modality in ("text", "image", "image_text")}
    assert paths(known) == {"text": ["b.txt"], "image_text": ["a.png"]}
    again = list_items("image_text", root, "s", {"image_text": known["image_text"].table}, {})
    assert (again.hashed, again.items) == (0, known["image_text"].items)
    fs.pipe_file(f"{root}/s/a.png", picture(size=(10, 10)))
    assert list_items("image_text", root, "s", {"image_text": again.table}, {}).hashed == 1


@pytest.mark.parametrize("place", [items, recognition, image], ids=lambda module: module.__name__)
def test_rejected_files_are_tried_again_by_other_code_and_good_ones_are_not_opened(
    source: Path, openings: list[str], monkeypatch: pytest.MonkeyPatch, place: ModuleType
) -> None:
    (source / "good.png").write_bytes(picture())
    (source / "bad.png").write_bytes(picture()[:20])
    known = list_all(source)
    assert states(known) == classified(source, known)
    monkeypatch.setattr(place, "CODE_VERSION", "another")
    assert states(known) != classified(source, known), "a run is due"
    openings.clear()
    again = list_all(source, known)
    assert set(openings) == {"bad.png"}
    assert (again["image"].hashed, reasons(again)) == (1, reasons(known))
    assert states(again) == classified(source, again)
    openings.clear()
    list_all(source, again)
    assert openings == []


def test_a_file_over_a_limit_is_tried_again_when_the_limit_is_raised(source: Path) -> None:
    (source / "a.png").write_bytes(picture())
    (source / "bad.png").write_bytes(b"\xff")
    root, low = str(source.parent), DecodingSettings(max_pixels=1000)
    listed = list_items("image", root, "s", {}, {}, low)
    assert {row[0]: row[3] for row in listed.rejected}["a.png"].endswith("the limit is decoding.max_pixels = 1000")
    rejected = {"image": listed.rejected}
    assert list_items("image", root, "s", {}, rejected, low).hashed == 0
    assert list_items("image", root, "s", {}, rejected, DecodingSettings(max_pixels=900)).hashed == 0
    was = {row[0]: rejected_state(row) for row in listed.rejected}
    assert classify(root, "s", {}, rejected, low)["image"] == was
    raised = DecodingSettings(max_pixels=1200)
    assert classify(root, "s", {}, rejected, raised)["image"] != was, "a run is due"
    again = list_items("image", root, "s", {}, rejected, raised)
    assert (again.hashed, [item.path for item in again.items]) == (1, ["a.png"])


class Locked:
    """Files that cannot be read, whoever reads: tests may run as root, who reads everything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
        real = reading._handle

        def handle(path: str) -> int:
            if os.path.basename(path) == name:
                raise OSError(code, os.strerror(code), path)
            return real(path)

        monkeypatch.setattr(reading, "_handle", handle)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_an_item_that_cannot_be_read_now_stays_as_it_was_until_it_can(
    source: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = source / "song.jpg"
    write_sound(source / "a.wav", tone(0.5, 16_000), rate=16_000).rename(path)
    known = list_all(source)
    os.utime(path, ns=(1, 1))
    with monkeypatch.context() as patched:
        Locked(patched, "song.jpg", code)
        locked = list_all(source, known)
        assert locked["audio"].items == known["audio"].items
        assert reasons(locked)["audio"]["song.jpg"].startswith(f"cannot be read now: {os.strerror(code)}; ")
        waiting = {row[0]: rejected_state(row) for row in locked["audio"].rejected}
        assert classified(source, locked) == {"audio": waiting}, "no run is requested again and again"
    mended = list_all(source, locked)
    assert (reasons(mended), paths(mended)) == ({}, {"audio": ["song.jpg"]})
    assert mended["audio"].items[0].modified.startswith("1.")


def test_a_file_that_cannot_be_read_now_does_not_have_others_opened_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "a.png").write_bytes(picture())
    (source / "table.csv").write_bytes(b"a,b")
    Locked(monkeypatch, "a.png", errno.EIO)
    recognised: list[str] = []
    real = items.recognise

    def counting(path: str, *arguments: object) -> object:
        recognised.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(items, "recognise", counting)
    for _ in range(3):
        assert list_items("image", str(source.parent), "s", {}, {}).skipped == 1
    assert Counter(recognised) == {"a.png": 3, "table.csv": 1}


@pytest.mark.parametrize("name", ["captions.jsonl", "a.txt"])
def test_captions_that_cannot_be_read_now_are_not_taken_for_removed(
    source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (source / "a.png").write_bytes(picture())
    content = json.dumps({"file_name": "a.png", "text": "words"}) if name == "captions.jsonl" else "words"
    (source / name).write_text(content)
    Locked(monkeypatch, name, errno.EIO)
    with pytest.raises(PlatformError, match=rf"captions in .*{name}: the file cannot be read now: Input/output error"):
        list_all(source)


@pytest.mark.parametrize("name", ["captions.jsonl", "a.txt"])
@pytest.mark.parametrize("times", [1, 2])
def test_captions_that_are_rewritten_while_they_are_read_are_not_taken_for_removed(
    source: Path, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    def content(text: str) -> str:
        return json.dumps({"file_name": "a.png", "text": text}) if name == "captions.jsonl" else text

    (source / "a.png").write_bytes(picture())
    (source / name).write_text(content("whole"))
    known = list_all(source)
    # A writer empties the file first, and is met at that; then it writes what it has to write.
    (source / name).write_bytes(b"")
    writes = [content("written"), content("written again")][:times]
    real = items.current_state

    def looking(uri: str) -> tuple[int, str]:
        if uri == str(source / name) and writes:
            (source / name).write_text(writes.pop(0))
        return real(uri)

    monkeypatch.setattr(items, "current_state", looking)
    if times == 2:
        with pytest.raises(PlatformError, match=rf"captions in .*{name}: the file changed while it was read, twice"):
            list_items("image_text", str(source.parent), "s", {"image_text": known["image_text"].table}, {})
        return
    listed = list_all(source, known)
    assert [item.captions for item in listed["image_text"].items] == [("written",)]
    assert reasons(listed) == {}
    assert (listed["image_text"].hashed, listed["image"].items) == (0, [])
    assert classified(source, listed) == states(listed), "the state that was read is the one that is recorded"


def test_a_file_that_grows_as_fast_as_it_is_read_comes_to_an_end(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source / "a.png"
    path.write_bytes(picture())
    real = reading.MediaFile.read

    def growing(self: reading.MediaFile, size: int = -1) -> bytes:
        with path.open("ab") as file:
            file.write(bytes(size if size == items._HASH_BLOCK_BYTES else 1))
        return real(self, size)

    with monkeypatch.context() as patched:
        patched.setattr(reading.MediaFile, "read", growing)
        known = list_all(source)
    assert "changed while it was read" in reasons(known)["image"]["a.png"]
    assert paths(list_all(source, known)) == {"image": ["a.png"]}


@pytest.mark.parametrize("times", [1, 2])
def test_a_remote_file_that_changes_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    root = f"memory://{uuid4().hex}"
    fs = fsspec.url_to_fs(root)[0]
    fs.pipe_file(f"{root}/s/a.png", picture())
    real, payloads = items._item, [picture(size=(40 + number, 30)) for number in range(times)]
    last = payloads[-1]

    def changing(*arguments: Any) -> Item:
        outcome = real(*arguments)
        if payloads:
            fs.pipe_file(f"{root}/s/a.png", payloads.pop(0))
        return outcome

    monkeypatch.setattr(items, "_item", changing)
    listed = list_items("image", root, "s", {}, {})
    if times == 1:
        assert listed.items[0].content_hash == hashlib.sha256(last).hexdigest()
    else:
        assert ["twice" in row[3] for row in listed.rejected] == [True]
        again = list_items("image", root, "s", {}, {"image": listed.rejected})
        assert again.items[0].content_hash == hashlib.sha256(last).hexdigest()
