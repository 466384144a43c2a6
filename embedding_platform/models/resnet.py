"""ResNet image models (He et al. 2015), as transformers saves them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from embedding_platform.models.encoder import Input, Prepared, Purpose
from embedding_platform.models.pixels import Preparation, read_preparation
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

CODE_VERSION = 2
POOLINGS = {
    "": "global average of the last feature map, before the classifier (He et al. 2015, section 3.3 and table 1)"
}
FILES = (("preprocessor_config.json", "processor_config.json"),)


@dataclass(frozen=True, eq=False)
class ResNetNetwork:
    """Embeds images: the pooled last feature map, as many values as it has channels."""

    roles: tuple[Role, ...]
    dimension: int
    folder: str
    preparation: Preparation

    def maximum(self, role: Role) -> str:
        """See `Network.maximum`."""
        return f"any image, seen at {self.preparation.width} x {self.preparation.height} pixels"

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """See `Network.inputs`."""
        return {"pixels": self.preparation.input}

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """See `Network.prepare`."""
        return {"pixels": self.preparation.prepare(cast("Image", content))}

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        import torch
        from transformers import ResNetModel

        body = read_model(ResNetModel, self.folder, "cpu", torch.float32)
        return as_network(self.preparation.normalised(), body)


def load(folder: str, pooling: str) -> ResNetNetwork:
    """Load a folder that ResNetModel or ResNetForImageClassification was saved to, its weights later.

    Raises:
        PlatformError: if it holds another architecture, or prepares images in a way that is not known here.
    """
    from transformers import ResNetConfig

    check_architecture(folder, "resnet", "resnet")
    dimension = read_companion(ResNetConfig, folder).hidden_sizes[-1]
    return ResNetNetwork(("image",), dimension, folder, read_preparation(folder))


def as_network(normalised: "nn.Module", body: Any) -> "nn.Module":
    """A module from uint8 [n, h, w, 3] to the pooled last feature map of the ResNetModel `body`, float32 [n, d]."""
    from torch import Tensor, nn

    class Pooled(nn.Module):
        """Normalises in float32, then runs the body in the type of its weights."""

        def __init__(self) -> None:
            super().__init__()
            self.normalised, self.body = normalised, body

        def forward(self, pixels: Tensor) -> Tensor:
            pooled = self.body(self.normalised(pixels).to(self.body.dtype)).pooler_output
            vectors: Tensor = pooled.flatten(start_dim=1).float()
            return vectors

    return Pooled()
