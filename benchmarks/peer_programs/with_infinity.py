"""infinity: its AsyncEmbeddingEngine on torch, in the type asked for, its default batches of 32, sorted by tokens."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from contestant import Embed, Fetch, serve


@contextmanager
def start(folder: str, dtype: str) -> Iterator[Embed]:
    import numpy as np
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    given = EngineArgs(
        model_name_or_path=folder,
        engine="torch",
        device="cpu",
        dtype=dtype,
        lengths_via_tokenize=True,
        model_warmup=False,
    )
    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(given)
    loop.run_until_complete(engine.astart())

    def embed(texts: list[str]) -> Fetch:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=texts))
        return lambda: np.stack(vectors)

    yield embed
    loop.run_until_complete(engine.astop())


if __name__ == "__main__":
    serve(start, "infinity-emb", ["infinity_emb", "sentence_transformers"])
