"""Text models in the layout of sentence-transformers (Reimers and Gurevych 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Input, Prepared, Purpose
from embedding_platform.models.pretrained import does_not_load, quiet
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

CODE_VERSION = 2
POOLINGS = {
    "": "what the folder's modules.json chains: for MiniLM and MPNet the mean of token states, normalised (model cards)"
}
FILES = (("modules.json",), ("tokenizer.json",))


@dataclass(frozen=True, eq=False)
class SentenceTransformerNetwork:
    """Embeds text with the model's own chain of modules, cut at its own max_seq_length.

    A model that puts words before queries or documents (`prompts` of its configuration) gets
    them as its own `encode_query` and `encode_document` put them.
    """

    roles: tuple[Role, ...]
    dimension: int
    chain: "SentenceTransformer"

    def maximum(self, role: Role) -> str:
        """See `Network.maximum`. Longer text is cut, as the model's own code does."""
        return f"{self.chain.max_seq_length} tokens"

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """See `Network.inputs`: token ids, and whatever else the chain's first module takes."""
        return self._inputs

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """See `Network.prepare`."""
        features = self.chain.preprocess([content], prompt=self._prompt(purpose))
        return {name: features[name][0].numpy() for name in self._inputs}

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        return _as_network(self.chain, tuple(self._inputs))

    @cached_property
    def _inputs(self) -> Mapping[str, Input]:
        import torch

        paddings = {"input_ids": self.chain.tokenizer.pad_token_id or 0}
        features = self.chain.preprocess([""])
        names = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
        longest = self.chain.max_seq_length
        return {name: Input("int64", (None,), paddings.get(name, 0), longest) for name in names}

    def _prompt(self, purpose: Purpose) -> str | None:
        prompts = self.chain.prompts
        return prompts.get(purpose) or prompts.get(self.chain.default_prompt_name or "")


def load(folder: str, pooling: str) -> SentenceTransformerNetwork:
    """Load the chain that modules.json of `folder` names.

    Raises:
        PlatformError: if the folder is not a whole sentence-transformers model, or one that
            leaves its prompt out of the mean.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    with quiet():
        try:
            chain = SentenceTransformer(
                folder, device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise does_not_load(folder, error) from None
    _refuse_made_up_weights(folder, chain)
    if any(chain.prompts.values()) and not all(getattr(module, "include_prompt", True) for module in chain):
        raise PlatformError(
            f"{folder} leaves the words of its prompt out of the mean, which the batches here cannot; choose "
            "another model, or set include_prompt in its pooling configuration if its card allows it"
        )
    return SentenceTransformerNetwork(("text",), chain.get_embedding_dimension(), chain.requires_grad_(False))


def _as_network(chain: "SentenceTransformer", names: tuple[str, ...]) -> "nn.Module":
    from torch import Tensor, nn

    class Chain(nn.Module):
        """The chain's steps with their features as arguments and the sentence embedding as result."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(chain)

        def forward(self, *features: Tensor) -> Any:
            state: Any = dict(zip(names, features, strict=True))
            for step in self.steps:
                state = step(state)
            return state["sentence_embedding"].float()

    return Chain()


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
