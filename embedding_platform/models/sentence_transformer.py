"""Text models in the layout of sentence-transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import check_batch
from embedding_platform.models.pretrained import does_not_load, quiet
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

CODE_VERSION = 1
POOLING = (
    "what the folder's modules.json chains: for MiniLM and MPNet the mean of token states, normalised (model cards)"
)
FILES = (("modules.json",), ("tokenizer.json",))


@dataclass(frozen=True, eq=False)
class SentenceTransformerEncoder:
    """Embeds text with the model's own chain of modules, cut at its own max_seq_length."""

    roles: tuple[Role, ...]
    dimension: int
    device: str
    precision: str
    chain: "SentenceTransformer"

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """See `Encoder.embed`."""
        check_batch(self.roles, role, batch)
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        vectors = self.chain.encode(list(batch), batch_size=len(batch), show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    def cost(self, role: Role, content: Content) -> int:
        """Tokens of the text, special ones included, at most the model's max_seq_length."""
        tokens = self.chain.tokenizer(content, truncation=True, max_length=self.chain.max_seq_length)
        return len(tokens["input_ids"])


def load(folder: str, device: str, dtype: "torch.dtype") -> SentenceTransformerEncoder:
    """Load the chain that modules.json of `folder` names.

    Raises:
        PlatformError: if the folder is not a whole sentence-transformers model.
    """
    from sentence_transformers import SentenceTransformer

    with quiet():
        try:
            chain = SentenceTransformer(
                folder, device=device, local_files_only=True, model_kwargs={"dtype": dtype}
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise does_not_load(folder, error) from None
    _refuse_made_up_weights(folder, chain)
    dimension = chain.get_embedding_dimension()
    return SentenceTransformerEncoder(("text",), dimension, device, str(dtype).removeprefix("torch."), chain)


def _refuse_made_up_weights(folder: str, chain: "SentenceTransformer") -> None:
    """transformers fills missing weights with random numbers; the chain hides its report of that.

    The pooler may be missing, and often is: the chain takes token states from before it.
    """
    from safetensors import safe_open

    path = Path(folder, "model.safetensors")
    if not path.is_file():
        return
    with safe_open(path, framework="numpy") as file:
        saved = set(file.keys())
    prefixes = ("", f"{chain[0].model.base_model_prefix}.")
    needed = [name for name, _ in chain[0].model.named_parameters() if not name.startswith("pooler.")]
    lacking = [name for name in needed if not any(prefix + name in saved for prefix in prefixes)]
    if lacking:
        raise PlatformError(
            f"{path} lacks {len(lacking)} weights that config.json asks for, {lacking[0]} among them; "
            "copy or download the model again"
        )
