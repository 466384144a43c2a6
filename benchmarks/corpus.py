"""English texts of a realistic mixture of lengths, the same on every machine, from the articles in starter/prose.

Benchmarks here embed these. They are distinct, so that nothing can be taken from a cache, and
in random order, as files of a lake are.
"""

import random
import re
from importlib import resources

import embedding_platform.starter

SHARES = (
    ("a title or a search", 10, (3, 8)),
    ("a sentence", 30, (9, 25)),
    ("a paragraph", 35, (26, 90)),
    ("a full passage", 20, (91, 180)),
    ("longer than the model reads", 5, (200, 280)),
)
"""What a text is, how many of a hundred are, and its least and most words.

A word is 1.2 tokens of MiniLM's, special ones apart. The platform cuts its passages to what the
model reads (256 tokens); the last kind is for those who do not, and whose truncation is compared.
"""


def texts(count: int) -> list[str]:
    """`count` distinct texts. Each begins where a sentence of an article begins and ends with a word.

    Raises:
        ValueError: if the articles do not hold as many in that mixture.
    """
    articles = _articles()
    chance = random.Random(0)
    # Dealt in exact shares before they are shuffled: a short corpus has the same mixture as a long one.
    lengths = [SHARES[_kind(number)][2] for number in range(count)]
    chance.shuffle(lengths)
    found: dict[str, None] = {}
    for low, high in lengths:
        for _ in range(1000):
            text = _passage(articles, chance, low, high)
            if text not in found:
                break
        else:
            raise ValueError(f"{count} texts are more than the articles hold; ask for fewer")
        found[text] = None
    return list(found)


def _articles() -> list[tuple[list[str], list[int]]]:
    """The words of each article, and where its sentences begin."""
    articles = []
    folder = resources.files(embedding_platform.starter).joinpath("prose")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        lines = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines()]
        sentences = [part.split() for line in lines for part in re.split(r"(?<=[.?!]) ", line) if part]
        starts = [sum(map(len, sentences[:number])) for number in range(len(sentences))]
        articles.append(([word for sentence in sentences for word in sentence], starts))
    return articles


def _kind(number: int) -> int:
    """The kind of the text of that number, each hundred of which holds the kinds in their shares, well mixed."""
    place = number * 37 % 100
    reached = 0
    for kind, (_, share, _) in enumerate(SHARES):
        reached += share
        if place < reached:
            return kind
    raise AssertionError("the shares sum to 100")


def _passage(articles: list[tuple[list[str], list[int]]], chance: random.Random, low: int, high: int) -> str:
    words, starts = articles[chance.randrange(len(articles))]
    length = chance.randint(low, high)
    possible = [start for start in starts if start + length <= len(words)]
    start = possible[chance.randrange(len(possible))]
    return " ".join(words[start : start + length])
