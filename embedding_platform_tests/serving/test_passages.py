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
    ],
)
def test_words_of_the_query_are_marked(text: str, words: str, expected: list[str]) -> None:
    assert [piece.text for piece in marked(text, words) if piece.marked] == expected


@given(st.text(max_size=200), st.text(max_size=60))
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
