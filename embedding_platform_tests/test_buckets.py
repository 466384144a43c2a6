"""Sources that share a folder's files: their names, which file is whose, and who takes over from whom."""

import posixpath
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.buckets import Bucket, among, bucket_of, folder_of, is_superseded, sources_of

FOLDERS = st.text(min_size=1, max_size=20)
COUNTS = st.integers(2, 1000)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=20)
PATHS = st.lists(NAMES.filter(lambda name: not name.startswith(".")), min_size=1, max_size=3).map("/".join)


@given(FOLDERS, COUNTS)
def test_names_come_in_order_and_tell_what_they_stand_for(folder: str, count: int) -> None:
    names = sources_of(folder, {folder: count})
    assert [bucket_of(name) for name in names] == [Bucket(folder, number, count) for number in range(count)]
    assert {folder_of(name) for name in names} == {folder}
    assert names == sorted(set(names))


def test_a_name_is_one_that_a_person_can_read() -> None:
    assert sources_of("photos", {"photos": 16})[7] == "photos~07of16"
    assert sources_of("photos", {"photos": 1}) == sources_of("photos", {"sounds": 16}) == ["photos"]


@pytest.mark.parametrize(
    "name", ["photos", "~07of16", "photos~16of16", "photos~7of16", "photos~007of16", "photos~0of1", "photos~07of016"]
)
def test_any_other_name_is_that_of_a_folder(name: str) -> None:
    assert bucket_of(name) is None
    assert folder_of(name) == name


@given(PATHS, COUNTS)
def test_each_file_is_in_one_bucket_with_the_text_of_the_same_name_beside_it(path: str, count: int) -> None:
    buckets = [Bucket("photos", number, count) for number in range(count)]
    (mine,) = (bucket for bucket in buckets if bucket.has(path))
    assert mine.has(f"{posixpath.splitext(path)[0]}.txt")


def test_buckets_have_about_as_many_files_each_and_the_same_ones_on_every_machine() -> None:
    paths = [f"2026/{number // 100:03}/{number:05}.jpg" for number in range(20_000)]
    sizes = [sum(map(Bucket("photos", number, 8).has, paths)) for number in range(8)]
    assert sum(sizes) == len(paths)
    assert max(sizes) < 1.1 * min(sizes)
    # The CRC-32 of "2026/000/00000", as gzip writes it.
    assert Bucket("photos", 0x637A479E % 8, 8).has(paths[0])


def test_a_source_is_superseded_once_its_folder_is_shared_out_otherwise() -> None:
    plans = [{}, {"photos": 3}, {"photos": 4}, {"photos": 1}]
    for before, after in pairwise(plans):
        assert all(is_superseded(source, after) for source in sources_of("photos", before))
    for plan in plans:
        assert not any(is_superseded(source, plan) for source in sources_of("photos", plan))
        assert not is_superseded("sounds", plan)


def test_a_folder_stands_for_its_buckets() -> None:
    there = ["photos~0of2", "photos~1of2", "photos~0of3", "photos", "sounds"]
    assert among(there, ["photos"]) == there[:4]
    assert among(there, ["photos~1of2", "sounds"]) == ["photos~1of2", "sounds"]
    assert among(there, ["photo"]) == among(there, []) == []
