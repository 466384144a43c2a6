"""Passages: which words are marked, what is shown of a long one, and what stands around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.serving.passages import CONTEXT_CHARACTERS, excerpt, in_document, marked


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("Bees dance for bees.", "how do bees", ["Bees", "bees"]),
        ("A flower and two flowers.", "flowers", ["flower", "flowers"]),
        ("VULKAN, Vulkane; vul", "vulkan", ["VULKAN", "Vulkane"]),
        ("The cat sat.", "cat", ["cat"]),
        ("The cat sat on concatenated data.", "the cat", ["The", "cat"]),
        ("Nothing here.", "elsewhere", []),
        ("Nothing here.", "", []),
        ("Äpfel und ÄPFEL", "äpfel", ["Äpfel", "ÄPFEL"]),
        ("", "word", []),
        ("這座火山在去年爆發。", "火山 爆發", ["火山", "爆發"]),
        ("火山如何喷发?", "火山为什么会喷发", ["火山", "喷发"]),
        ("火山灰落下。山火。", "火山灰", ["火山灰"]),
        ("水在流", "水", ["水"]),
        ("この火山はカメラで見える。カメ", "火山のカメラ", ["火山", "カメラ"]),
        ("2024年の火山とVulkan", "vulkan 2024", ["2024", "Vulkan"]),
    ],
)
def test_words_of_the_query_are_marked(text: str, words: str, expected: list[str]) -> None:
    assert [piece.text for piece in marked(text, words) if piece.marked] == expected


@given(st.text() | st.text("火山カメらb ", max_size=200), st.text("火山カメらb ", max_size=60) | st.text(max_size=60))
def test_marking_loses_nothing(text: str, words: str) -> None:
    assert "".join(piece.text for piece in marked(text, words)) == text


@given(st.text("ab \n", max_size=400), st.text("ab", max_size=5), st.integers(8, 100))
def test_an_excerpt_is_short_and_of_the_text(text: str, words: str, characters: int) -> None:
    shown = excerpt(text, words, characters)
    assert len(shown) <= characters + 2
    assert shown.strip("…") in text


def test_an_excerpt_begins_near_the_first_word_of_the_query() -> None:
    text = "sand " * 300 + "and then volcanoes erupt " + "ash " * 300
    shown = excerpt(text, "volcanoes", 200)
    assert "volcanoes erupt" in shown
    assert shown.startswith("…")
    assert shown.endswith("…")


def test_a_passage_stands_between_what_surrounds_it() -> None:
    document = "before " * 500 + "THE PASSAGE" + " after" * 500
    start = document.index("THE")
    passage = in_document(document, "THE PASSAGE", start, start + 11)
    assert passage is not None
    assert passage.text == "THE PASSAGE"
    assert passage.before.startswith("…before ")
    assert passage.before.endswith("before ")
    assert passage.after.startswith(" after ")
    assert passage.after.endswith("after…")
    assert len(passage.before) <= CONTEXT_CHARACTERS + 1
    assert in_document(document, "THE PASSAGE", start + 1, start + 12) is None


def test_at_the_ends_of_a_document_nothing_is_cut() -> None:
    passage = in_document("one two three", "two", 4, 7)
    assert passage is not None
    assert (passage.before, passage.after) == ("one ", " three")


def test_a_text_without_spaces_is_cut_between_any_two_characters() -> None:
    document = "前" * 2000 + "火山爆发" + "后" * 2000
    passage = in_document(document, "火山爆发", 2000, 2004)
    assert passage is not None
    assert (passage.before, passage.after) == ("…" + "前" * CONTEXT_CHARACTERS, "后" * CONTEXT_CHARACTERS + "…")


def test_a_pause_far_from_where_a_text_is_cut_is_none() -> None:
    far = "a" * (CONTEXT_CHARACTERS // 2)
    passage = in_document(f"{far} {far} {far}THE{far} {far} {far}", "THE", 3 * len(far) + 2, 3 * len(far) + 5)
    assert passage is not None
    assert passage.before == f"…{far[1:]} {far}"
    assert passage.after == f"{far} {far[1:]}…"
