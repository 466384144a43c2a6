"""One look at a source for the sensors of all modalities: whom it serves, for how long, and what is kept of it."""

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.media.listing import entries_table
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.sights import Shared
from embedding_platform.watching import Watch
from embedding_platform_tests.conftest import open_platform


class Question:
    """Numbers that are counted up by one each time, and what the last one was when it was asked."""

    def __init__(self) -> None:
        self.shared = Shared[int]()
        self.last: list[int | None] = []

    def ask(self, asker: str, seconds: float = 60.0, holds: Callable[[int], bool] = lambda number: True) -> int:
        return self.shared.of(asker, seconds, self._next, holds)

    def _next(self, last: int | None) -> int:
        self.last.append(last)
        return (last or 0) + 1


def test_an_answer_serves_each_asker_once() -> None:
    question = Question()
    assert [question.ask(asker) for asker in ("a", "b", "c", "b", "a", "c", "a")] == [1, 1, 1, 2, 2, 2, 3]
    assert question.last == [None, 1, 2]


def test_an_answer_that_is_old_or_does_not_hold_serves_nobody() -> None:
    question = Question()
    assert question.ask("a") == 1
    assert question.ask("b", seconds=0.0) == 2
    assert question.ask("c", holds=lambda number: number != 2) == 3
    assert question.ask("d") == 3


def test_a_failure_is_that_of_one_asker_and_leaves_no_earlier_answer_to_share() -> None:
    question = Question()
    assert question.ask("a") == 1
    with pytest.raises(ZeroDivisionError):
        question.shared.of("a", 60.0, lambda last: 1 // 0)
    assert question.ask("b") == 2, "not what was before the failure"
    assert question.ask("a") == 2


@pytest.fixture
def letters(platform: Platform) -> Path:
    folder = Path(platform.settings.media_url) / "letters"
    folder.mkdir()
    (folder / "one.txt").write_text("The harvest was good this year.")
    return folder


def test_rounds_of_all_modalities_at_once_wait_for_one_look_at_each_source(
    platform: Platform, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(letters, letters.parent / "notes")
    walked: list[str] = []
    answers = threading.Event()

    def slow(media_root: str, source: str) -> pa.Table:
        walked.append(source)
        answers.wait(60)
        return entries_table(media_root, source)

    monkeypatch.setattr("embedding_platform.platform.entries_table", slow)
    watches = [Watch(modality) for modality in platform.modalities]
    rounds = [watch.look(platform, set(), 0.2) for watch in watches]
    assert all(one.is_under_way for one in rounds)
    assert walked == ["letters"]
    answers.set()
    for one in rounds:
        assert one.ended.wait(60)
        assert set(one.looks) == {"letters", "notes"}
    assert sorted(walked) == ["letters", "notes"]
    assert len({look.sight.looked_at for one in rounds for look in one.looks.values()}) == 2


def test_one_look_at_a_folder_serves_all_of_its_buckets(
    tmp_path: Path, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (letters / f"{number}.txt").write_text(f"Letter {number}.")
    platform = open_platform(tmp_path, listing={"buckets": {"letters": 4}})
    walked: list[str] = []

    def counted(media_root: str, source: str) -> pa.Table:
        walked.append(source)
        return entries_table(media_root, source)

    monkeypatch.setattr("embedding_platform.platform.entries_table", counted)
    sources = platform.present("text")
    assert sources == [f"letters~{number}of4" for number in range(4)]
    sights = [platform.sight(modality, source) for modality in ("text", "image") for source in sources]
    assert walked == ["letters"]
    assert [sight.holds for sight in sights] == [True] * 4 + [False] * 4
    assert len({sight.state for sight in sights[:4]}) == 4
    reconcile_files(platform.store, platform.settings.media_url, "text", sources[0], platform.settings.listing)
    again = [platform.sight("text", source) for source in sources]
    assert [sight.differs for sight in again] == [False, True, True, True]
    assert [sight.state for sight in again] == [sight.state for sight in sights[:4]]
    assert walked == ["letters"] * 2


def test_a_look_sees_what_came_before_it_and_nothing_later(platform: Platform, letters: Path) -> None:
    first = platform.sight("text", "letters")
    (letters / "two.txt").write_text("It came after that look.")
    written = os.stat(letters / "two.txt").st_ctime
    assert platform.sight("image", "letters").looked_at == first.looked_at
    then = platform.sight("text", "letters")
    assert first.state != then.state
    assert (then.changed_at, then.other_at) == (pytest.approx(written), first.looked_at)
    again = platform.sight("text", "letters")
    assert again.looked_at > then.looked_at
    assert (again.state, again.other_at) == (then.state, first.looked_at), "nothing has changed since"


def test_a_listing_that_a_run_replaced_is_compared_with_files_that_are_looked_at_anew(
    platform: Platform, letters: Path
) -> None:
    assert platform.sight("image", "letters").other_at is None
    reconcile_files(platform.store, platform.settings.media_url, "text", "letters")
    (letters / "two.txt").write_text("It is half copied.")
    seen = platform.sight("text", "letters")
    assert seen.differs
    assert seen.changed_at == pytest.approx(os.stat(letters / "two.txt").st_ctime), "so that it is left to be quiet"
    reconcile_files(platform.store, platform.settings.media_url, "text", "letters")
    assert not platform.sight("audio", "letters").differs
    assert not platform.sight("text", "letters").differs


def test_a_source_that_cannot_be_read_is_a_problem_of_every_modality_until_it_is_mended(
    platform: Platform, letters: Path
) -> None:
    media, away = letters.parent, letters.parents[1] / "away"
    assert platform.sight("text", "letters").holds
    assert platform.present("text") == ["letters"]
    media.rename(away)
    for modality in ("text", "image", "text"):
        with pytest.raises(PlatformError, match="media_root"):
            platform.sight(modality, "letters")
        with pytest.raises(PlatformError, match="media_root"):
            platform.present(modality)
    away.rename(media)
    assert platform.sight("text", "letters").holds
    assert platform.present("image") == ["letters"]


def test_what_is_kept_of_a_look_does_not_grow_with_its_source(platform: Platform, letters: Path) -> None:
    def kept(files: int) -> int:
        for number in range(files):
            (letters / f"{number}.txt").write_text(f"Letter {number} of {files}.")
        platform.sight("text", "letters")
        (shared,) = platform._folders.values()
        return len(re.sub(r"\d+\.\d+", "time", repr(shared._answer)))

    kept(0)
    assert kept(1) == kept(300)
