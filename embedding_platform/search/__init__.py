"""Search: from words, a file or a stored row to hits.

from embedding_platform.search import Searcher

hits = Searcher.open().search("how bees find their way home", "text/minilm")
"""

from embedding_platform.search.filters import Filter, written_filter
from embedding_platform.search.hits import Hit, as_json
from embedding_platform.search.searcher import SearchableSpace, Searcher

__all__ = ["Filter", "Hit", "SearchableSpace", "Searcher", "as_json", "written_filter"]
