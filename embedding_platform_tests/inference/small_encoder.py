"""A whole encoder that needs no weights: a content's vector is drawn from a hash of its bytes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedding_platform.records import Content, VideoClip
from embedding_platform.spaces import Role

DIMENSION = 8


def nothing_refused(content: Content) -> None:
    """A model that takes whatever comes."""


@dataclass
class SmallEncoder:
    """Embeds every role into DIMENSION values and remembers its batches.

    `refuse` raises for a content that the model cannot take; the whole batch fails with it,
    as with a real model. `spoil` may change the vector of a content.
    """

    roles: tuple[Role, ...] = ("text", "image", "audio", "video")
    dimension: int = DIMENSION
    device: str = "cpu"
    precision: str = "float32"
    refuse: Callable[[Content], None] = nothing_refused
    spoil: Callable[[Content, np.ndarray], np.ndarray] = lambda content, vector: vector
    batches: list[list[Any]] = field(default_factory=list)

    @property
    def embedded(self) -> int:
        return sum(map(len, self.batches))

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        for content in batch:
            self.refuse(content)
        self.batches.append(list(batch))
        return np.stack([self.spoil(content, vector_of(content)) for content in batch])

    def cost(self, role: Role, content: Content) -> int:
        return max(1, len(content.split())) if isinstance(content, str) else 1


def vector_of(content: Content) -> np.ndarray:
    """The unit vector of a content, float32 [DIMENSION]."""
    if isinstance(content, str):
        payload = content.encode()
    elif isinstance(content, VideoClip):
        payload = content.frames.tobytes()
    else:
        payload = np.asarray(content).tobytes()
    seed = int.from_bytes(hashlib.sha256(payload).digest()[:8], "big")
    drawn = np.random.default_rng(seed).normal(size=DIMENSION)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)
