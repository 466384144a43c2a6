"""Every bad kind of file by itself: listed, cut and read, with its reason, beside a good one."""

import dataclasses
import faulthandler
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from embedding_platform.errors import RejectedError
from embedding_platform.media import cutting
from embedding_platform.media.items import classify, list_items
from embedding_platform.settings import DecodingSettings
from embedding_platform.spaces import MODALITIES

from .bad_kinds import INDEXED, KINDS, Kind
from .made import CUTTING, picture

SECONDS = 120.0

GOOD = ("good.png", "good.md")

Outcome = TypeVar("Outcome")


def in_time(work: Callable[[], Outcome]) -> Outcome:
    """What `work` returns or raises; a failure, with all stacks, if it goes on for too long."""
    done: list[Outcome] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        faulthandler.dump_traceback()
        pytest.fail(f"still at work after {SECONDS} s")
    for error in failed:
        raise error
    return done[0]


def verdicts(source: Path, limits: DecodingSettings) -> dict[str, str]:
    """INDEXED or the reason, by path, of all that a source holds; good files are cut by the usual limits."""
    found: dict[str, str] = {}
    root, by_limits = str(source.parent), dataclasses.replace(CUTTING, decoding=limits)
    for modality in MODALITIES:
        listing = list_items(modality, root, source.name, {}, {}, limits)
        found |= {path: reason for path, _, _, reason in listing.rejected}
        for item in listing.items:
            chosen = CUTTING if item.path in GOOD else by_limits
            try:
                segments = cutting.cut(modality, source.name, item, chosen)
                contents = sum(1 for _ in cutting.read(modality, segments, chosen.decoding))
            except RejectedError as error:
                found[item.path] = str(error)
                continue
            assert contents == len(segments) > 0
            for segment in segments:
                assert segment.text is None or segment.text == segment.text.encode().decode().replace("\0", "")
            found[item.path] = INDEXED
    assert {path for paths in classify(root, source.name, {}, {}, limits).values() for path in paths} == set(found)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_bad_file_gets_its_verdict_and_stops_nobody(tmp_path: Path, kind: Kind) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "good.png").write_bytes(picture())
    (source / "good.md").write_text("Good words.")
    kind.make(source / kind.name)
    found = in_time(lambda: verdicts(source, kind.limits))
    shown = kind.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    expected = {**dict.fromkeys(GOOD, INDEXED), **kind.others} | ({shown: kind.verdict} if kind.verdict else {})
    assert found.keys() == expected.keys()
    for path, verdict in expected.items():
        assert re.search(verdict, found[path]), (path, found[path])
        assert found[path] == INDEXED or verdict != INDEXED
        if verdict != INDEXED:
            assert len(found[path]) > 10
            assert "\n" not in found[path]
            assert not re.match(r"\w*(Error|Exception)\b", found[path]), found[path]


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 120
