"""Runs that are overtaken by another of the same source: none undoes what the later one did, nothing is lost."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import connect, serve
from embedding_platform.reconcile import files
from embedding_platform.reconcile.collection import holds_all
from embedding_platform_tests.faults.indexing import (
    Disturbed,
    WaitingError,
    assert_true_to_media,
    collect,
    edit,
    index,
    publish_all,
    published_texts,
    texts_in_media,
)
from embedding_platform_tests.inference.small_encoder import SmallEncoder
from embedding_platform_tests.reconcile.small_lake import Lake, counts

TESTS = Path(__file__).parents[2]


def once(method: str, deed: Callable[[], object]) -> Callable[[str], None]:
    """Do the deed before the first call of a method."""
    done = []

    def disturb(called: str) -> None:
        if called == method and not done:
            done.append(called)
            deed()

    return disturb


def another(lake: Lake) -> Lake:
    """The same lake for another run, with an encoder of its own."""
    return dataclasses.replace(lake, encoder=SmallEncoder())


def edit_again(lake: Lake) -> None:
    """Everything otherwise than `edit` left it."""
    lake.write("n1", 1)
    lake.write("n0", 102)
    lake.path("new").unlink()
    lake.write("newer", 103)


@pytest.mark.parametrize("moment", ["query", "upsert", "delete"])
def test_rows_of_an_older_listing_are_not_written_over_newer_ones(client, lake: Lake, moment: str) -> None:
    index(client, lake)
    edit(lake)
    lake.run()

    def overtake() -> None:
        edit_again(lake)
        index(client, another(lake))
        assert_true_to_media(client, lake)

    with pytest.raises(PlatformError, match=r"another run listed source one anew .*; run again") as failure:
        collect(Disturbed(client, once(moment, overtake)), lake)
    assert "\n" not in str(failure.value)
    # A call that was on its way already writes one batch; before it, nothing at all.
    harmed = published_texts(client, lake) != texts_in_media(lake)
    assert harmed == (moment != "query")
    assert holds_all(lake.target, lake.live()) == (not harmed)
    (report,) = index(client, lake)
    assert (report.sync.batches > 0) == harmed
    assert_true_to_media(client, lake)
    assert holds_all(lake.target, lake.live())


def test_a_late_write_keeps_a_run_under_way_from_taking_its_rows_for_placed(client, lake: Lake) -> None:
    index(client, lake)
    edit(lake)
    lake.run()
    is_writing, may_write = threading.Event(), threading.Event()
    refused: list[PlatformError] = []

    def wait() -> None:
        is_writing.set()
        assert may_write.wait(60)

    def write_late() -> None:
        try:
            collect(Disturbed(client, once("upsert", wait)), another(lake))
        except PlatformError as error:
            refused.append(error)

    late = threading.Thread(target=write_late)

    def let_it_write() -> None:
        may_write.set()
        late.join()

    late.start()
    assert is_writing.wait(60)
    edit_again(lake)
    lake.run()
    with pytest.raises(PlatformError, match=r"a run that was held up wrote to .*; run again"):
        collect(Disturbed(client, once("search", let_it_write)), lake)
    assert len(refused) == 1
    assert not holds_all(lake.target, lake.live())
    assert index(client, lake)[0].sync.batches > 0
    assert_true_to_media(client, lake)


def test_a_source_that_came_back_meanwhile_keeps_its_partition(client, lake: Lake) -> None:
    index(client, lake)
    kept = {path: path.read_bytes() for path in lake.media.glob("*/*")}
    for path in kept:
        path.unlink()
    lake.run()

    def overtake() -> None:
        for path, payload in kept.items():
            path.write_bytes(payload)
        index(client, another(lake))

    with pytest.raises(PlatformError, match="another run listed source one anew"):
        collect(Disturbed(client, once("query", overtake)), lake)
    assert_true_to_media(client, lake)
    assert index(client, lake)[0].sync.batches == 0


def test_an_older_listing_does_not_replace_a_newer_one(client, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    index(client, lake)
    edit(lake)
    plain, overtaken = files.list_items, []

    def held_up(*arguments):
        listing = plain(*arguments)
        if not overtaken:
            overtaken.append(True)
            edit_again(lake)
            index(client, another(lake))
        return listing

    monkeypatch.setattr(files, "list_items", held_up)
    lake.files()
    assert {item.path for item in files.stored_items(lake.store, "text", "one")} == {
        path.name for path in lake.media.glob("one/*")
    }
    assert index(client, lake)[0].sync.batches == 0
    assert_true_to_media(client, lake)


def test_compaction_keeps_what_another_run_embedded_meanwhile(client, lake: Lake) -> None:
    lake.batch = lake.batch.model_copy(update={"chunk": 1})
    for number in range(40):
        lake.write(f"many{number}", 200 + number)
    other, overtaken = another(lake), []

    def overtake(content: object) -> None:
        if not overtaken:
            overtaken.append(content)
            lake.write("new", 300)
            other.run()

    lake.files()
    lake.segments()
    lake.encoder.refuse = overtake
    lake.embeddings()
    embedded = lake.encoder.embedded + other.encoder.embedded
    index(client, lake)
    assert_true_to_media(client, lake)
    assert lake.encoder.embedded + other.encoder.embedded == embedded
    assert counts(lake.embeddings()) == (0, 0, 0, 46)


def test_an_alias_that_moved_on_is_not_moved_back(client, lake: Lake) -> None:
    index(client, lake)
    older, newer = another(lake), another(lake)
    older.fingerprint, newer.fingerprint = "d" * 64, "e" * 64
    older.run()
    collect(client, older)

    def overtake() -> None:
        index(client, newer)

    with pytest.raises(PlatformError, match=r"somebody else moved the alias text_small .*; run again"):
        publish_all(Disturbed(client, once("query", overtake)), older)
    assert alias_target(client, newer.target.alias) == newer.target.collection
    assert_true_to_media(client, newer)


def test_two_runs_at_once_end_well_or_in_one_line_and_lose_nothing(client, lake: Lake) -> None:
    for number in range(60):
        lake.write(f"many{number}", 200 + number)
    lakes = [another(lake), another(lake)]
    errors: list[Exception] = []

    def run(mine: Lake) -> None:
        try:
            index(client, mine)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            errors.append(error)

    for turn in range(3):
        threads = [threading.Thread(target=run, args=(mine,)) for mine in lakes]
        for thread in threads:
            thread.start()
        if turn:
            lake.write(f"meanwhile{turn}", 300 + turn)
        for thread in threads:
            thread.join()
    assert [error for error in errors if not isinstance(error, PlatformError | WaitingError)] == []
    assert not [error for error in errors if "\n" in str(error)]
    index(client, lake)
    assert_true_to_media(client, lake)
    embedded = lake.encoder.embedded
    assert index(client, lake)[0].sync.batches == 0
    assert lake.encoder.embedded == embedded


HELD_UP = """
import os, signal, sys
from pathlib import Path
from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import connect
from embedding_platform_tests.faults.indexing import Disturbed, collect
from embedding_platform_tests.faults.test_late_runs import once
from embedding_platform_tests.reconcile.small_lake import Lake

lake = Lake(Path(sys.argv[1]))
lake.run()
stop = once(sys.argv[3], lambda: os.kill(os.getpid(), signal.SIGSTOP))
try:
    collect(Disturbed(connect(sys.argv[2]), stop), lake)
except PlatformError as error:
    sys.exit(str(error))
"""


def test_a_process_that_was_stopped_and_goes_on_late_does_no_lasting_harm(tmp_path: Path, lake: Lake) -> None:
    directory = str(tmp_path / "milvus")
    with serve(directory):
        client = connect(directory)
        index(client, lake)
        edit(lake)
        late = subprocess.Popen(
            [sys.executable, "-c", HELD_UP, str(lake.root), directory, "upsert"],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, status = os.waitpid(late.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            edit_again(lake)
            index(client, lake)
            assert_true_to_media(client, lake)

            os.kill(late.pid, signal.SIGCONT)
            _, said = late.communicate(timeout=60)
        finally:
            late.kill()
            late.wait()
        assert late.returncode == 1
        assert "another run listed source one anew" in said
        assert len(said.strip().splitlines()) == 1
        (report,) = index(client, lake)
        assert 0 < report.sync.counts["stale"] + report.sync.counts["orphaned"] + report.sync.counts["new"] <= 3
        assert_true_to_media(client, lake)
