"""Collections that are searched by words too: what Milvus keeps of a text follows its row."""

import math
from collections import Counter
from collections.abc import Mapping

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform.milvus.expressions import begins_with
from embedding_platform.milvus.index import ensure_index
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import FIELD_NAMES, WORDS_FIELD, collection_name, ensure_collection
from embedding_platform.milvus.sync import sync_partition
from embedding_platform.milvus.words import MOST_WORDS, search_words, split_words, word_statistics
from embedding_platform.spaces import usual_index

from .making import HNSW, desired, make_row, new_collection, provenance, row_id

TEXTS = {
    0: "the bee finds its way by the sun",
    1: "the volcano erupts",
    2: "penguins swim, and the bee flies",
    3: "Order QX-7731 was shipped",
    4: "",
    5: "über Äpfel",
}


def write(
    client, collection: str, texts: Mapping[int, str], version: str = "1", of: str = "photos", layout="named"
) -> None:
    wanted = desired(texts, version, of)
    rows = {row_id(number, of): make_row(row_id(number, of), version, of, text) for number, text in texts.items()}
    sync_partition(client, Partition(collection, of, layout), wanted, lambda ids: [[rows[key] for key in ids]])


def by_words(client, collection: str, words: str, **options: object) -> list[int]:
    """Numbers of the rows that a search by these words finds, best first."""
    statistics = word_statistics(client, collection)
    hits = search_words(client, collection, words, 100, statistics, **options)
    numbers = {row_id(number): number for number in range(1000)}
    return [numbers[hit["id"]] for hit in hits]


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
    assert by_words(lite, collection, "bee") == [2, 0], "the shorter text first"
    assert set(by_words(lite, collection, "PENGUINS volcano")) == {1, 2}
    assert by_words(lite, collection, "qx-7731") == [3]
    assert by_words(lite, collection, "äpfel") == [5]
    assert by_words(lite, collection, "beehive") == by_words(lite, collection, "?!") == []


def test_a_row_is_read_as_it_was_written(lite, collection):
    (row,) = get_rows(lite, collection, [row_id(3)])
    assert set(row) == set(FIELD_NAMES)
    assert row["text"] == TEXTS[3]


def test_words_that_are_gone_find_nothing(lite, collection):
    write(lite, collection, {**TEXTS, 0: "the ant finds its way by smell"}, version="2")
    assert (by_words(lite, collection, "sun"), by_words(lite, collection, "ant")) == ([], [0])
    write(lite, collection, {number: text for number, text in TEXTS.items() if number != 2}, version="3")
    assert by_words(lite, collection, "penguins swim") == []
    assert by_words(lite, collection, "bee sun") == [0]


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
        assert set(by_words(client, collection, "bee")) == found
        client.close()
        close_directory(folder)
        client = connect(folder)
        assert ensure_index(client, collection, HNSW, "COSINE") is False
        assert set(by_words(client, collection, "bee")) == found
        client.close()
        close_directory(folder)


def test_a_run_that_was_killed_before_the_index_is_finished_by_the_next(lite):
    made_by = provenance(space="text/minilm", words=True)
    name = ensure_collection(lite, made_by, HNSW)
    lite.release_collection(name)
    lite.drop_index(name, WORDS_FIELD)
    assert lite.list_indexes(name, field_name=WORDS_FIELD) == []
    assert ensure_collection(lite, made_by, HNSW) == name
    assert lite.list_indexes(name, field_name=WORDS_FIELD) == [WORDS_FIELD]
    write(lite, name, TEXTS)
    assert by_words(lite, name, "volcano") == [1]


def test_another_vector_index_leaves_the_words_alone(lite, collection):
    assert ensure_index(lite, collection, usual_index("IVF_FLAT", {"nlist": 2}, {}), "COSINE")
    assert set(by_words(lite, collection, "bee")) == {0, 2}


def test_what_is_no_collection_with_words_is_named(lite):
    made_by = provenance(space="text/minilm", words=True)
    name = ensure_collection(lite, made_by, HNSW)
    lite.drop_collection(name)
    plain = ensure_collection(lite, provenance(space="text/minilm"), HNSW)
    lite.rename_collection(plain, name)
    with pytest.raises(PlatformError, match="field words is missing") as caught:
        ensure_collection(lite, made_by, HNSW)
    assert "words stored=False, expected=True" in str(caught.value)


@pytest.mark.parametrize("layout", ["named", "keyed"])
def test_hits_keep_to_source_and_condition(lite, layout):
    collection = new_collection(lite, space="text/minilm", words=True, layout=layout)
    write(lite, collection, TEXTS, layout=layout)
    write(lite, collection, {900: "a bee elsewhere"}, of="letters", layout=layout)
    everywhere = {row_id(0), row_id(2), row_id(900, "letters")}
    statistics = word_statistics(lite, collection)
    hits = search_words(lite, collection, "bee", 10, statistics)
    assert {hit["id"] for hit in hits} == everywhere
    (hit,) = search_words(lite, collection, "bee", 10, statistics, ["letters"])
    assert (hit["id"], hit["source"]) == (row_id(900, "letters"), "letters")
    assert set(hit) == {*FIELD_NAMES, "score"}
    assert search_words(lite, collection, "bee", 10, statistics, []) == []
    begun = begins_with("path", row_id(2)[:8])
    assert [hit["id"] for hit in search_words(lite, collection, "bee", 10, statistics, None, begun)] == [row_id(2)]


def test_a_rare_word_of_a_row_just_written_counts_for_more_than_common_ones_of_many(lite):
    """What Milvus Lite itself ranks behind all of them, once they lie in a segment and the row does not."""
    name = new_collection(lite, space="text/minilm", words=True)
    write(lite, name, {number: f"order {number} was shipped" for number in range(600)})
    ensure_index(lite, name, HNSW, "COSINE")
    lite.flush(name)
    write(lite, name, {601: "the zebra that was in order"}, of="fresh")
    (fresh,) = search_words(lite, name, "zebra", 100, word_statistics(lite, name))
    first = search_words(lite, name, "order of the zebra that was shipped", 100, word_statistics(lite, name))[0]
    assert first["id"] == fresh["id"] == row_id(601, "fresh")


def test_scores_are_those_of_bm25_where_every_row_is_known(lite, collection):
    statistics = word_statistics(lite, collection)
    assert (statistics.rows, statistics.share["bee"]) == (6, 2 / 6)
    lengths = [len(split_words(text)) for text in TEXTS.values()]
    assert statistics.mean_length == pytest.approx(sum(lengths) / 6)
    hits = {hit["id"]: hit["score"] for hit in search_words(lite, collection, "the bee", 100, statistics)}
    for number in (0, 1, 2):
        counts = Counter(split_words(TEXTS[number]))
        expected = 0.0
        for word, holding in (("the", 3), ("bee", 2)):
            rarity = math.log(1 + (6 - holding + 0.5) / (holding + 0.5))
            damped = 1.5 * (0.25 + 0.75 * lengths[number] / statistics.mean_length)
            expected += rarity * counts[word] * 2.5 / (counts[word] + damped)
        assert hits[row_id(number)] == pytest.approx(expected)
    assert len(hits) == 3


def test_statistics_are_read_again_when_a_tenth_of_the_rows_is_another(lite, collection):
    known = word_statistics(lite, collection)
    assert word_statistics(lite, collection, known) is known
    write(lite, collection, {**TEXTS, 6: "one more"}, version="2")
    assert word_statistics(lite, collection, known).rows > known.rows


def test_of_a_long_text_the_rarest_words_are_looked_up(lite, collection):
    statistics = word_statistics(lite, collection)
    many = " ".join(f"nowhere{number}" for number in range(MOST_WORDS - 1))
    assert [hit["id"] for hit in search_words(lite, collection, f"the bee {many} volcano", 100, statistics)] == [
        row_id(1)
    ]


@pytest.mark.server
def test_a_server_without_functions_says_what_to_set(server):
    with pytest.raises(PlatformError, match=r"no search by words, .* set milvus.search_words to false"):
        ensure_collection(server, provenance(space="text/minilm", words=True), HNSW)
