"""A fingerprint stands for one model: what made its first vector is written down, and compared ever after."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.inference.precision import cosines
from embedding_platform.models import loading
from embedding_platform.models.encoder import Encoder
from embedding_platform.spaces import Model

PROBE = "The quick brown fox jumps over the lazy dog."
"""The text whose vector tells whether a model behind a server is still the same."""

_held: set[tuple[Encoder, str]] = set()
"""Servers that this process has asked already, and for which pin."""

SAME_MODEL = 0.999
"""Least cosine between two vectors of one text from one model behind a server: servers may batch and round."""


def hold(encoder: Encoder, model: Model, url: str) -> None:
    """Pin what is known of the model at `url`, or compare it with the pin that is there.

    A folder's content is part of its fingerprint and needs no pin.

    Raises:
        PlatformError: if the model is another than when the pin was written.
    """
    if loading.is_remote(model):
        if (encoder, url) not in _held:
            _hold_probe(url, model.location, encoder.embed("text", [PROBE])[0])
            _held.add((encoder, url))
    elif not os.path.isabs(loading.resolve(model)):
        _hold_files(url, model.location, loading.file_digests(model))


def _hold_files(url: str, model: str, digests: Mapping[str, str]) -> None:
    pinned = _pin(url, {"model": model, "files": dict(digests)})["files"]
    moved = sorted(name for name in pinned.keys() & digests.keys() if pinned[name] != digests[name])
    if moved:
        raise PlatformError(
            f"{model} has moved: {', '.join(moved)} is no longer the file that made the vectors under this "
            f"fingerprint (SHA-256 {pinned[moved[0]][:12]} then, {digests[moved[0]][:12]} now); fetch the model again, "
            "or name another revision in the models setting"
        )


def _hold_probe(url: str, model: str, vector: np.ndarray) -> None:
    pinned = np.array(_pin(url, {"model": model, "probe": vector.tolist()})["probe"])
    if pinned.shape == vector.shape:
        cosine = float(cosines(pinned[None], vector[None])[0])
        if cosine >= SAME_MODEL:
            return
        reason = f"cosine {cosine:.4f} between its vectors of one text"
    else:
        reason = f"vectors of dimension {vector.size}, before of {pinned.size}"
    raise PlatformError(
        f"{model} has moved: {reason}, then and now; name the model that made the collection, or another one "
        "in the models setting to embed anew"
    )


def _pin(url: str, found: dict[str, Any]) -> dict[str, Any]:
    held = storage.read_bytes(url)
    if held is not None:
        return json.loads(held)
    storage.write_bytes(url, json.dumps(found, indent=2).encode())
    return found
