"""Collections that are searched by words too: what Milvus keeps of a text follows its row."""

from collections.abc import Mapping

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.index import ensure_index
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows, search_rows
from embedding_platform.milvus.schema import FIELD_NAMES, WORDS_FIELD, collection_name, ensure_collection
from embedding_platform.milvus.sync import sync_partition

from .making import HNSW, desired, make_row, new_collection, provenance, row_id

TEXTS = {
    0: "the bee finds its way by the sun",
    1: "the volcano erupts",
    2: "penguins swim, and the bee flies",
    3: "Order QX-7731 was shipped",
    4: "",
    5: "über Äpfel",
}


def write(client, collection: str, texts: Mapping[int, str], version: str = "1", of: str = "photos") -> None:
    wanted = desired(texts, version, of)
    rows = {row_id(number, of): make_row(row_id(number, of), version, of, text) for number, text in texts.items()}
    sync_partition(client, Partition(collection, of), wanted, lambda ids: [[rows[key] for key in ids]])


def by_words(client, collection: str, words: str) -> set[int]:
    """Numbers of the rows that a search by these words alone finds."""
    answers = client.search(
        collection,
        data=[words],
        anns_field=WORDS_FIELD,
        limit=100,
        search_params={"metric_type": "BM25"},
        consistency_level="Strong",
    )
    numbers = {row_id(number): number for number in range(100)}
    return {numbers[hit["id"]] for hit in answers[0]}


@pytest.fixture
def collection(lite):
    name = new_collection(lite, space="text/minilm", words=True)
    write(lite, name, TEXTS)
    ensure_index(lite, name, HNSW, "COSINE")
    return name


def test_a_collection_with_words_has_a_name_of_its_own(collection):
    assert collection.endswith("_named2_words")
    assert collection_name("text/minilm", "0" * 64, "keyed", words=True) == f"text_minilm_{'0' * 12}_keyed2_words"


def test_a_row_is_found_by_its_words(lite, collection):
    assert by_words(lite, collection, "bee") == {0, 2}
    assert by_words(lite, collection, "PENGUINS volcano") == {1, 2}
    assert by_words(lite, collection, "qx-7731") == {3}
    assert by_words(lite, collection, "äpfel") == {5}
    assert by_words(lite, collection, "beehive") == set()


def test_a_row_is_read_as_it_was_written(lite, collection):
    (row,) = get_rows(lite, collection, [row_id(3)])
    assert set(row) == set(FIELD_NAMES)
    assert row["text"] == TEXTS[3]


def test_words_that_are_gone_find_nothing(lite, collection):
    write(lite, collection, {**TEXTS, 0: "the ant finds its way by smell"}, version="2")
    assert (by_words(lite, collection, "sun"), by_words(lite, collection, "ant")) == (set(), {0})
    write(lite, collection, {number: text for number, text in TEXTS.items() if number != 2}, version="3")
    assert by_words(lite, collection, "penguins swim") == set()
    assert by_words(lite, collection, "bee sun") == {0}


def test_words_outlive_closing_and_follow_their_rows_afterwards(tmp_path):
    folder = str(tmp_path / "lite")
    made_by = provenance(space="text/minilm", words=True)
    for version, texts, found in (
        ("1", TEXTS, {0, 2}),
        ("2", {**TEXTS, 2: "nothing of the kind", 5: "a bee after all"}, {0, 5}),
        ("3", {1: TEXTS[1]}, set()),
    ):
        client = connect(folder)
        collection = ensure_collection(client, made_by, HNSW)
        write(client, collection, texts, version)
        ensure_index(client, collection, HNSW, "COSINE")
        assert by_words(client, collection, "bee") == found
        client.close()
        close_directory(folder)
        client = connect(folder)
        assert ensure_index(client, collection, HNSW, "COSINE") is False
        assert by_words(client, collection, "bee") == found
        client.close()
        close_directory(folder)


def test_a_run_that_was_killed_before_the_index_is_finished_by_the_next(lite):
    made_by = provenance(space="text/minilm", words=True)
    name = ensure_collection(lite, made_by, HNSW)
    lite.drop_index(name, WORDS_FIELD)
    assert lite.list_indexes(name, field_name=WORDS_FIELD) == []
    assert ensure_collection(lite, made_by, HNSW) == name
    assert lite.list_indexes(name, field_name=WORDS_FIELD) == [WORDS_FIELD]
    write(lite, name, TEXTS)
    assert by_words(lite, name, "volcano") == {1}


def test_another_vector_index_leaves_the_words_alone(lite, collection):
    from embedding_platform.spaces import usual_index

    assert ensure_index(lite, collection, usual_index("IVF_FLAT", {"nlist": 2}, {}), "COSINE")
    assert by_words(lite, collection, "bee") == {0, 2}


def test_what_is_no_collection_with_words_is_named(lite):
    made_by = provenance(space="text/minilm", words=True)
    name = ensure_collection(lite, made_by, HNSW)
    lite.drop_collection(name)
    plain = ensure_collection(lite, provenance(space="text/minilm"), HNSW)
    lite.rename_collection(plain, name)
    with pytest.raises(PlatformError, match="field words is missing") as caught:
        ensure_collection(lite, made_by, HNSW)
    assert "words stored=False, expected=True" in str(caught.value)


def test_hits_by_vector_and_words_come_from_either(lite, collection):
    vector = make_row(row_id(1), "1")["vector"]
    hits = search_rows(lite, collection, vector, 3, HNSW, "COSINE", words="QX-7731 volcano")
    assert hits[0]["id"] == row_id(1), "first in both"
    assert hits[0]["score"] == pytest.approx(2 / 61)
    assert hits[0]["vector_score"] == pytest.approx(1, abs=1e-5)
    assert row_id(3) in {hit["id"] for hit in hits}
    assert all(-1 <= hit["vector_score"] <= 1 for hit in hits)
    assert set(hits[0]) == {*FIELD_NAMES, "score", "vector_score"} - {"vector"}


@pytest.mark.server
def test_a_server_without_functions_says_what_to_set(server):
    with pytest.raises(PlatformError, match=r"no search by words, .* set milvus.search_words to false"):
        ensure_collection(server, provenance(space="text/minilm", words=True), HNSW)
