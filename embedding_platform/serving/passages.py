"""A passage in its document, with the words of the query marked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

CONTEXT_CHARACTERS = 800
"""What is shown of the document on either side of a passage."""

_MOST_WORDS = 32

_WORD_CHARACTERS = 40
"""Where a text is cut, a pause is looked for so far; Chinese and Japanese have none."""

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = "\u3041-\u309f"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
_WORD = re.compile(f"[{_HAN}]+|[{_HIRAGANA}]+|[{_KATAKANA}]+|[^\\W{_HAN}{_HIRAGANA}{_KATAKANA}]+")
"""Of text without spaces, what is written in one script, as the words of Japanese mostly are."""

_TELLING = re.compile(f"[{_HAN}]{{2}}|[{_KATAKANA}]{{2}}")
"""How words begin that say something though they are short."""

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
    """The text in pieces, those marked that are words of the query; letter case does not count.

    In Chinese, which does not tell where a word ends, two characters that stand together in the
    query are marked where they stand together.
    """
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
    if first > 0:
        pause = before.find(" ", 0, _WORD_CHARACTERS)
        before = f"…{before[pause + 1 :]}"
    if last < len(document):
        pause = after.rfind(" ", max(0, len(after) - _WORD_CHARACTERS))
        after = f"{after[:pause] if pause >= 0 else after}…"
    return Passage(before, text, after)


def _sought(words: str) -> list[str]:
    found = list(dict.fromkeys(term for word in _WORD.findall(words.casefold()) for term in _terms(word)))
    telling = [term for term in found if len(term) >= _SHORTEST_WORD or _TELLING.match(term)]
    return (telling or found)[:_MOST_WORDS]


def _terms(word: str) -> list[str]:
    """What of a word is compared: all of it, or of Chinese each two characters that stand together."""
    if not _is_han(word) or len(word) == 1:
        return [word]
    return [word[place : place + 2] for place in range(len(word) - 1)]


def _is_han(word: str) -> bool:
    return re.match(f"[{_HAN}]", word) is not None


def _pieces(text: str, sought: Sequence[str]) -> Iterator[Piece]:
    plain = 0
    for start, end in _spans(text, sought):
        if plain < start:
            yield Piece(text[plain:start], False)
        yield Piece(text[start:end], True)
        plain = end
    if plain < len(text):
        yield Piece(text[plain:], False)


def _spans(text: str, sought: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where what is marked starts and ends; of pairs that overlap or touch, where all of them do."""
    for word in _WORD.finditer(text):
        if not _is_han(word[0]):
            if _matches(word[0].casefold(), sought):
                yield word.span()
            continue
        met = [False] * len(word[0])
        for place in range(len(met)):
            for size in (1, 2):
                if (term := word[0][place : place + size]) in sought:
                    met[place : place + len(term)] = [True] * len(term)
        place = word.start()
        for is_met, run in groupby(met):
            end = place + len(list(run))
            if is_met:
                yield place, end
            place = end


def _matches(word: str, sought: Sequence[str]) -> bool:
    return any(
        word == one or (min(len(word), len(one)) >= _SHORTEST_WORD and (word.startswith(one) or one.startswith(word)))
        for one in sought
    )
