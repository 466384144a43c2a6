"""A whole encoder that needs no weights: a content's vector is drawn from a hash of its bytes."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from embedding_platform.models.encoder import Lane, Prepared, Purpose, check_content
from embedding_platform.records import Content, Sound, VideoClip
from embedding_platform.spaces import Role

DIMENSION = 8


def nothing_refused(content: Content) -> None:
    """A model that takes whatever comes."""


@dataclass(eq=False)
class SmallEncoder:
    """Embeds every role into DIMENSION values and remembers its batches, without the repeats that fill them up.

    `refuse` raises for a content that the model fails on; the whole batch fails with it, as
    with a real model. `refuse_early` raises for one that cannot be prepared. `spoil` may
    change the vector of a content. Every lane embeds by `embed`.
    """

    roles: tuple[Role, ...] = ("text", "image", "audio", "video")
    dimension: int = DIMENSION
    device: str = "cpu"
    precision: str = "float32"
    runtime: str = "numpy"
    refuse: Callable[[Content], None] = nothing_refused
    refuse_early: Callable[[Content], None] = nothing_refused
    spoil: Callable[[Content, np.ndarray], np.ndarray] = lambda content, vector: vector
    batches: list[list[Any]] = field(default_factory=list)
    lane_count: int = 1

    @property
    def embedded(self) -> int:
        return sum(map(len, self.batches))

    @property
    def lanes(self) -> Sequence[Lane]:
        return [partial(self.run, number) for number in range(self.lane_count)]

    def maximum(self, role: Role) -> str:
        return "any length"

    def prepare(self, role: Role, content: Content, purpose: Purpose = "document") -> Prepared:
        """The content itself, as the one element of an array of objects."""
        check_content(self.roles, role, content)
        self.refuse_early(content)
        holder = np.empty(1, object)
        holder[0] = content
        return {"content": holder}

    def cost(self, role: Role, prepared: Prepared) -> int:
        return words(prepared["content"][0]) if role == "text" else 1

    def shape(self, role: Role, prepared: Prepared) -> Hashable | None:
        """As if no text were padded. A test may have it give None, as an encoder behind a server does."""
        return self.cost(role, prepared)

    def budget(self, role: Role) -> int:
        return 64 if role == "text" else 4

    def run(self, lane: int, role: Role, batch: Sequence[Prepared]) -> np.ndarray:
        distinct = {id(prepared): prepared["content"][0] for prepared in batch}
        vectors = dict(zip(distinct, self.embed(role, list(distinct.values())), strict=True))
        return np.stack([vectors[id(prepared)] for prepared in batch])

    def embed(self, role: Role, batch: Sequence[Content], purpose: Purpose = "document") -> np.ndarray:
        for content in batch:
            self.refuse(content)
        self.batches.append(list(batch))
        return np.stack([self.spoil(content, vector_of(content)) for content in batch])


def words(text: str) -> int:
    """What a text costs: its words, at least 1."""
    return max(1, len(text.split()))


def vector_of(content: Content) -> np.ndarray:
    """The unit vector of a content, float32 [DIMENSION]."""
    if isinstance(content, str):
        payload = content.encode()
    elif isinstance(content, VideoClip):
        payload = content.frames.tobytes()
    elif isinstance(content, Sound):
        payload = content.samples.tobytes()
    else:
        payload = np.asarray(content).tobytes()
    seed = int.from_bytes(hashlib.sha256(payload).digest()[:8], "big")
    drawn = np.random.default_rng(seed).normal(size=DIMENSION)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)
