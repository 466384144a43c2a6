"""How long a source is said to be behind, whatever made it so and however often it is listed meanwhile."""

import os
import time

import pytest

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.reconcile import probing
from embedding_platform.reconcile.probing import probe
from embedding_platform_tests.reconcile.small_lake import Lake, collect

HOUR = 3600.0


@pytest.fixture
def behind(client, monkeypatch):
    """A function that probes a lake so many hours from now: the hours that each source is behind."""

    def found(lake: Lake, hours: float, *sources: str) -> dict[str, float]:
        now = time.time()
        with monkeypatch.context() as patched:
            patched.setattr(probing.time, "time", lambda: now + hours * HOUR)
            probed = probe(client, lake.store, lake.target, sources or ("one",), lake.live, 10, "turn")
        return {source: round(seconds / HOUR, 1) for source, seconds in probed.seconds_behind.items()}

    return found


def test_after_a_change_of_model_a_source_that_was_listed_long_ago_is_behind_since_then_only(client, lake, behind):
    collect(client, lake)
    assert behind(lake, 0) == {}
    for folder in (layout.items_folder(lake.store, "text"),):
        for name in os.listdir(folder):
            os.utime(os.path.join(folder, name), (0, time.time() - 720 * HOUR))
    collect(client, lake)
    lake.fingerprint = "e" * 64
    assert behind(lake, 1) == {"one": 0.0}
    assert behind(lake, 3) == {"one": 2.0}


def test_a_busy_source_whose_runs_fail_is_behind_since_the_first_of_its_listings(client, lake, behind):
    collect(client, lake)
    for hours in range(4):
        lake.write(f"late{hours}", 20 + hours)
        lake.files()
        assert behind(lake, hours) == {"one": float(hours)}


def test_a_source_that_was_held_in_between_is_behind_since_it_was_listed_again(client, lake, behind):
    collect(client, lake)
    lake.write("late", 20)
    lake.files()
    assert behind(lake, 0) == {"one": 0.0}
    lake.run()
    collect(client, lake)
    lake.write("later", 21)
    lake.files()
    assert behind(lake, 5) == {"one": 5.0}
    lake.run()
    collect(client, lake)
    assert behind(lake, 6) == {}
    assert storage.read_bytes(layout.behind_url(lake.store, lake.target.collection)) == b"{}"


def test_a_new_source_that_never_arrives_is_behind_since_a_probe_met_it(client, lake, behind):
    collect(client, lake)
    lake.write("a", 30, "two")
    lake.files("two")
    assert behind(lake, 0, "one", "two") == {"two": 0.0}
    assert behind(lake, 2, "one", "two") == {"two": 2.0}


@pytest.mark.parametrize("payload", [b"{", b"[]", b'{"one": null}', b"\xff"])
def test_a_torn_note_is_a_clear_failure(client, lake, behind, payload):
    collect(client, lake)
    storage.write_bytes(layout.behind_url(lake.store, lake.target.collection), payload)
    with pytest.raises(PlatformError, match=r"behind\.json.*remove this file"):
        behind(lake, 0)
