"""Daft: `embed_text` with its provider "transformers", and `collect`.

Batches of 1,024 texts in place of its default of 64: it hands each to `encode` of sentence-transformers,
which sorts inside it. Each `collect` loads the model again, as it does for Daft's users, and that is timed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from contestant import Embed, Fetch, serve


@contextmanager
def start(folder: str) -> Iterator[Embed]:
    import daft
    import numpy as np
    from daft.functions import embed_text

    def embed(texts: list[str]) -> Fetch:
        frame = daft.from_pydict({"text": texts})
        vector = embed_text(daft.col("text"), provider="transformers", model=folder, batch_size=1024)
        embedded = frame.with_column("vector", vector)
        found = embedded.collect().to_pydict()
        vectors = dict(zip(found["text"], found["vector"], strict=True))
        return lambda: np.stack([vectors[text] for text in texts])

    yield embed


if __name__ == "__main__":
    serve(start, "daft", ["daft", "sentence_transformers"])
