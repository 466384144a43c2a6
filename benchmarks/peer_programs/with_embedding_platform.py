"""This project: `embed_stream` over files of eight passages, as an embedding run does, in batches of its budget."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from contestant import Embed, Fetch, serve

PASSAGES_PER_FILE = 8


@contextmanager
def start(folder: str, runtime: Any, precision: Any) -> Iterator[Embed]:
    import numpy as np

    from embedding_platform.inference.devices import Execution
    from embedding_platform.inference.engine import load_encoder
    from embedding_platform.inference.stream import Embedded, embed_stream
    from embedding_platform.records import Content, Segment
    from embedding_platform.spaces import MODEL_SETS

    (space,) = (space for space in MODEL_SETS["starter"] if space.modality == "text")
    encoder = load_encoder(replace(space.model, location=folder), Execution("cpu", runtime, precision))

    def read(segments: Sequence[Segment]) -> Iterator[Content]:
        return (segment.text or "" for segment in segments)

    def embed(texts: list[str]) -> Fetch:
        segments = [
            Segment(str(number), "", "", "", "text", number, 0, len(text), text, str(number))
            for number, text in enumerate(texts)
        ]
        vectors = np.empty((len(texts), encoder.dimension), np.float32)
        files = [segments[at : at + PASSAGES_PER_FILE] for at in range(0, len(segments), PASSAGES_PER_FILE)]
        for outcome in embed_stream(files, read, encoder, {"text": encoder.budget("text")}):
            if not isinstance(outcome, Embedded):
                raise RuntimeError(outcome.reason)
            vectors[outcome.segment.position] = outcome.vector
        return lambda: vectors

    yield embed


if __name__ == "__main__":
    serve(start, "embedding-platform", ["embedding_platform"])
