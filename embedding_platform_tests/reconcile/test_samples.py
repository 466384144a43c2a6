"""Samples of a space that are small, of several sources, and what search finds near a row."""

import numpy as np

from embedding_platform.reconcile import samples
from embedding_platform.reconcile.samples import (
    NEIGHBOURS,
    OTHER_SOURCES,
    OTHER_VECTORS,
    neighbours,
    sample_of_source,
    samples_of_others,
)
from embedding_platform.vectors.store import append
from embedding_platform_tests.inference.small_encoder import vector_of
from embedding_platform_tests.reconcile.small_lake import collect, write_text


def test_a_few_vectors_of_a_few_other_sources_are_taken(lake, monkeypatch):
    monkeypatch.setattr(samples, "OTHER_VECTORS", 2)
    for place in range(OTHER_SOURCES + 3):
        for number in range(4):
            lake.write(f"n{number}", 10 * place + number, f"other \u00e9 {place}")
        lake.run(f"other \u00e9 {place}")
    found = samples_of_others(lake.live())
    assert len(found) == OTHER_SOURCES
    assert "one" not in found
    for source, vectors in found.items():
        assert vectors.shape == (2, lake.space.model.dimension)
        own = [vector_of(path.read_text()) for path in (lake.media / source).iterdir()]
        assert all(any(np.array_equal(vector, one) for one in own) for vector in vectors)


def test_a_vector_of_another_source_that_is_not_finite_is_left_out(lake):
    lake.write("n", 9, "other")
    lake.run("other")
    bad = np.full((1, lake.space.model.dimension), np.nan, np.float32)
    append(lake.live("broken").folder, ["content"], bad, lake.fingerprint, "run", "cpu")
    assert list(samples_of_others(lake.live())) == ["other"]


def test_a_space_of_one_source_has_no_others(lake):
    assert samples_of_others(lake.live()) == {}
    assert OTHER_VECTORS * OTHER_SOURCES < 1000


def test_neighbours_are_found_in_all_sources_and_are_not_the_row_itself(client, lake):
    for number in range(5):
        lake.path(f"n{number}", "two").parent.mkdir(exist_ok=True)
        lake.path(f"n{number}", "two").write_text(lake.path(f"n{number}").read_text())
    lake.run("two")
    collect(client, lake)
    report = collect(client, lake, "two")
    found = neighbours(client, lake.target, lake.live("two"), sample_of_source(lake.live("two")), report.index)
    assert len(found) == NEIGHBOURS
    for own, near in found:
        assert own.source == "two"
        assert len(near) == NEIGHBOURS
        first = near[0]
        assert (first.source, first.segment.path) == ("one", own.segment.path), "the copy in the other source"
        assert first.score > 0.999
        assert first.segment.text == own.segment.text
        assert own.segment.segment_id not in {one.segment.segment_id for one in near}
        assert [one.score for one in near] == sorted((one.score for one in near), reverse=True)


def test_a_source_of_one_row_has_that_and_none_beside_it(client, tmp_path):
    from embedding_platform_tests.reconcile.small_lake import Lake

    lake = Lake(tmp_path)
    write_text(lake.path("alone"), 1)
    lake.run()
    report = collect(client, lake)
    ((own, near),) = neighbours(client, lake.target, lake.live(), sample_of_source(lake.live()), report.index)
    assert (own.segment.path, near) == ("alone.txt", [])


def test_a_source_without_rows_has_no_sample(client, lake):
    report = collect(client, lake)
    for path in (lake.media / "one").iterdir():
        path.unlink()
    lake.run()
    sample = sample_of_source(lake.live())
    assert sample.contents == []
    assert neighbours(client, lake.target, lake.live(), sample, report.index) == []
