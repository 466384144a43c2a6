"""CocoIndex: an app that maps its SentenceTransformerEmbedder over the texts and declares a row of SQLite for each.

The embedder makes batches of at most 64 texts (fixed by its function). Remembering what was done, and
writing the rows, belong to `update` and are timed. Every time the app starts from nothing.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from contestant import Embed, Fetch, serve


@dataclass
class Row:
    number: int
    text: str
    vector: bytes


@contextmanager
def start(folder: str) -> Iterator[Embed]:
    os.environ["COCOINDEX_DB"] = os.path.abspath("cocoindex.db")
    import cocoindex
    import numpy as np
    from cocoindex.connectors import sqlite
    from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder

    numbers = count()
    database = cocoindex.ContextKey[sqlite.ManagedConnection]("database")
    embedder = SentenceTransformerEmbedder(folder, device="cpu")

    @cocoindex.lifespan
    def resources(builder: cocoindex.EnvironmentBuilder) -> Iterator[None]:
        builder.provide_with(database, sqlite.managed_connection("rows.sqlite", load_vec=False))
        yield

    @cocoindex.fn
    async def declare(numbered: tuple[int, str], table: sqlite.TableTarget[Row]) -> None:
        number, text = numbered
        vector = await embedder.embed(text)
        table.declare_row(row=Row(number, text, np.asarray(vector, np.float32).tobytes()))

    @cocoindex.fn
    async def index(texts: list[str]) -> None:
        schema = await sqlite.TableSchema.from_class(Row, primary_key=["number"])
        table = await sqlite.mount_table_target(database, "texts", schema)
        await cocoindex.map(declare, enumerate(texts), table)

    def embed(texts: list[str]) -> Fetch:
        app = cocoindex.App(f"texts_{next(numbers)}", index, texts)
        app.update_blocking()

        def fetch() -> np.ndarray:
            with sqlite3.connect("rows.sqlite") as connection:
                rows = connection.execute("select vector from texts order by number").fetchall()
            app.drop_blocking()
            return np.stack([np.frombuffer(vector, np.float32) for (vector,) in rows])

        return fetch

    yield embed


if __name__ == "__main__":
    serve(start, "cocoindex", ["cocoindex", "sentence_transformers"])
