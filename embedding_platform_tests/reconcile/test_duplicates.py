"""How many copies a source may have before it is told: after its history, its space's, or the settings."""

from pathlib import Path

import pytest

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.reconcile.acceptance import accept_waiting
from embedding_platform.reconcile.duplicates import Repetition, accept_duplicates, compare_duplicates
from embedding_platform.reconcile.history import FEWEST_ACCEPTED, MOST_ACCEPTED

PLACE = ("text/small", "f" * 64)
USUAL = 0.5


def look(
    store: Path, duplicates: int, segments: int = 1000, usual: float = USUAL, source: str = "letters"
) -> Repetition:
    """One run: compare, and accept what is within its limit."""
    place = (str(store), *PLACE, source)
    found = compare_duplicates(*place, duplicates, segments, usual)
    if not found.exceeded:
        accept_duplicates(*place, found)
    return found


def accept(store: Path) -> None:
    accept_waiting(str(store), *PLACE, "letters")


def stamp(store: Path) -> tuple[int, int]:
    status = Path(layout.duplicates_url(str(store), *PLACE, "letters")).stat()
    return status.st_ino, status.st_mtime_ns


def test_without_a_history_the_settings_tell_how_many_are_many(tmp_path: Path) -> None:
    assert (look(tmp_path, 500).limit, look(tmp_path, 400).exceeded) == (USUAL, False)
    assert look(tmp_path / "other", 501).exceeded


def test_a_source_that_had_none_is_told_of_a_jump_that_the_settings_allow(tmp_path: Path) -> None:
    for number in range(FEWEST_ACCEPTED):
        assert not look(tmp_path, 0, 1000 + number).exceeded
    assert not look(tmp_path, 9).exceeded, "below what is ever told"
    jumped = look(tmp_path, 100)
    assert jumped.exceeded
    assert jumped.accepted == FEWEST_ACCEPTED + 1
    assert look(tmp_path, 100).exceeded, "until it is accepted"
    accept(tmp_path)
    assert not look(tmp_path, 100).exceeded
    assert not look(tmp_path, 101, 1010).exceeded, "and more of the same is no news"
    assert look(tmp_path, 200).exceeded


def test_few_segments_are_not_told_of_a_copy_or_two(tmp_path: Path) -> None:
    for number in range(FEWEST_ACCEPTED):
        look(tmp_path, 0, 20 + number)
    assert not look(tmp_path, 2, 27).exceeded
    assert look(tmp_path, 10, 35).exceeded


def test_a_source_that_always_had_many_is_told_until_that_is_accepted_and_then_no_more(tmp_path: Path) -> None:
    assert look(tmp_path, 300, usual=0.2).exceeded
    accept(tmp_path)
    for number in range(MOST_ACCEPTED):
        assert not look(tmp_path, 300 + number % 7, 1000 + number, usual=0.2).exceeded
    assert look(tmp_path, 400, usual=0.2).exceeded


def test_a_lively_source_may_come_back_to_what_it_had(tmp_path: Path) -> None:
    for number in range(MOST_ACCEPTED):
        look(tmp_path, 100 + 40 * (number % 5), 1000 + number)
    assert look(tmp_path, 100, 1100).exceeded is look(tmp_path, 260, 1101).exceeded is False
    assert look(tmp_path, 500).exceeded


def test_a_new_source_may_have_as_many_as_the_others_of_its_space(tmp_path: Path) -> None:
    for number in range(FEWEST_ACCEPTED):
        assert look(tmp_path, 300 + number, usual=0.5, source=f"other {number}").accepted == number
    strict = look(tmp_path, 300, usual=0.2)
    assert (strict.exceeded, strict.accepted) == (False, FEWEST_ACCEPTED)
    assert look(tmp_path / "alone", 300, usual=0.2).exceeded


def test_a_run_without_changes_writes_nothing(tmp_path: Path) -> None:
    look(tmp_path, 10)
    before = stamp(tmp_path)
    look(tmp_path, 10)
    assert stamp(tmp_path) == before
    look(tmp_path, 900)
    warned = stamp(tmp_path)
    assert warned != before
    look(tmp_path, 900)
    assert stamp(tmp_path) == warned


def test_copies_that_are_gone_again_need_not_be_accepted(tmp_path: Path) -> None:
    look(tmp_path, 10)
    assert look(tmp_path, 900).exceeded
    assert not look(tmp_path, 10).exceeded
    with pytest.raises(PlatformError, match="no change of text/small, source letters, waits"):
        accept(tmp_path)


def test_an_empty_source_has_no_share(tmp_path: Path) -> None:
    assert (look(tmp_path, 0, 0).share, look(tmp_path, 0, 0).exceeded) == (0.0, False)
    assert storage.read_bytes(layout.duplicates_url(str(tmp_path), *PLACE, "letters")) is None
