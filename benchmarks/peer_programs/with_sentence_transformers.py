"""sentence-transformers: `encode` of the whole list, which sorts it by length. Its default batches of 32 texts."""

from collections.abc import Iterator
from contextlib import contextmanager

from contestant import Embed, Fetch, serve


@contextmanager
def start(folder: str) -> Iterator[Embed]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True)

    def embed(texts: list[str]) -> Fetch:
        vectors = model.encode(texts)
        return lambda: vectors

    yield embed


if __name__ == "__main__":
    serve(start, "sentence-transformers", ["sentence_transformers"])
