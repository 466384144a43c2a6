"""Rank the rows of a collection by the words that their texts share with a query (BM25).

Milvus finds the rows; the ranking is computed here. Milvus Lite 3.2 weighs a word by how rare
it is among the rows of one of its segments, so that a row just written, or one of a small
source, comes behind hundreds of others that hold no more than a common word of the query.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from embedding_platform.milvus.connection import CALL_SECONDS, explaining
from embedding_platform.milvus.expressions import EVERYTHING, Expression, compare
from embedding_platform.milvus.index import ensure_loaded
from embedding_platform.milvus.query import restricted, rows_of, rows_where
from embedding_platform.milvus.schema import WORDS_FIELD

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SATURATION = 1.5
LENGTH_WEIGHT = 0.75
"""k1 and b of BM25, at the values that are usual (Robertson and Zaragoza 2009, section 3.5)."""

SAMPLE_ROWS = 2000
"""Rows whose texts tell how long a text is and how common a common word."""

SAMPLE_LASTS = 0.1
"""Share of its rows by which a collection may have changed since its sample was taken."""

MOST_WORDS = 16
"""Words of a query that are looked up, the rarest; a text as a query has hundreds."""

_HEX_DIGITS = 8


@dataclass(frozen=True)
class WordStatistics:
    """How common words are in a collection: its number of rows, and a sample of its texts.

    `share` is the share of sampled texts that hold a word, `mean_length` their words on average.
    """

    rows: int
    mean_length: float
    share: Mapping[str, float]


def split_words(text: str) -> list[str]:
    """The words of a text as Milvus's standard analyser has them: runs of letters, digits and underscores."""
    return re.findall(r"\w+", text.lower())


def word_statistics(client: "MilvusClient", collection: str, known: WordStatistics | None = None) -> WordStatistics:
    """Statistics of a collection, or those known already where it has hardly changed since.

    Raises:
        PlatformError: if Milvus fails.
    """
    ensure_loaded(client, collection)
    with explaining(f"count the rows of {collection}"):
        rows = int(client.get_collection_stats(collection, timeout=CALL_SECONDS)["row_count"])
    if known is not None and abs(rows - known.rows) <= SAMPLE_LASTS * known.rows:
        return known
    # Ids are hashes, so that those below a bound are as good a sample as any.
    bound = 16**_HEX_DIGITS * min(SAMPLE_ROWS / max(rows, 1), 1.0)
    below = compare("id", "<", f"{int(bound):0{_HEX_DIGITS}x}") if bound < 16**_HEX_DIGITS else EVERYTHING
    texts = [split_words(row["text"]) for row in rows_where(client, collection, below, ("text",), SAMPLE_ROWS)]
    held = Counter(word for text in texts for word in set(text))
    return WordStatistics(
        rows=rows,
        mean_length=sum(map(len, texts)) / max(len(texts), 1),
        share={word: count / len(texts) for word, count in held.items()},
    )


def search_words(
    client: "MilvusClient",
    collection: str,
    text: str,
    limit: int,
    statistics: WordStatistics,
    sources: Sequence[str] | None = None,
    condition: Expression = EVERYTHING,
) -> list[dict[str, Any]]:
    """The `limit` rows that hold the rarest and the most of a text's words, best first, of a collection with words.

    A hit holds every field, vector included, and `score`, its BM25 (Robertson and Zaragoza
    2009). Ranked are the first `limit` rows that Milvus finds for all words together and for
    each word alone: of a word that fewer rows hold, those are all of them, and their number is
    known. How common the others are, the sample tells.

    Raises:
        PlatformError: an unknown source, no such collection, or Milvus fails.
    """
    words = sorted(dict.fromkeys(split_words(text)), key=lambda word: statistics.share.get(word, 0.0))[:MOST_WORDS]
    if not words or (sources is not None and not sources):
        return []
    place = restricted(client, collection, sources, condition)
    with explaining(f"search {collection} by words"):
        together, *alone = client.search(
            collection,
            data=[" ".join(words), *words],
            anns_field=WORDS_FIELD,
            limit=limit,
            filter=place.condition,
            output_fields=["id"],
            search_params={"metric_type": "BM25"},
            partition_names=place.partitions,
            consistency_level="Strong",
            timeout=CALL_SECONDS,
        )
    weights = {
        word: _weight(len(hits) if len(hits) < limit else statistics.share.get(word, 0.0) * statistics.rows, statistics)
        for word, hits in zip(words, alone, strict=True)
    }
    ids = list(dict.fromkeys(hit["id"] for hits in (together, *alone) for hit in hits))
    rows = rows_of(client, collection, ids)
    scored = [{**row, "score": _score(row["text"], weights, statistics.mean_length)} for row in rows]
    return sorted(scored, key=lambda row: (-row["score"], row["id"]))[:limit]


def _weight(holding: float, statistics: WordStatistics) -> float:
    """How much a word tells that so many rows hold: its inverse document frequency."""
    return log(1 + (max(statistics.rows - holding, 0.0) + 0.5) / (holding + 0.5))


def _score(text: str, weights: Mapping[str, float], mean_length: float) -> float:
    words = split_words(text)
    counts = Counter(word for word in words if word in weights)
    damped = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * len(words) / max(mean_length, 1.0))
    return sum(weights[word] * count * (SATURATION + 1) / (count + damped) for word, count in counts.items())
