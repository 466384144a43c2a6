"""CLIP: images and text in one space (Radford et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Input, Prepared, Purpose
from embedding_platform.models.pixels import Preparation, read_preparation
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

CODE_VERSION = 2
POOLINGS = {"": "projected class token and projected end-of-text token (Radford et al. 2021, section 2.4 and figure 3)"}
FILES = (("preprocessor_config.json", "processor_config.json"), ("tokenizer.json",))


@dataclass(frozen=True, eq=False)
class ClipNetwork:
    """Embeds images and text, each by its own tower, whose weights are read without the other's.

    Text longer than the model's longest is cut there and keeps its end token, as CLIP's own
    tokenizer does with `truncation`.
    """

    roles: tuple[Role, ...]
    dimension: int
    folder: str
    config: Any
    preparation: Preparation
    tokenizer: Any

    def maximum(self, role: Role) -> str:
        """See `Network.maximum`."""
        if role == "text":
            return f"{self._longest} tokens"
        return f"any image, seen at {self.preparation.width} x {self.preparation.height} pixels"

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """See `Network.inputs`.

        Text needs no mask: no token sees those after it, and the end token is before the padding.
        """
        if role == "text":
            return {"input_ids": Input("int64", (None,), self.tokenizer.pad_token_id, self._longest)}
        return {"pixels": self.preparation.input}

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """See `Network.prepare`."""
        if role == "text":
            tokens = self.tokenizer(content, truncation=True, max_length=self._longest)
            return {"input_ids": np.array(tokens["input_ids"], np.int64)}
        return {"pixels": self.preparation.prepare(cast("Image", content))}

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        import torch
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        if role == "text":
            architecture, config = CLIPTextModelWithProjection, self.config.text_config
        else:
            architecture, config = CLIPVisionModelWithProjection, self.config.vision_config
        # A tower's own configuration can carry transformers' default instead of the model's width.
        config.projection_dim = self.dimension
        tower = read_model(architecture, self.folder, "cpu", torch.float32, config=config)
        return _text_network(tower) if role == "text" else _image_network(self.preparation.normalised(), tower)

    @property
    def _longest(self) -> int:
        longest: int = self.config.text_config.max_position_embeddings
        return longest


def load(folder: str, pooling: str) -> ClipNetwork:
    """Load a folder that CLIPModel was saved to, its towers later.

    Raises:
        PlatformError: if it holds another architecture, or prepares images otherwise than its image tower needs.
    """
    from transformers import AutoTokenizer, CLIPConfig

    check_architecture(folder, "clip", "clip")
    config = read_companion(CLIPConfig, folder)
    preparation = read_preparation(folder)
    edge = config.vision_config.image_size
    if (preparation.height, preparation.width) != (edge, edge):
        raise PlatformError(
            f"{folder} prepares images of {preparation.width} x {preparation.height} pixels, but its image tower takes "
            f"{edge} x {edge}; copy or download the model's preprocessor_config.json again"
        )
    tokenizer = read_companion(AutoTokenizer, folder)
    if tokenizer.pad_token_id is None:
        raise PlatformError(f"{folder} has a tokenizer without a padding token; save the model's own tokenizer there")
    network = ClipNetwork(("image", "text"), config.projection_dim, folder, config, preparation, tokenizer)
    # The first call sets the tokenizer's cut, which threads side by side may not.
    network.prepare("text", "", "document")
    return network


def _image_network(normalised: "nn.Module", tower: Any) -> "nn.Module":
    from torch import Tensor, nn

    class ImageNetwork(nn.Module):
        """From uint8 [n, h, w, 3] to float32 [n, d]; normalised in float32, then in the type of the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.normalised, self.tower = normalised, tower

        def forward(self, pixels: Tensor) -> Tensor:
            vectors: Tensor = self.tower(self.normalised(pixels).to(self.tower.dtype)).image_embeds.float()
            return vectors

    return ImageNetwork()


def _text_network(tower: Any) -> "nn.Module":
    from torch import Tensor, nn

    class TextNetwork(nn.Module):
        """From token ids int64 [n, length] to float32 [n, d]."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, input_ids: Tensor) -> Tensor:
            vectors: Tensor = self.tower(input_ids).text_embeds.float()
            return vectors

    return TextNetwork()
