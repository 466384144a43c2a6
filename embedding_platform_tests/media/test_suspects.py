"""Files that were being decoded when a process died: noted, suspected, decoded apart, and cleared or rejected."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media import confinement
from embedding_platform.media.limits import USUAL_LIMITS, is_crash, stands
from embedding_platform.media.suspects import Decode, noted_in

IMAGE = Decode("cut", "image", "/media/one/a.png", 10, "1.1")
OTHER = dataclasses.replace(IMAGE, uri="/media/one/ä b.png")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "notes")


@pytest.fixture(autouse=True, scope="module")
def none_idle() -> Iterator[None]:
    """No process that is left to other tests than these."""
    yield
    confinement._end_idle()


def own_process() -> int:
    return os.getpid()


def numbers(*sent: int) -> Iterator[int]:
    yield from sent


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)


def exit_with(status: int) -> None:
    os._exit(status)


def refuse(error: Exception) -> None:
    raise error


def leave_behind(folder: str, *decodes: Decode, name: str = "dead") -> Path:
    """The notes of a process that died while it did all these decodes."""
    left = Path(folder) / f"{name}.notes"
    with noted_in(folder) as mine, ExitStack() as stack:
        for decode in decodes:
            assert mine.notes is not None
            stack.enter_context(mine.notes.held(decode))
        own = max(Path(folder).glob("tmp*.notes"), key=lambda path: path.stat().st_size)
        shutil.copy(own, left)
    return left


def suspects(folder: str) -> set[Decode]:
    with noted_in(folder) as decodes:
        return set(decodes.suspects)


def test_what_a_dead_process_decoded_is_suspect_and_decoded_apart(folder: str) -> None:
    leave_behind(folder, IMAGE, OTHER)
    with noted_in(folder) as decodes:
        assert set(decodes.suspects) == {IMAGE, OTHER}
        assert decodes.one(IMAGE, own_process) != os.getpid()
        assert list(decodes.each(OTHER, numbers, 1, 2, 3)) == [1, 2, 3]
        for innocent in ({"step": "read"}, {"size": 11}, {"modified": "2.2"}, {"uri": "/media/one/b.png"}):
            assert decodes.one(dataclasses.replace(IMAGE, **innocent), own_process) == os.getpid()
    assert suspects(folder) == set()
    assert [path.name for path in Path(folder).iterdir()] == ["lock"]


def test_a_suspicion_is_lifted_although_nobody_takes_the_rest(folder: str) -> None:
    leave_behind(folder, IMAGE)
    with noted_in(folder) as decodes:
        contents = decodes.each(IMAGE, numbers, 1, 2, 3)
        assert next(contents) == 1
        contents.close()
    assert suspects(folder) == set()


def test_a_suspicion_lasts_until_the_stage_has_come_to_its_end(folder: str) -> None:
    leave_behind(folder, IMAGE, OTHER)

    def fail() -> None:
        with noted_in(folder) as decodes:
            decodes.one(IMAGE, own_process)
            raise PlatformError("something else failed")

    with pytest.raises(PlatformError):
        fail()
    assert suspects(folder) == {IMAGE, OTHER}


@pytest.mark.parametrize(
    ("function", "argument", "reason", "lasts"),
    [
        (die_by, signal.SIGSEGV, "ends the process that decodes it, by SIGSEGV: .* save it anew", True),
        (exit_with, 3, "with status 3", True),
        (die_by, signal.SIGKILL, "cannot be read now: .* was ended by SIGKILL; a later run", False),
        (refuse, MemoryError(), "cannot be read now: there is too little memory left", False),
    ],
    ids=["SIGSEGV", "a status", "SIGKILL", "memory"],
)
def test_a_suspect_whose_process_ends_is_rejected_and_stays_suspect(
    folder: str, function, argument, reason: str, lasts: bool
) -> None:
    left = leave_behind(folder, IMAGE)
    os.utime(left, (time.time() - 86_400,) * 2)
    with noted_in(folder) as decodes:
        with pytest.raises(RejectedError, match=reason) as rejection:
            decodes.one(IMAGE, function, argument)
        assert decodes.one(OTHER, own_process) == os.getpid()
    assert stands(str(rejection.value), USUAL_LIMITS) == is_crash(str(rejection.value)) == lasts
    assert suspects(folder) == {IMAGE}
    assert left.stat().st_mtime > time.time() - 3600


@pytest.mark.parametrize(
    "error", [RejectedError("is damaged"), PlatformError("mend this"), OSError(5, "the disk failed")]
)
def test_what_a_decoder_raises_apart_is_raised_here_and_lifts_the_suspicion(folder: str, error: Exception) -> None:
    leave_behind(folder, IMAGE)
    with noted_in(folder) as decodes:
        with pytest.raises(type(error)) as raised:
            decodes.one(IMAGE, refuse, error)
        assert raised.value.args == error.args
    assert suspects(folder) == set()


def test_an_error_that_cannot_travel_is_told_in_words(folder: str) -> None:
    class LocalError(Exception):
        pass

    assert str(confinement._portable(LocalError("what\nwhere"))) == "LocalError: what"


def test_what_a_living_process_decodes_is_nobody_elses_business(folder: str) -> None:
    with noted_in(folder) as first, noted_in(folder) as second:
        for mine, yours in ((first, second), (second, first)):
            contents = mine.each(IMAGE, numbers, 1, 2)
            next(contents)
            assert suspects(folder) == set(yours.suspects) == set()
            contents.close()
    assert [path.name for path in Path(folder).iterdir()] == ["lock"]


def test_a_note_lasts_as_long_as_its_decode_and_its_room_is_used_again(folder: str) -> None:
    with noted_in(folder) as decodes:
        (own,) = Path(folder).glob("*.notes")
        for number in range(5):
            one = dataclasses.replace(IMAGE, size=number)
            assert decodes.one(one, lambda: own.read_bytes().count(b"image")) == 1
        assert own.read_bytes().startswith(b"\0")
        assert own.stat().st_size < 1024


@pytest.mark.parametrize("decode", [dataclasses.replace(IMAGE, modality="text"), OTHER])
def test_documents_which_are_parsed_apart_anyway_are_not_noted(folder: str, decode: Decode) -> None:
    with noted_in(folder) as decodes:
        (own,) = Path(folder).glob("*.notes")
        assert decodes.one(decode, lambda: len(own.read_bytes()) > 0) == (decode is OTHER)


def test_a_thread_that_outlives_the_stage_goes_on(folder: str) -> None:
    with noted_in(folder) as decodes:
        contents = decodes.each(IMAGE, numbers, 1, 2)
        next(contents)
    assert list(contents) == [2]
    assert decodes.one(IMAGE, own_process) == os.getpid()


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'["cut", "image", "/media', b"[1, 2]\n", b"no JSON\n"])
def test_notes_that_a_process_did_not_finish_say_nothing(folder: str, content: bytes) -> None:
    left = leave_behind(folder, IMAGE)
    left.write_bytes(content)
    assert suspects(folder) == set()
    assert not left.exists()


def test_suspicions_that_nobody_confirms_are_forgotten_after_a_month(folder: str) -> None:
    old, new = leave_behind(folder, IMAGE, name="old"), leave_behind(folder, OTHER, name="new")
    for path, days in ((old, 31), (new, 29)):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    assert suspects(folder) == {OTHER}
    assert not old.exists()


def test_the_same_suspect_of_two_processes_is_lifted_once_for_all(folder: str) -> None:
    for name in ("first", "second"):
        leave_behind(folder, IMAGE, name=name)
    with noted_in(folder) as decodes, noted_in(folder) as concurrent:
        assert decodes.one(IMAGE, own_process) != os.getpid()
        assert concurrent.one(IMAGE, own_process) != os.getpid()
    assert suspects(folder) == set()


@pytest.mark.parametrize("uri", ["/media/" + "x" * 20_000, "/media/" + "語" * 1_360])
def test_a_note_that_finds_no_room_keeps_nothing_from_being_decoded(folder: str, uri: str) -> None:
    decode = dataclasses.replace(IMAGE, uri=uri)
    leave_behind(folder, decode)
    assert suspects(folder) == ({decode} if "語" in uri else set())


def test_without_a_folder_that_can_be_written_all_is_decoded_here(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (None, str(tmp_path / "file" / "notes")):
        with noted_in(folder) as decodes:
            assert decodes.one(IMAGE, own_process) == os.getpid()
