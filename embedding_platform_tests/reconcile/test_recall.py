"""Recall is measured when it may have changed, and remembered otherwise."""

import json

import numpy as np
import pytest

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError
from embedding_platform.reconcile import recall as recalls
from embedding_platform.reconcile.recall import Recall, recall_of
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import usual_index
from embedding_platform_tests.reconcile.small_lake import Lake, collect


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The number of queries of each measurement."""
    calls: list[int] = []
    measure = recalls.measure_recall

    def counted(client, partition, live, index, sample, held_out=None):
        calls.append(sample)
        return measure(client, partition, live, index, sample, held_out)

    monkeypatch.setattr(recalls, "measure_recall", counted)
    return calls


def ask(client, lake: Lake, **options) -> Recall | None:
    return recall_of(client, lake.target.partition("one"), lake.live(), lake.index, 50, **options)


def test_recall_is_measured_once_while_nothing_changes(client, lake, measured):
    collect(client, lake)
    assert measured == [50]
    assert ask(client, lake) == Recall(1.0, 1.0, 5, measured=False)
    assert ask(client, lake, rebuilt=True).measured
    lake.write("late", 10)
    lake.run()
    collect(client, lake)
    assert measured == [50] * 3


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"asked": ""}', b'{"recall": {"worst": 1}}', b"\xff"])
def test_a_torn_figure_is_a_clear_failure(client, lake, payload):
    collect(client, lake)
    url = layout.recall_url(lake.store, lake.target.collection, "one")
    kept = json.loads(storage.read_bytes(url))
    storage.write_bytes(url, payload)
    with pytest.raises(PlatformError, match=r"one\.json.*remove this file and run again"):
        ask(client, lake)
    storage.write_bytes(url, json.dumps(kept).encode())
    assert ask(client, lake) == Recall(1.0, 1.0, 5, measured=False)


def test_rows_that_changed_while_nobody_measured_are_noticed(client, lake, measured):
    collect(client, lake)
    lake.write("late", 10)
    lake.run()
    assert ask(client, lake).measured, "a run that was killed before it measured left other rows"


def test_a_large_partition_is_measured_after_many_changes_only(client, tmp_path, measured, monkeypatch):
    monkeypatch.setattr(recalls, "SMALL", 3)
    lake = Lake(tmp_path)
    for number in range(40):
        lake.write(f"n{number}", number)
    lake.run()
    collect(client, lake)
    for number, expected in ((50, 1), (51, 1), (52, 2)):
        lake.write(f"n{number}", number)
        lake.run()
        collect(client, lake)
        assert len(measured) == expected, f"after text {number}"


@pytest.mark.parametrize("search", [{"ef": 64}, {"ef": 65}])
def test_other_search_parameters_are_measured_anew(client, lake, measured, search):
    lake.index = usual_index("HNSW", {}, {"ef": 64})
    collect(client, lake)
    lake.index = usual_index("HNSW", {}, search)
    assert ask(client, lake).measured == (search["ef"] != 64)


def test_held_out_queries_are_measured_beside_stored_vectors(client, lake, measured):
    collect(client, lake)
    queries = np.eye(3, lake.space.model.dimension, dtype=np.float32)
    found = ask(client, lake, held_out=queries)
    assert found == Recall(1.0, 1.0, 5, 1.0, 1.0, held_out=3)
    assert not ask(client, lake, held_out=queries).measured
    assert ask(client, lake, held_out=queries[:2]).held_out == 2


def test_an_index_that_misses_rows_shows_in_its_recall(client, tmp_path, monkeypatch):
    """Milvus Lite searches few rows exhaustively, so that the misses are made here: each hit after the seventh."""
    search = recalls.ann_search
    monkeypatch.setattr(recalls, "ann_search", lambda *asked: [hits[:7] for hits in search(*asked)])
    lake = Lake(tmp_path)
    for number in range(20):
        lake.write(f"n{number}", number)
    lake.run()
    report = collect(client, lake)
    assert (report.recall.at_10, report.recall.at_100) == pytest.approx((0.7, 0.35))
    assert "recall@10 is 0.700, below quality.min_recall 0.95" in report.recall.shortfall(QualitySettings())
    contents = {content for content, share in report.recall.worst if share == pytest.approx(0.7)}
    assert len(contents) == recalls.MOST_WORST
    assert contents < set(lake.live().multiplicity.index)
    assert ask(client, lake).worst == report.recall.worst, "and is remembered"


def test_a_shortfall_names_figure_and_setting():
    quality = QualitySettings(min_recall=0.9, min_recall_at_100=0.8)
    assert Recall(0.9, 0.8, 5).shortfall(quality) == ""
    assert Recall(0.95, 0.7, 5, 0.5, 0.9, 3).shortfall(quality) == (
        "recall@100 is 0.700, below quality.min_recall_at_100 0.8, "
        "recall@10 of held-out queries is 0.500, below quality.min_recall 0.9"
    )


def test_hits_of_an_index_of_shortened_vectors_count_by_their_whole_vectors(client, tmp_path, monkeypatch):
    """As IVF_SQ8 gives them: scores that are off in the third digit, rows that are the right ones."""
    search = recalls.ann_search

    def rounded(*asked):
        return [[(found, score - 0.002) for found, score in hits] for hits in search(*asked)]

    monkeypatch.setattr(recalls, "ann_search", rounded)
    lake = Lake(tmp_path, index=usual_index("IVF_SQ8", {"nlist": 2}, {"nprobe": 2}))
    for number in range(30):
        lake.write(f"n{number}", number)
    lake.run()
    assert collect(client, lake).recall == Recall(1.0, 1.0, 30)
    lake.index = usual_index("IVF_FLAT", {"nlist": 2}, {"nprobe": 2})
    assert collect(client, lake).recall.at_10 < 1.0
