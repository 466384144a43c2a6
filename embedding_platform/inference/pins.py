"""A fingerprint stands for one model: a hub model's files are written down, and compared ever after."""

import json
import os
from collections.abc import Mapping
from typing import Any

from embedding_platform import storage
from embedding_platform.errors import PlatformError
from embedding_platform.models import loading
from embedding_platform.spaces import Model


def hold(model: Model, url: str) -> None:
    """Pin the files of a hub model at `url`, or compare them with the pin that is there.

    A folder's content is part of its fingerprint and needs no pin. A model behind a server
    shows no files: its golden vectors tell whether it moved.

    Raises:
        PlatformError: if the model is another than when the pin was written.
    """
    if not loading.is_remote(model) and not os.path.isabs(loading.resolve(model)):
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


def _pin(url: str, found: dict[str, Any]) -> dict[str, Any]:
    held = storage.read_bytes(url)
    if held is not None:
        return json.loads(held)
    storage.write_bytes(url, json.dumps(found, indent=2).encode())
    return found
