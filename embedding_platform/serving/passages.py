"""A passage in its document, with the words of the query marked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CONTEXT_CHARACTERS = 800
"""What is shown of the document on either side of a passage."""

_MOST_WORDS = 32

_SHORTEST_WORD = 4
"""Letters of a word that says something in most languages; shorter ones are marked where a query has no other. From
so many on, a word also marks those that it begins and that begin it, as flower and flowers."""


@dataclass(frozen=True)
class Piece:
    """Some characters, and whether they are a word of the query."""

    text: str
    marked: bool


@dataclass(frozen=True)
class Passage:
    """A passage between what stands before and after it in its document."""

    before: str
    text: str
    after: str


def marked(text: str, words: str) -> list[Piece]:
    """The text in pieces, those marked that are words of the query; letter case does not count."""
    sought = _sought(words)
    if not sought:
        return [Piece(text, False)] if text else []
    return list(_pieces(text, sought))


def excerpt(text: str, words: str, characters: int) -> str:
    """So many characters of a text at most, from before its first word of the query on; "…" where it was cut."""
    if len(text) <= characters:
        return text
    before = 0
    for piece in marked(text, words):
        if piece.marked:
            break
        before += len(piece.text)
    else:
        before = 0
    start = max(0, min(before - characters // 4, len(text) - characters))
    if start:
        pause = text.find(" ", start, start + characters // 4)
        start = pause + 1 if pause >= 0 else start
    end = min(start + characters, len(text))
    if end < len(text):
        pause = text.rfind(" ", end - characters // 4, end)
        end = pause if pause > start else end
    return ("…" if start else "") + text[start:end].strip() + ("…" if end < len(text) else "")


def in_document(document: str, text: str, start: int, end: int) -> Passage | None:
    """The passage at its place in the document; None where the document no longer says it there."""
    if document[start:end] != text:
        return None
    first, last = max(0, start - CONTEXT_CHARACTERS), min(len(document), end + CONTEXT_CHARACTERS)
    before, after = document[first:start], document[end:last]
    # From a whole word to a whole word.
    before = before if first == 0 else f"…{before.partition(' ')[2]}"
    after = after if last == len(document) else f"{after.rpartition(' ')[0]}…"
    return Passage(before, text, after)


def _sought(words: str) -> list[str]:
    found = list(dict.fromkeys(re.findall(r"\w+", words.casefold())))
    return ([word for word in found if len(word) >= _SHORTEST_WORD] or found)[:_MOST_WORDS]


def _pieces(text: str, sought: Sequence[str]) -> Iterator[Piece]:
    plain = 0
    for found in re.finditer(r"\w+", text):
        if not _matches(found[0].casefold(), sought):
            continue
        if plain < found.start():
            yield Piece(text[plain : found.start()], False)
        yield Piece(found[0], True)
        plain = found.end()
    if plain < len(text):
        yield Piece(text[plain:], False)


def _matches(word: str, sought: Sequence[str]) -> bool:
    return any(
        word == one or (min(len(word), len(one)) >= _SHORTEST_WORD and (word.startswith(one) or one.startswith(word)))
        for one in sought
    )
