"""Files, segments and embeddings of one source, over real media and a small encoder."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from embedding_platform import layout, memory, storage
from embedding_platform.errors import PlatformError
from embedding_platform.media.cutting import code_version
from embedding_platform.media.listing import entries_table
from embedding_platform.reconcile import embeddings as embeddings_stage
from embedding_platform.reconcile import files as files_stage
from embedding_platform.reconcile.embeddings import embeddings_increment, reconcile_embeddings
from embedding_platform.reconcile.files import (
    classify_source,
    files_increment,
    items_table,
    listed_sources,
    listing_age,
    present_sources,
    reconcile_files,
    stored_items,
)
from embedding_platform.reconcile.segments import (
    iterate_live_segments,
    live_segments,
    reconcile_segments,
    segments_increment,
)
from embedding_platform.records import SEGMENTS, row_version, segments
from embedding_platform.settings import BatchSettings, DecodingSettings, ListingSettings
from embedding_platform.vectors import store as vector_store
from embedding_platform.vectors.judged import judge_stored
from embedding_platform_tests.convergence.crash_points import BY_NAME, Crash, armed
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder
from embedding_platform_tests.reconcile.small_lake import CUTTING, FINGERPRINT, Lake, counts, space_of, write_text


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path)


@pytest.fixture(params=["text", "image", "audio"])
def any_lake(request, tmp_path):
    return Lake(tmp_path, request.param)


def vectors_of(lake: Lake, source: str = "one") -> dict[str, np.ndarray]:
    folder = layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, source)
    wanted = vector_store.stored_hashes(folder, lake.fingerprint)
    return {
        content: vector
        for part in vector_store.iterate(folder, DIMENSION, wanted, lake.fingerprint)
        for content, vector in zip(part.hashes, part.vectors, strict=True)
    }


def test_add_edit_rename_and_delete_are_exactly_the_increment(any_lake):
    lake = any_lake
    for number in range(4):
        lake.write(f"n{number}", number)
    for report in lake.run():
        assert counts(report) == (4, 0, 0, 0)
    assert lake.encoder.embedded == 4

    lake.write("added", 10)
    lake.write("n0", 11)
    lake.path("n1").rename(lake.path("renamed"))
    lake.path("n2").unlink()
    files, segments, embeddings = lake.run()
    assert counts(files) == counts(segments) == (2, 1, 2, 1)
    assert counts(embeddings) == (2, 0, 2, 2)
    assert lake.encoder.embedded == 4 + 2
    assert (segments.segments, embeddings.contents, embeddings.missing) == (4, 4, [])


def test_a_run_without_a_difference_writes_nothing_and_loads_no_model(any_lake):
    lake = any_lake
    for number in range(3):
        lake.write(f"n{number}", number)
    first = [report.data_version for report in lake.run()]
    before, loads = lake.stored_files(), lake.loads
    second = lake.run()
    assert [report.increment.is_empty for report in second] == [True] * 3
    assert [report.data_version for report in second] == first
    assert lake.stored_files() == before
    assert lake.loads == loads == 1


def test_each_stage_tells_its_increment_beforehand_without_doing_it(lake):
    lake.write("a", 1)
    lake.write("b", 2)
    lake.run()
    lake.write("b", 3)
    lake.write("c", 4)
    lake.path("a").unlink()
    before = lake.stored_files()
    seen = classify_source(lake.store, str(lake.media), "one")["text"]
    assert files_increment(lake.store, "text", "one", seen).counts() == {
        "new": 1,
        "stale": 1,
        "orphaned": 1,
        "unchanged": 0,
    }
    assert lake.stored_files() == before
    lake.files()
    assert list(segments_increment(lake.store, "text", "one", lake.cutting).new) == ["c.txt"]
    lake.segments()
    assert len(embeddings_increment(lake.store, lake.space, "one", FINGERPRINT, lake.cutting).new) == 2


@pytest.mark.parametrize(
    ("limit", "value", "repeated"),
    [("ITEMS_PER_CHUNK", 3, 2), ("BYTES_PER_CHUNK", 1, 1), ("SECONDS_PER_CHUNK", -1.0, 1)],
)
def test_a_listing_that_was_killed_reads_at_most_a_chunk_of_files_again(lake, monkeypatch, limit, value, repeated):
    monkeypatch.setattr(f"embedding_platform.media.items.{limit}", value)
    for number in range(9):
        lake.write(f"n{number}", number)
    lake.path("n1").write_bytes(b" ")
    with armed([BY_NAME["after hashing a file"]], 8), pytest.raises(Crash):
        lake.files()
    lake.write("n2", 100)
    resumed = lake.files()
    assert resumed.hashed == repeated + 2, (
        "besides what was not kept, the one that was not reached and the one that changed"
    )
    assert (counts(resumed), len(resumed.rejected)) == ((8, 0, 0, 0), 1)
    assert not [path for path in lake.stored_files() if "examined" in path]
    assert lake.files().hashed == 0
    (lake.root / "again").mkdir()
    fresh = reconcile_files(str(lake.root / "again"), str(lake.media), "text", "one")
    assert (fresh.items, fresh.rejected) == (resumed.items, resumed.rejected)


def test_where_memory_is_short_chunks_are_smaller_and_hold_the_same(tmp_path, monkeypatch):
    lakes = [Lake(tmp_path / name) for name in ("plenty", "short")]
    done: list[list[int]] = []
    shards: list[int] = []
    for lake, available in zip(lakes, (2**40, 0), strict=True):
        monkeypatch.setattr(memory, "available_bytes", partial(int, available))
        monkeypatch.setattr(memory, "LEAST_BYTES", 1)
        lake.batch = BatchSettings()
        for number in range(6):
            lake.write(f"n{number}", number)
        lake.files()
        done.append([])
        reconcile_segments(lake.store, "text", "one", lake.cutting, progress=lambda count, _: done[-1].append(count))
        lake.embeddings()
        folder = layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, "one")
        shards.append(len(storage.table_names(folder)))
    assert done == [[6], [1, 2, 3, 4, 5, 6]]
    assert shards == [1, 6]
    columns = ["segment_id", "text", "content_hash", "row_version"]
    first, second = (
        live_segments(lake.store, "text", "one", lake.cutting, columns).sort_by("segment_id") for lake in lakes
    )
    assert first.num_rows == 6
    assert first.equals(second)
    plenty, short = map(vectors_of, lakes)
    assert plenty.keys() == short.keys()
    assert all(np.array_equal(plenty[content], short[content]) for content in plenty)


def test_touching_a_file_changes_its_listing_and_nothing_else(lake):
    path = lake.write("a", 1)
    lake.run()
    os.utime(path, ns=(1, 1))
    age = listing_age(lake.store, "text", "one")
    files, segments, embeddings = lake.run()
    assert [counts(report) for report in (files, segments, embeddings)] == [(0, 0, 0, 1)] * 3
    assert listing_age(lake.store, "text", "one") != age
    assert lake.files().hashed == 0


def test_equal_content_is_embedded_once_and_reported_as_duplicate(lake):
    for name in ("a", "b", "c"):
        lake.write(name, 1)
    _, segments, embeddings = lake.run()
    assert (segments.segments, embeddings.contents, embeddings.duplicates, lake.encoder.embedded) == (3, 1, 2, 1)


def test_contents_that_several_segments_share_are_named_the_most_frequent_first(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.embeddings.MOST_REPEATED", 2)
    for seed, copies in ((1, 2), (2, 1), (3, 4), (4, 3)):
        for copy in range(copies):
            lake.write(f"n{seed}-{copy}", seed)
    _, _, embeddings = lake.run()
    table = live_segments(lake.store, "text", "one", lake.cutting, ["path", "content_hash"])
    content_of = dict(zip(table["path"].to_pylist(), table["content_hash"].to_pylist(), strict=True))
    assert embeddings.repeated == [(content_of["n3-0.txt"], 4), (content_of["n4-0.txt"], 3)]
    assert embeddings.duplicates == 1 + 3 + 2


def test_reports_tell_where_the_time_went_how_many_bytes_and_some_of_what_is_new(any_lake):
    for number in range(3):
        any_lake.write(f"n{number}", number)
    files, segments, embeddings = any_lake.run()
    assert segments.bytes_read == sum(item.size for item in files.items) > 0
    assert sorted(segment.path for segment in segments.some) == sorted(item.path for item in files.items)
    assert embeddings.bytes_stored == 4 * any_lake.space.model.dimension * embeddings.embedded > 0
    assert files.seconds > 0
    assert segments.seconds.keys() == {"total", "cut", "decode"}
    assert {"total", "load", "embedded", "decode", "prepare", "model", "store", "judge"} == embeddings.seconds.keys()
    assert min([*segments.seconds.values(), *embeddings.seconds.values()]) >= 0
    _, segments, embeddings = any_lake.run()
    assert (segments.bytes_read, segments.some, embeddings.bytes_stored) == (0, [], 0)
    assert segments.seconds.keys() == {"total"}
    assert embeddings.seconds.keys() == {"total", "judge"}


def test_no_more_new_segments_are_told_than_can_be_shown_and_one_of_each_file(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.segments.MOST_EXAMPLES", 3)
    for number in range(5):
        write_text(lake.path(f"n{number}"), number, paragraphs=4)
    lake.files()
    some = lake.segments().some
    assert [segment.position for segment in some] == [0, 0, 0]
    assert len({segment.path for segment in some}) == 3


def test_content_that_moves_to_another_source_takes_its_vector_along(any_lake):
    lake = any_lake
    for number in range(3):
        lake.write(f"n{number}", number)
    lake.run()
    vectors = vectors_of(lake)
    lake.path("n0", "two").parent.mkdir()
    for number in range(3):
        lake.path(f"n{number}").rename(lake.path(f"n{number}", "two"))
    lake.run("one")
    _, _, embeddings = lake.run("two")
    assert (embeddings.reused, embeddings.embedded, lake.loads) == (3, 0, 1)
    for content, vector in vectors_of(lake, "two").items():
        np.testing.assert_array_equal(vector, vectors[content])
    assert listed_sources(lake.store, lake.modality) == ["two"]


def test_a_source_that_went_away_empties_every_stage(lake):
    path = lake.write("a", 1)
    lake.run()
    path.unlink()
    path.parent.rename(lake.media / "empty")
    files, segments, embeddings = lake.run()
    assert [counts(report) for report in (files, segments, embeddings)] == [(0, 0, 1, 0)] * 3
    assert (segments.segments, embeddings.contents, listed_sources(lake.store, "text")) == (0, 0, [])


GUARD = ListingSettings(large_source=3)


def test_a_large_source_whose_folder_is_there_and_empty_keeps_its_last_listing(lake):
    for name in ("a", "b"):
        lake.write(name, 1)
    (lake.media / "one" / "bad.png").write_bytes(b"no picture")
    for modality in ("text", "image"):
        reconcile_files(lake.store, str(lake.media), modality, "one", GUARD)
    lake.write("other", 2, "two")
    lake.files("two")
    (lake.media / "one").rename(lake.root / "unmounted")
    (lake.media / "one").mkdir()
    (lake.media / "one" / "lost+found").mkdir()
    before = lake.stored_files()
    told = r"^source one under .*media holds no media, but 3 files were listed there before; .* listing\.allow_emptied"
    for modality in ("text", "image", "audio"):
        with pytest.raises(PlatformError, match=told):
            reconcile_files(lake.store, str(lake.media), modality, "one", GUARD)
    assert lake.stored_files() == before
    lake.path("other", "two").unlink()
    assert counts(reconcile_files(lake.store, str(lake.media), "text", "two", GUARD)) == (0, 0, 1, 0), "small"

    allowed = GUARD.model_copy(update={"allow_emptied": ["one"]})
    assert counts(reconcile_files(lake.store, str(lake.media), "text", "one", allowed)) == (0, 0, 2, 0)


def test_a_large_source_is_emptied_when_its_folder_is_gone_or_one_file_is_left(lake):
    for name in ("a", "b", "c", "d"):
        lake.write(name, 1)
    lake.files()
    for name in ("a", "b", "c"):
        lake.path(name).unlink()
    assert counts(reconcile_files(lake.store, str(lake.media), "text", "one", GUARD)) == (0, 0, 3, 1)
    for name in ("a", "b", "c"):
        lake.write(name, 1)
    lake.files()
    (lake.media / "one").rename(lake.root / "elsewhere")
    (lake.media / "two").mkdir()
    assert counts(reconcile_files(lake.store, str(lake.media), "text", "one", GUARD)) == (0, 0, 4, 0)


def test_a_linked_source_whose_disk_is_away_keeps_its_last_listing_however_small(lake):
    lake.write("a", 1)
    lake.write("a", 1, "two")
    disk = lake.root / "disk"
    (lake.media / "one").rename(disk)
    (lake.media / "one").symlink_to(disk)
    assert counts(lake.files()) == (1, 0, 0, 0)
    before = lake.stored_files()
    disk.rename(lake.root / "unmounted")
    with pytest.raises(PlatformError, match=r"source one under .*media is a link to .*disk, where nothing is"):
        lake.files()
    assert lake.stored_files() == before
    (lake.media / "one").unlink()
    assert counts(lake.files()) == (0, 0, 1, 0)


def test_a_large_source_that_an_object_store_no_longer_shows_keeps_its_last_listing(tmp_path):
    place = f"memory://{tmp_path.name}-emptied"
    for name in ("one/a", "one/b", "one/c", "two/a"):
        storage.write_bytes(f"{place}/media/{name}.txt", b"words")
    arguments = (f"{place}/store", f"{place}/media", "text", "one")
    assert len(reconcile_files(*arguments, GUARD).items) == 3
    fs, folder = storage.file_system(f"{place}/media/one")
    fs.rm(folder, recursive=True)
    with pytest.raises(PlatformError, match=r"source one under .* holds no media, but 3 files were listed"):
        reconcile_files(*arguments, GUARD)
    allowed = GUARD.model_copy(update={"allow_emptied": ["one"]})
    assert counts(reconcile_files(*arguments, allowed)) == (0, 0, 3, 0)


def test_a_large_source_is_emptied_at_once_where_others_share_its_files_now(lake):
    for number in range(12):
        lake.write(f"file {number}", number)
    arguments = (lake.store, str(lake.media), "text")
    whole = {item.path for item in reconcile_files(*arguments, "one", GUARD).items}
    shared = GUARD.model_copy(update={"buckets": {"one": 2}})
    assert present_sources(lake.store, str(lake.media), shared) == ["one~0of2", "one~1of2"]
    assert counts(reconcile_files(*arguments, "one", shared)) == (0, 0, 12, 0)
    reports = [reconcile_files(*arguments, source, shared) for source in ("one~0of2", "one~1of2")]
    parts = [{item.path for item in report.items} for report in reports]
    assert all(parts)
    assert (parts[0] | parts[1], parts[0] & parts[1]) == (whole, set())
    large = shared.model_copy(update={"large_source": 12})
    for path in parts[0]:
        (lake.media / "one" / path).rename(lake.root / path)
    assert counts(reconcile_files(*arguments, "one~0of2", large)) == (0, 0, len(parts[0]), 0), "the others are there"
    for path in parts[0]:
        (lake.root / path).rename(lake.media / "one" / path)
    reconcile_files(*arguments, "one~0of2", large)
    for path in whole:
        (lake.media / "one" / path).unlink()
    (lake.media / "one" / "lost+found").mkdir()
    for source in ("one~0of2", "one~1of2"):
        told = (
            rf"^source {source} under .* but 12 files were listed there before; .* name one in listing\.allow_emptied"
        )
        with pytest.raises(PlatformError, match=told):
            reconcile_files(*arguments, source, large)
    allowed = large.model_copy(update={"allow_emptied": ["one"]})
    assert counts(reconcile_files(*arguments, "one~0of2", allowed)) == (0, 0, len(parts[0]), 0)


def test_a_bucket_is_emptied_at_once_where_no_name_of_its_folder_tells_what_is_in_it(tmp_path):
    lake = Lake(tmp_path, "image")
    for number in range(12):
        lake.write(f"file {number}", number)
    for file in (lake.media / "one").iterdir():
        file.rename(file.with_suffix(""))
    guard = ListingSettings(buckets={"one": 2}, large_source=12)
    listed = [
        reconcile_files(lake.store, str(lake.media), lake.modality, name, guard) for name in ("one~0of2", "one~1of2")
    ]
    assert sum(len(report.items) for report in listed) == 12
    for item in listed[0].items:
        (lake.media / "one" / item.path).unlink()
    emptied = reconcile_files(lake.store, str(lake.media), lake.modality, "one~0of2", guard)
    assert counts(emptied) == (0, 0, len(listed[0].items), 0)


def test_a_disk_that_comes_back_while_a_bucket_is_listed_empties_nothing(lake, monkeypatch):
    for number in range(12):
        lake.write(f"file {number}", number)
    guard = ListingSettings(buckets={"one": 2}, large_source=12)
    arguments = (lake.store, str(lake.media), lake.modality, "one~0of2", guard)
    before = reconcile_files(*arguments).items
    away, here = lake.root / "away", lake.media / "one"
    here.rename(away)
    here.mkdir()

    def mounted_again(media_root: str, source: str, *counts: object) -> pa.Table:
        if source == "one":
            here.rmdir()
            away.rename(here)
        return entries_table(media_root, source, *counts)

    monkeypatch.setattr(files_stage, "entries_table", mounted_again)
    with pytest.raises(PlatformError, match=r"^source one~0of2 under .* changed while it was listed; run again$"):
        reconcile_files(*arguments)
    assert stored_items(lake.store, lake.modality, "one~0of2") == before


def test_a_folder_with_the_name_of_a_bucket_is_told_before_anything_is_listed(lake):
    lake.write("a", 1, "one~0of2")
    with pytest.raises(PlatformError, match=r"^folder one~0of2 under .* stands for a part of folder one; rename it$"):
        present_sources(lake.store, str(lake.media))


def test_an_item_over_a_limit_is_cut_when_the_limit_is_raised(tmp_path):
    lake = Lake(tmp_path, "image")
    lake.write("a", 1)
    lake.files()
    low, high = (dataclasses.replace(CUTTING, decoding=DecodingSettings(max_pixels=limit)) for limit in (10, 1000))
    assert code_version("image", low) == code_version("image", high)
    lake.cutting = low
    assert [row[3] for row in lake.segments().rejected] == [
        "has too many pixels, 16 x 12: the limit is decoding.max_pixels = 10"
    ]
    assert counts(lake.segments()) == (0, 0, 0, 1)
    lake.cutting = high
    report = lake.segments()
    assert (report.segments, report.rejected, counts(report)) == (1, [], (1, 0, 0, 0))
    assert lake.embeddings().missing == []


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_media_root_without_any_folder_is_taken_for_a_disk_that_is_not_mounted(tmp_path, modality):
    lake = Lake(tmp_path, modality)
    lake.media.mkdir()
    assert present_sources(lake.store, str(lake.media)) == []
    assert lake.files().items == []

    lake.write("a", 1)
    lake.write("a", 1, "two")
    for source in ("one", "two"):
        lake.run(source)
    before = lake.stored_files()
    lake.media.rename(tmp_path / "unmounted")
    lake.media.mkdir()
    for look in (lambda: present_sources(lake.store, str(lake.media)), lake.files, lambda: lake.files("two")):
        with pytest.raises(PlatformError, match=r"media holds no folder, but 2 sources were indexed from it; mount it"):
            look()
    assert lake.stored_files() == before

    one, both = (ListingSettings(allow_emptied=names) for names in (["one"], ["one", "two"]))
    with pytest.raises(PlatformError, match=r"2 sources were indexed from it; .* listing\.allow_emptied"):
        reconcile_files(lake.store, str(lake.media), modality, "one", one)
    assert present_sources(lake.store, str(lake.media), both) == []
    assert counts(reconcile_files(lake.store, str(lake.media), modality, "two", both)) == (0, 0, 1, 0)

    (lake.media / "empty").mkdir()
    assert present_sources(lake.store, str(lake.media)) == ["empty"]
    assert counts(lake.files()) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("fault", "spoilt"),
    [
        ("finite", np.full(DIMENSION, np.nan, np.float32)),
        ("zero", np.zeros(DIMENSION, np.float32)),
    ],
)
def test_an_unsound_vector_is_recorded_and_not_tried_again(lake, fault, spoilt):
    lake.encoder = SmallEncoder(spoil=lambda content, vector: spoilt if content.startswith("2 ") else vector)
    lake.batch = lake.batch.model_copy(update={"text": 1})
    for number in range(4):
        lake.write(f"n{number}", number)
    _, _, embeddings = lake.run()
    ((path, uri, content, reason),) = embeddings.rejected
    assert (path, uri) == ("n2.txt", str(lake.path("n2")))
    assert reason.startswith(f"{fault}: small gave ")
    assert embeddings.faults[fault] == [content]
    assert (embeddings.embedded, embeddings.missing, len(vectors_of(lake))) == (3, [], 3)

    before, calls = lake.stored_files(), lake.encoder.embedded
    _, _, again = lake.run()
    assert (again.rejected, again.faults[fault]) == (embeddings.rejected, [content])
    assert lake.encoder.embedded == calls
    assert lake.stored_files() == before

    lake.path("n2").unlink()
    _, _, gone = lake.run()
    assert (gone.rejected, gone.faults[fault]) == ([], [])


def test_norms_are_judged_as_the_model_gives_them_where_the_space_does_not_normalise(lake, monkeypatch):
    lake.encoder = SmallEncoder(spoil=lambda content, vector: vector * 3)
    monkeypatch.setattr(Lake, "space", property(lambda self: space_of("text", normalised=False)))
    lake.write("a", 1)
    _, _, embeddings = lake.run()
    assert embeddings.rejected[0][3] == "norm: norm 3.0000 lies outside text/small's band 0.999 to 1.001"
    assert vectors_of(lake) == {}


def test_vectors_are_normalised_where_the_space_says_so(lake):
    lake.encoder = SmallEncoder(spoil=lambda content, vector: vector * 3)
    lake.write("a", 1)
    lake.run()
    (vector,) = vectors_of(lake).values()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_a_rejection_is_durable_with_its_chunk(lake, monkeypatch):
    lake.encoder = SmallEncoder(spoil=lambda content, vector: vector * 0 if content.startswith("0 ") else vector)
    lake.batch = BatchSettings(chunk=2, text=1)
    for number in range(6):
        lake.write(f"n{number}", number)
    lake.files()
    lake.segments()
    with monkeypatch.context() as patch:
        patch.setattr("embedding_platform.reconcile.embeddings.vector_store.compact", _die)
        with pytest.raises(KeyboardInterrupt):
            lake.embeddings()
    embeddings = lake.embeddings()
    assert (embeddings.embedded, embeddings.increment.counts()["unchanged"], lake.encoder.embedded) == (0, 6, 6)
    assert [row[0] for row in embeddings.rejected] == ["n0.txt"]


@pytest.mark.parametrize(
    ("limits", "chunks"),
    [
        ({}, [6]),
        ({"ITEMS_PER_CHUNK": 4}, [4, 6]),
        ({"BYTES_PER_CHUNK": 1}, [1, 2, 3, 4, 5, 6]),
        ({"SECONDS_PER_CHUNK": 0.0}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_chunk_of_cut_items_is_full_by_number_by_bytes_or_by_time(lake, monkeypatch, limits, chunks):
    for name, limit in limits.items():
        monkeypatch.setattr(f"embedding_platform.reconcile.segments.{name}", limit)
    for number in range(6):
        lake.write(f"n{number}", number)
    lake.files()
    heard: list[int] = []
    reconcile_segments(lake.store, "text", "one", lake.cutting, progress=lambda done, total: heard.append(done))
    assert heard == chunks
    folder = layout.segments_folder(lake.store, "text", "one", code_version("text", lake.cutting))
    assert len(storage.table_names(folder)) == len(chunks)


@pytest.mark.parametrize(("chunk", "shards"), [(None, 1), (2, 3)])
def test_a_chunk_of_vectors_is_as_large_as_a_file_may_be_or_as_the_settings_say(lake, chunk, shards):
    lake.batch = BatchSettings(chunk=chunk)
    for number in range(6):
        lake.write(f"n{number}", number)
    lake.run()
    assert len(storage.table_names(layout.vectors_folder(lake.store, lake.space.key, FINGERPRINT, "one"))) == shards


def test_a_run_without_a_difference_reads_no_stored_vector_but_a_sample(lake, monkeypatch):
    lake.batch = BatchSettings(chunk=2)
    for number in range(40):
        lake.write(f"n{number:02}", number)
    first = lake.run()[2]
    asked: list[np.ndarray] = []

    def read_rows(fs, path, schema, columns, rows, read=storage._read_rows):
        asked.extend(rows if "vector" in columns else [])
        return read(fs, path, schema, columns, rows)

    monkeypatch.setattr(storage, "_read_rows", read_rows)
    monkeypatch.setattr("embedding_platform.vectors.sampled.MOST", 8)
    monkeypatch.setattr("embedding_platform.vectors.judged._judge", _die)
    second = lake.embeddings()
    assert len(asked) == 8
    assert (second.judged.judged, second.data_version) == (40, first.data_version)
    np.testing.assert_array_equal(np.sort(second.judged.norms), np.sort(first.judged.norms))


def test_a_content_that_the_model_refuses_is_tried_again_the_next_time(lake):
    def refuse(content: str) -> None:
        if content.startswith("1 "):
            raise RuntimeError("no kernel")

    lake.encoder = SmallEncoder(refuse=refuse)
    for number in range(3):
        lake.write(f"n{number}", number)
    _, _, embeddings = lake.run()
    assert [row[0] for row in embeddings.rejected] == ["n1.txt"]
    assert embeddings.rejected[0][3] == "unreadable: the model failed on it: no kernel"
    assert len(embeddings.faults["unreadable"]) == 1

    lake.encoder = SmallEncoder()
    _, _, mended = lake.run()
    assert (lake.encoder.embedded, mended.rejected, mended.missing) == (1, [], [])


def test_a_file_that_went_away_before_it_was_embedded_is_tried_again(tmp_path):
    lake = Lake(tmp_path, "image")
    lake.write("a", 1)
    gone = lake.write("b", 2)
    lake.files()
    lake.segments()
    aside = gone.rename(tmp_path / "aside.png")
    embeddings = lake.embeddings()
    assert [(row[0], row[3]) for row in embeddings.rejected] == [("b.png", "unreadable: is no longer there")]
    aside.rename(gone)
    lake.files()
    assert lake.embeddings().rejected == []
    assert lake.encoder.embedded == 2


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_file_that_changed_since_its_listing_gives_no_vector_to_its_old_content(tmp_path, modality):
    lake = Lake(tmp_path, modality)
    lake.write("a", 1)
    lake.files()
    lake.segments()
    lake.write("a", 2)
    stale = lake.embeddings()
    assert [row[3] for row in stale.rejected] == [
        "unreadable: changed or went away after it was listed; the next run takes it up"
    ]
    assert vectors_of(lake) == {}
    _, _, embeddings = lake.run()
    assert (embeddings.embedded, embeddings.rejected) == (1, [])


def overtaken_by(another_run: Callable[[], object], reader: Callable[..., object]) -> Callable[..., object]:
    """A reader of the last listing, after whose first answer another run comes."""
    answered = []

    def read(*place: object) -> object:
        items = reader(*place)
        if not answered:
            answered.append(items)
            another_run()
        return items

    return read


def test_a_listing_that_another_run_replaces_meanwhile_does_not_break_the_cut(lake, monkeypatch):
    lake.write("a", 1)
    lake.files()
    with monkeypatch.context() as patch:
        overtaken = overtaken_by(lambda: (lake.write("late", 2), lake.files()), items_table)
        patch.setattr("embedding_platform.reconcile.segments.items_table", overtaken)
        assert counts(lake.segments()) == (1, 0, 0, 0)
    assert counts(lake.segments()) == (1, 0, 0, 1)


def test_a_file_that_another_run_lists_meanwhile_is_left_to_the_next_run(tmp_path, monkeypatch):
    lake = Lake(tmp_path, "image")
    lake.write("b", 1)
    lake.files()
    lake.segments()
    with monkeypatch.context() as patch:
        renamed = lambda: (lake.path("b").rename(lake.path("a")), lake.files(), lake.segments())  # noqa: E731
        overtaken = overtaken_by(renamed, items_table)
        patch.setattr("embedding_platform.reconcile.embeddings.items_table", overtaken)
        embeddings = lake.embeddings()
    assert [row[3] for row in embeddings.rejected] == [
        "unreadable: changed or went away after it was listed; the next run takes it up"
    ]
    mended = lake.embeddings()
    assert (mended.embedded, mended.rejected, mended.missing) == (1, [], [])


def test_an_item_that_cannot_be_cut_is_rejected_with_its_reason_until_it_changes(tmp_path):
    lake = Lake(tmp_path, "image")
    lake.write("good", 1)
    bad = lake.write("bad", 2)
    bad.write_bytes(bad.read_bytes()[:-200])
    _, segments, _ = lake.run()
    ((path, _, _, reason),) = segments.rejected
    assert path == "bad.png"
    assert "cut short" in reason
    assert counts(segments) == (2, 0, 0, 0)
    assert segments.segments == 1
    before = lake.stored_files()
    again = lake.segments()
    assert (counts(again), again.rejected) == ((0, 0, 0, 2), segments.rejected)
    assert lake.stored_files() == before
    lake.write("bad", 2)
    _, segments, _ = lake.run()
    assert (segments.rejected, segments.segments) == ([], 2)


@pytest.mark.parametrize("passing", ["touched", "emptied", "away"])
def test_an_item_that_changed_before_it_was_cut_is_cut_by_the_next_run(lake, passing):
    lake.write("good", 1)
    path = lake.write("restless", 2)
    payload = path.read_bytes()
    lake.files()
    if passing == "touched":
        os.utime(path, ns=(1, 1))
    elif passing == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    segments = lake.segments()
    assert [row[0] for row in segments.rejected] == ["restless.txt"]
    assert "after it was listed" in segments.rejected[0][3]
    assert segments.segments == 1
    path.write_bytes(payload)
    _, segments, _ = lake.run()
    assert (segments.rejected, segments.segments) == ([], 2)
    assert counts(lake.segments()) == (0, 0, 0, 2)


def test_a_new_cut_replaces_the_old_one_and_keeps_vectors_of_equal_passages(lake):
    write_text(lake.path("long"), 1, paragraphs=6)
    write_text(lake.path("short"), 2)
    lake.run()
    old = layout.segments_folder(lake.store, "text", "one", code_version("text", lake.cutting))
    embedded = lake.encoder.embedded
    lake.cutting = dataclasses.replace(lake.cutting, max_tokens=40)
    _, segments, embeddings = lake.run()
    assert counts(segments) == (2, 0, 0, 0)
    assert not os.path.exists(old)
    assert 0 < lake.encoder.embedded - embedded == embeddings.embedded
    assert embeddings.increment.counts()["unchanged"] == 1


def stored_rows(lake: Lake) -> list[str]:
    """The path of each row in the source's shards, live or not."""
    folder = layout.segments_folder(lake.store, lake.modality, "one", code_version(lake.modality, lake.cutting))
    return sorted(storage.read_shards(folder, SEGMENTS, ["path"])["path"].to_pylist())


def test_live_segments_know_the_version_of_their_rows(any_lake):
    lake = any_lake
    for number in range(3):
        lake.write(f"n{number}", number)
    lake.run()
    place = (lake.store, lake.modality, "one", lake.cutting)
    whole = live_segments(*place)
    assert whole.schema == SEGMENTS
    assert whole["row_version"].to_pylist() == [row_version("one", segment) for segment in segments(whole)]
    slim = live_segments(*place, ["segment_id", "row_version", "content_hash", "role"])
    assert slim.sort_by("segment_id").equals(whole.select(slim.column_names).sort_by("segment_id"))


def test_segments_are_asked_for_by_id_and_only_their_shards_are_read(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 1)
    for number in range(5):
        lake.write(f"n{number}", number)
    lake.run()
    place = (lake.store, "text", "one", lake.cutting)
    whole = live_segments(*place).sort_by("path")
    asked = whole["segment_id"].take([1, 3])
    found = list(iterate_live_segments(*place, where={"segment_id": pa.array(asked.to_pylist())}))
    assert [table.num_rows for table in found] == [1, 1]
    assert pa.concat_tables(found).sort_by("path").equals(whole.take([1, 3]))
    nothing = iterate_live_segments(
        *place, where={"segment_id": pa.array(asked.to_pylist()), "role": pa.array(["image"])}
    )
    assert list(nothing) == []


def test_rows_that_two_runs_wrote_twice_are_live_once(lake):
    lake.write("a", 1)
    lake.run()
    folder = layout.segments_folder(lake.store, "text", "one", code_version("text", lake.cutting))
    whole = live_segments(lake.store, "text", "one", lake.cutting)
    storage.append_shard(folder, whole.set_column(2, "uri", pa.array(["elsewhere"])))
    assert len(stored_rows(lake)) == 2
    assert live_segments(lake.store, "text", "one", lake.cutting).equals(whole)


def test_live_segments_miss_none_where_another_run_compacts_meanwhile(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 1)
    for number in range(4):
        lake.write(f"n{number}", number)
    lake.run()
    folder = layout.segments_folder(lake.store, "text", "one", code_version("text", lake.cutting))
    parts = iterate_live_segments(lake.store, "text", "one", lake.cutting, ["path"])
    paths = next(parts)["path"].to_pylist()
    names, whole = storage.table_names(folder), storage.read_shards(folder, SEGMENTS)
    storage.append_shard(folder, whole)
    storage.remove_shards(folder, names)
    for part in parts:
        paths += part["path"].to_pylist()
    assert sorted(paths) == [f"n{number}.txt" for number in range(4)]


def test_shards_hold_no_rows_of_changed_or_absent_items_after_a_run(lake):
    for number in range(5):
        lake.write(f"n{number}", number)
    lake.run()
    lake.write("n0", 9)
    lake.path("n1").unlink()
    lake.run()
    assert stored_rows(lake) == ["n0.txt", "n2.txt", "n3.txt", "n4.txt"]


def test_a_cut_that_was_killed_before_it_dropped_old_rows_is_finished_by_the_next(lake, monkeypatch):
    lake.write("a", 1)
    lake.write("b", 2)
    lake.run()
    lake.write("a", 3)
    lake.files()
    with monkeypatch.context() as patch:
        patch.setattr("embedding_platform.reconcile.segments._drop_dead_rows", _die)
        with pytest.raises(KeyboardInterrupt):
            lake.segments()
    finished = lake.segments()
    assert (counts(finished), finished.segments) == ((0, 0, 0, 2), 2)
    assert len(stored_rows(lake)) == 2
    assert counts(lake.segments()) == (0, 0, 0, 2)


def test_a_cut_that_was_killed_keeps_the_chunks_it_had_done(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 2)
    for number in range(5):
        lake.write(f"n{number}", number)
    lake.files()

    def die_in_the_second_chunk(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile_segments(lake.store, "text", "one", lake.cutting, progress=die_in_the_second_chunk)
    report = lake.segments()
    assert (counts(report), report.segments) == ((1, 0, 0, 4), 5)


def test_many_small_shards_become_few(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 1)
    for number in range(40):
        lake.write(f"n{number}", number)
    _, segments, _ = lake.run()
    folder = layout.segments_folder(lake.store, "text", "one", code_version("text", lake.cutting))
    assert len(storage.table_names(folder)) == 1
    assert (segments.segments, counts(lake.segments())) == (40, (0, 0, 0, 40))


def test_two_processes_on_one_source_repeat_but_never_corrupt(lake):
    for number in range(30):
        lake.write(f"n{number}", number)
    lake.files()
    lake.segments()
    others = [dataclasses.replace(lake, encoder=SmallEncoder()) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda other: other.embeddings(), others))
    assert all(report.missing == [] and not any(report.faults.values()) for report in reports)
    assert len(vectors_of(lake)) == 30
    assert counts(lake.embeddings()) == (0, 0, 0, 30)


def late(lake: Lake, newer_run: Callable[[], object], **changes: object) -> Callable[[], object]:
    """The segments stage of a run that is overtaken by another one while it cuts."""
    place = dataclasses.replace(lake, **changes)
    once = iter([newer_run])
    overtaken = lambda done, total: next(once, lambda: None)()  # noqa: E731
    return lambda: reconcile_segments(place.store, place.modality, "one", place.cutting, progress=overtaken)


def test_a_late_run_of_an_older_listing_drops_no_segment_of_a_newer_one(lake):
    lake.write("a", 1)
    lake.write("b", 2)
    lake.run()
    lake.write("a", 3)
    lake.files()
    late(lake, lambda: (lake.write("b", 4), lake.write("c", 5), lake.run()))()
    assert stored_rows(lake) == ["a.txt", "b.txt", "c.txt"]
    assert [counts(report) for report in lake.run()[:2]] == [(0, 0, 0, 3)] * 2
    assert lake.encoder.embedded == 2 + 3


def test_a_late_run_of_an_older_listing_drops_no_vector_of_a_newer_one(lake):
    lake.batch = BatchSettings(chunk=1)
    for number in range(40):
        lake.write(f"n{number}", number)
    lake.files()
    lake.segments()
    newer = iter([lambda: (lake.write("newer", 99), lake.run())])
    reconcile_embeddings(
        *(lake.store, lake.space, "one", FINGERPRINT, lake.cutting, SmallEncoder, lake.batch, "late"),
        progress=lambda done, total: next(newer, lambda: None)(),
    )
    embedded = lake.encoder.embedded
    assert len(vectors_of(lake)) == 41
    assert counts(lake.embeddings()) == (0, 0, 0, 41)
    assert lake.encoder.embedded == embedded


def test_a_late_run_of_an_older_cutter_drops_nothing_of_a_newer_one(lake):
    lake.batch = BatchSettings(chunk=1)
    for number in range(40):
        write_text(lake.path(f"n{number}"), number, paragraphs=3)
    lake.files()
    newer = dataclasses.replace(lake, cutting=dataclasses.replace(lake.cutting, max_tokens=40))
    late(lake, newer.run)()
    older = dataclasses.replace(lake, encoder=SmallEncoder())
    older.embeddings()
    embedded = newer.encoder.embedded
    _, segments, embeddings = newer.run()
    assert (counts(segments), embeddings.increment.counts()["new"]) == ((0, 0, 0, 40), 0)
    assert newer.encoder.embedded == embedded


def test_a_rejection_that_a_late_run_wrote_over_is_passed_again_by_the_next(tmp_path):
    lake = Lake(tmp_path, "image")
    spoilt = [lake.write(name, seed) for name, seed in (("a", 1), ("b", 2))]
    spoilt[0].write_bytes(spoilt[0].read_bytes()[:-200])
    lake.files()
    newer = lambda: (spoilt[1].write_bytes(spoilt[1].read_bytes()[:-200]), lake.files(), lake.segments())  # noqa: E731
    late(lake, newer)()
    _, segments, _ = lake.run()
    assert [row[0] for row in segments.rejected] == ["a.png", "b.png"]
    assert (segments.segments, counts(lake.segments())) == (0, (0, 0, 0, 2))


@pytest.mark.parametrize("seed", [1, 2])
def test_runs_at_once_over_media_that_change_leave_what_one_run_mends(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("embedding_platform.reconcile.segments.ITEMS_PER_CHUNK", 1)
    lake = Lake(tmp_path, batch=BatchSettings(chunk=1))
    generator = np.random.default_rng(seed)
    for number in range(36):
        lake.write(f"n{number}", number)

    def work(turn: int) -> None:
        own = dataclasses.replace(lake, encoder=SmallEncoder())
        own.segments()
        own.embeddings()

    with ThreadPoolExecutor(3) as pool:
        for turn in range(4):
            lake.files()
            working = [pool.submit(work, turn) for _ in range(2)]
            for number in generator.integers(0, 36, 6):
                lake.write(f"n{number}", int(generator.integers(100, 110)))
            lake.path(f"n{generator.integers(0, 36)}").unlink(missing_ok=True)
            lake.files()
            working.append(pool.submit(work, turn))
            for done in working:
                done.result()
    _, segments, embeddings = lake.run()
    rebuilt = Lake(tmp_path / "rebuilt", media_name=str(lake.media))
    _, expected, vectors = rebuilt.run()
    assert (segments.rejected, embeddings.rejected, embeddings.missing) == ([], [], [])
    assert (segments.data_version, embeddings.data_version) == (expected.data_version, vectors.data_version)
    assert all(report.increment.counts()["new"] == report.increment.counts()["stale"] == 0 for report in lake.run())
    for content, vector in vectors_of(rebuilt).items():
        np.testing.assert_array_equal(vectors_of(lake)[content], vector)


def test_media_and_store_may_be_any_file_system(tmp_path):
    place = f"memory://{tmp_path.name}"
    reports = []
    for texts in ({"a": "one", "b": "two"}, {"a": "one", "b": "changed", "c": "three"}):
        for name, text in texts.items():
            storage.write_bytes(f"{place}/media/one/{name}.txt", text.encode())
        files = reconcile_files(f"{place}/store", f"{place}/media", "text", "one")
        segments = reconcile_segments(f"{place}/store", "text", "one", CUTTING)
        embeddings = reconcile_embeddings(
            f"{place}/store", space_of("text"), "one", FINGERPRINT, CUTTING, SmallEncoder, BatchSettings(), "run"
        )
        assert (segments.rejected, embeddings.rejected, embeddings.missing) == ([], [], [])
        reports.append((counts(files), counts(segments), counts(embeddings)))
    assert reports == [((2, 0, 0, 0),) * 3, ((1, 1, 0, 1), (1, 1, 0, 1), (2, 0, 1, 1))]


def test_a_media_root_that_moved_is_followed_without_embedding_anew(tmp_path):
    lake = Lake(tmp_path, "image")
    lake.write("a", 1)
    lake.run()
    lake.media.rename(tmp_path / "moved")
    lake.media_name = "moved"
    files, segments, embeddings = lake.run()
    assert [counts(report) for report in (files, segments, embeddings)] == [(0, 0, 0, 1)] * 3
    assert [item.uri for item in files.items] == [str(lake.path("a"))]
    assert live_segments(lake.store, "image", "one", lake.cutting)["uri"].to_pylist() == [str(lake.path("a"))]
    lake.fingerprint = "e" * 64
    assert lake.embeddings().rejected == []


def test_a_new_fingerprint_embeds_anew_and_keeps_the_old_vectors(lake):
    lake.write("a", 1)
    lake.run()
    lake.fingerprint = "e" * 64
    assert counts(lake.embeddings()) == (1, 0, 0, 0)
    lake.fingerprint = FINGERPRINT
    assert counts(lake.embeddings()) == (0, 0, 0, 1)


@pytest.mark.parametrize(("between", "expected"), [(0.0, list(range(1, 11))), (3600.0, [10])])
def test_progress_counts_up_to_what_is_to_do(lake, monkeypatch, between, expected):
    monkeypatch.setattr(embeddings_stage, "SECONDS_BETWEEN_PROGRESS", between)
    for number in range(10):
        lake.write(f"n{number}", number)
    lake.files()
    lake.segments()
    heard: list[tuple[int, int]] = []
    reconcile_embeddings(
        lake.store,
        lake.space,
        "one",
        FINGERPRINT,
        lake.cutting,
        SmallEncoder,
        lake.batch,
        "run",
        progress=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(done, 10) for done in expected]


def test_stored_vectors_that_went_bad_are_found(lake):
    lake.write("a", 1)
    lake.run()
    folder = layout.vectors_folder(lake.store, lake.space.key, FINGERPRINT, "one")
    vector_store.append(folder, ["x"], np.full((1, DIMENSION), np.nan, np.float32), FINGERPRINT, "run", "cpu")
    judged = judge_stored(folder, lake.space, pd.Index([*vectors_of(lake)]), FINGERPRINT)
    assert (judged.judged, judged.faults) == (2, {"finite": ["x"]})


def test_a_source_may_have_any_name(tmp_path):
    lake = Lake(tmp_path)
    names = ["photos & more", "ünï", "100%", "中" * 60, "a~b"]
    for source in names:
        lake.write("a", 1, source)
        lake.run(source)
    assert listed_sources(lake.store, "text") == sorted(names)
    assert lake.encoder.embedded == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_process_killed_while_embedding_repeats_at_most_one_chunk(tmp_path, seed):
    lake, total, chunk = Lake(tmp_path), 24, 4
    for number in range(total):
        lake.write(f"n{number:02}", 100 * seed + number)
    log = tmp_path / "embedded"
    script = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from embedding_platform_tests.inference.small_encoder import SmallEncoder
        from embedding_platform_tests.reconcile.small_lake import Lake

        class Slow(SmallEncoder):
            def embed(self, role, batch):
                # Never to its end, however late it is killed.
                time.sleep(0.05 if self.embedded < int(sys.argv[3]) else 600)
                with open(sys.argv[2], "a") as log:
                    log.write("x" * len(batch))
                return super().embed(role, batch)

        lake = Lake(Path(sys.argv[1]), encoder=Slow())
        lake.batch = lake.batch.model_copy(update={"text": 12})
        lake.run()
        """
    )
    enough = 4 + 5 * seed
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(log), str(enough)])
    while process.poll() is None and not (
        log.exists() and log.stat().st_size >= enough and len(vectors_of(lake)) >= log.stat().st_size - 2 * chunk
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = len(vectors_of(lake))
    before = log.stat().st_size
    assert process.returncode == -signal.SIGKILL
    assert before - 2 * chunk <= stored <= before < total

    _, _, embeddings = lake.run()
    assert embeddings.embedded == total - stored
    assert before + lake.encoder.embedded <= total + 2 * chunk
    assert len(vectors_of(lake)) == total


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_stages_remove_what_killed_writers_left_in_their_folders(lake):
    lake.write("a", 1)
    lake.run()
    folders = (
        layout.segments_folder(lake.store, lake.modality, "one", code_version(lake.modality, lake.cutting)),
        layout.vectors_folder(lake.store, lake.space.key, lake.fingerprint, "one"),
    )
    leftovers = [os.path.join(folder, ".writing-0") for folder in folders]
    for leftover in leftovers:
        with open(leftover, "wb") as file:
            file.write(b"half")
        os.utime(leftover, (0, 0))
    lake.run()
    assert not set(leftovers) & lake.stored_files().keys()
