"""Which rejections stand and which a later run takes up again, and what of a file is decoded for those who wait."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_platform.errors import RejectedError
from embedding_platform.media.cutting import cut
from embedding_platform.media.limits import USUAL_LIMITS, Deadline, awaited, cut_off, not_now, over, stands

from .made import CUTTING, item, tone, write_sound, write_video


@pytest.mark.parametrize(
    ("name", "value", "higher"),
    [("max_seconds", 0.5, 0.75), ("max_megabytes", 8, 9), ("max_pixels", 100, 101), ("max_hours", 24.0, 24.5)],
)
def test_a_rejection_for_a_limit_stands_until_the_limit_is_raised(name: str, value: float, higher: float) -> None:
    limits = USUAL_LIMITS.model_copy(update={name: value})
    reason = str(over(limits, name, "is too much"))
    assert f"decoding.{name} = {value:g}" in reason
    assert stands(reason, limits)
    assert stands(reason, limits.model_copy(update={name: value / 2}))
    assert not stands(reason, limits.model_copy(update={name: higher}))


def test_a_rejection_for_another_limit_is_not_lifted() -> None:
    reason = str(over(USUAL_LIMITS, "max_megabytes", "is too large"))
    assert stands(reason, USUAL_LIMITS.model_copy(update={"max_pixels": 2 * USUAL_LIMITS.max_pixels}))


@pytest.mark.parametrize(
    ("reason", "is_lasting"),
    [
        ("is damaged", True),
        (str(not_now(OSError(5, "Input/output error"))), False),
        (str(not_now(PermissionError(13, "Permission denied"))), False),
        (str(cut_off("the process that parses it was ended by SIGKILL")), False),
    ],
)
def test_what_says_nothing_of_the_file_does_not_stand(reason: str, is_lasting: bool) -> None:
    assert stands(reason, USUAL_LIMITS) == is_lasting


def test_a_decode_that_is_awaited_ends_however_long_it_plays() -> None:
    with awaited(0.0):
        deadline = Deadline(USUAL_LIMITS)
        time.sleep(0.001)
        for _ in range(2):
            with pytest.raises(RejectedError, match="while somebody waits for it") as ended:
                deadline.check(played=3600.0)
            deadline.restart()
    assert stands(str(ended.value), USUAL_LIMITS)
    Deadline(USUAL_LIMITS).check(played=3600.0)


@pytest.mark.parametrize("modality", ["audio", "video", "text"])
def test_what_comes_after_the_most_segments_is_not_decoded(tmp_path: Path, modality: str) -> None:
    whole = {
        "audio": lambda: write_sound(tmp_path / "a.flac", tone(9.95, 16_000), rate=16_000, codec="flac"),
        "video": lambda: write_video(tmp_path / "a.mkv", [100, 120] * 125),
        "text": lambda: named(tmp_path / "a.txt", "Bees dance for bees. " * 400),
    }[modality]()
    cutting = replace(CUTTING, audio_window_seconds=1.0, clip_seconds=1.0)
    first = cut(modality, "s", item(whole), cutting)[:3]
    assert cut(modality, "s", item(whole), replace(cutting, most_segments=3)) == first
    if modality == "text":
        return
    payload = whole.read_bytes()
    whole.write_bytes(payload[: len(payload) * 3 // 4])
    with pytest.raises(RejectedError, match="cut short"):
        cut(modality, "s", item(whole), cutting)
    found = cut(modality, "s", item(whole), replace(cutting, most_segments=3))
    assert [(one.start, one.end) for one in found] == [(one.start, one.end) for one in first]


def named(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
