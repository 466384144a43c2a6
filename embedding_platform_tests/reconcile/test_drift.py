"""What others did to our rows, told apart from what we did ourselves before we were killed."""

import pandas as pd
import pytest

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.increments import diff
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import Comparison
from embedding_platform.reconcile.drift import MOST_NAMED, ROWS, Drift, WriteAhead

PARTITION = Partition("collection", "one")


def rows(**versions: str) -> pd.Series:
    return pd.Series(versions, dtype="str")


def met(desired: pd.Series, actual: pd.Series, *altered: str) -> Comparison:
    return Comparison(actual, diff(desired, actual), pd.Index(altered, dtype="str"), 0.0)


@pytest.fixture
def ahead(tmp_path) -> WriteAhead:
    return WriteAhead(str(tmp_path), PARTITION)


def test_media_that_changed_are_no_drift(ahead):
    ahead.verify(rows(a="1", b="1", c="1"))
    assert ahead.drift(met(rows(a="1", b="2", d="1"), rows(a="1", b="1", c="1"))) == Drift()


def test_a_first_sync_meets_no_drift(ahead):
    assert not ahead.is_verified
    assert ahead.drift(met(rows(a="1"), rows())) == Drift()


@pytest.mark.parametrize(
    ("actual", "altered", "drift", "named"),
    [
        (rows(a="1"), (), Drift(dropped=1), {"b": "dropped"}),
        (rows(a="1", b="9"), (), Drift(altered=1), {"b": "altered"}),
        (rows(a="1", b="1"), ("b",), Drift(altered=1), {"b": "altered"}),
        (pd.Series(["1", "1", "1"], index=["a", "b", "b"], dtype="str"), (), Drift(altered=1), {"b": "altered"}),
        (rows(a="1", b="1", x="1"), (), Drift(added=1), {"x": "added"}),
        (rows(), (), Drift(dropped=2), {"a": "dropped", "b": "dropped"}),
    ],
)
def test_what_was_not_ours_is_drift_and_is_named(ahead, actual, altered, drift, named):
    ahead.verify(rows(a="1", b="1"))
    found = met(rows(a="1", b="1"), actual)
    if altered:
        stale = pd.Index(altered, dtype="str")
        found = Comparison(actual, diff(rows(a="1", b="2"), actual), stale, 0.0)
    assert ahead.drift(found) == drift
    assert dict(ahead.drift(found).named) == named


def test_of_many_rows_that_were_dropped_some_are_named(ahead):
    many = rows(**{f"r{number:02}": "1" for number in range(MOST_NAMED + 5)})
    ahead.verify(many)
    drift = ahead.drift(met(many, rows()))
    assert (drift.dropped, len(drift.named)) == (MOST_NAMED + 5, MOST_NAMED)


def test_what_a_killed_sync_wrote_or_deleted_is_ours(ahead):
    ahead.verify(rows(a="1", b="1", c="1"))
    meant = rows(a="2", b="1", d="1")
    ahead.intend(diff(meant, rows(a="1", b="1", c="1")), meant)
    killed = rows(a="2", b="1", d="1")
    assert ahead.drift(met(rows(a="3", b="1", c="1"), killed)) == Drift()
    ahead.intend(diff(rows(a="3", b="1", c="1"), killed), rows(a="3", b="1", c="1"))
    assert ahead.drift(met(rows(a="4"), rows(a="3", b="1", c="1", d="1"))) == Drift()
    ahead.verify(rows(a="4"))
    assert ahead.drift(met(rows(a="4"), rows(a="4", d="1"))) == Drift(added=1)


def test_a_row_that_a_killed_sync_deleted_before_it_wrote_it_again_was_dropped_by_nobody(ahead):
    ahead.verify(rows(a="1", b="1"))
    ahead.intend(diff(rows(a="2", b="1"), rows(a="1", b="1")), rows(a="2", b="1"))
    assert ahead.drift(met(rows(a="2", b="1"), rows(b="1"))) == Drift()


def test_what_is_meant_is_kept_once_however_often_it_fails(ahead, tmp_path):
    meant = rows(a="1", b="1")
    for _ in range(3):
        ahead.intend(diff(meant, rows()), meant)
    assert storage.read_table(ahead._intended, ROWS).num_rows == 2
    assert ahead.is_under_way
    ahead.verify(meant)
    assert not ahead.is_under_way


def test_a_source_is_placed_as_it_was_listed_and_as_nothing_else(ahead):
    assert not ahead.is_placed("listing 1")
    ahead.place("listing 1", None)
    assert ahead.is_placed("listing 1")
    assert not ahead.is_placed("listing 2")


def test_doubt_stands_until_a_run_that_began_after_it_ends(ahead):
    ahead.place("listing 1", None)
    met = ahead.placed()
    ahead.doubt()
    assert not ahead.is_placed("listing 1")
    with pytest.raises(PlatformError, match=r"a run that was held up wrote to .*; run again"):
        ahead.place("listing 1", met)
    assert not ahead.is_placed("listing 1")
    ahead.place("listing 1", ahead.placed())
    assert ahead.is_placed("listing 1")
