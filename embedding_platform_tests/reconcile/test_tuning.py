"""The cheapest search parameters that reach the floor."""

from dataclasses import replace

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.index import keep_search, tuned
from embedding_platform.reconcile import recall as recalls
from embedding_platform.reconcile.recall import Recall
from embedding_platform.reconcile.tuning import Trial, cheapest, sweep
from embedding_platform.settings import QualitySettings
from embedding_platform.spaces import usual_index
from embedding_platform_tests.reconcile.small_lake import FLAT, Lake, collect

TRIALS = [
    Trial({"ef": value}, Recall(recall, recall - 0.05, 50), 1.0) for value, recall in ((8, 0.8), (16, 0.95), (32, 0.99))
]


@pytest.mark.parametrize(("floor", "chosen"), [(0.5, 8), (0.9, 16), (0.99, 32)])
def test_the_cheapest_that_suffices_is_chosen(floor, chosen):
    quality = QualitySettings(min_recall=floor, min_recall_at_100=floor - 0.05)
    assert cheapest(TRIALS, quality).search == {"ef": chosen}


def test_none_may_suffice():
    assert cheapest(TRIALS, QualitySettings(min_recall=0.999)) is None
    assert cheapest(TRIALS, QualitySettings(min_recall=0.5, min_recall_at_100=0.95)) is None
    held_out = [replace(trial, recall=replace(trial.recall, held_out_at_10=0.6)) for trial in TRIALS]
    assert cheapest(held_out, QualitySettings(min_recall=0.7, min_recall_at_100=0)) is None


def test_a_sweep_goes_from_cheap_to_exhaustive_and_its_choice_is_kept(client, tmp_path, monkeypatch):
    """Milvus Lite searches few rows exhaustively, so that the misses are made here: each probe finds three rows."""
    search = recalls.ann_search

    def missing(client, collection, partition, queries, k, index, metric):
        return [
            hits[: 3 * index.search["nprobe"]]
            for hits in search(client, collection, partition, queries, k, index, metric)
        ]

    monkeypatch.setattr(recalls, "ann_search", missing)
    lake = Lake(tmp_path, index=usual_index("IVF_FLAT", {"nlist": 16}, {"nprobe": 1}))
    for source in ("one", "two"):
        for number in range(20):
            lake.write(f"n{number}", 1000 * (source == "two") + number, source)
        lake.run(source)
        collect(client, lake, source)
    trials = list(sweep(client, lake.target, [lake.live("one"), lake.live("two")], sample=20))
    assert [trial.search["nprobe"] for trial in trials] == [1, 2, 4, 8]
    assert [trial.recall.at_10 for trial in trials] == pytest.approx([0.3, 0.6, 1.0, 1.0])
    assert [trial.recall.at_100 for trial in trials] == pytest.approx([0.15, 0.3, 0.6, 1.0])
    chosen = cheapest(trials, QualitySettings(min_recall=0.9, min_recall_at_100=0.5))
    keep_search(client, lake.target.collection, lake.index, chosen.search)
    assert tuned(client, lake.target.collection, lake.index).search == {"nprobe": 4}
    assert collect(client, lake).recall.measured, "the recall of other parameters is another"


@pytest.mark.parametrize(
    ("index", "filled", "message"),
    [(FLAT, True, "has no search parameter"), (usual_index("HNSW", {}, {}), False, "holds no rows yet")],
)
def test_what_cannot_be_tuned_is_told(client, lake, index, filled, message):
    lake.index = index
    if filled:
        collect(client, lake)
    with pytest.raises(PlatformError, match=message):
        list(sweep(client, lake.target, [lake.live()], sample=5))
