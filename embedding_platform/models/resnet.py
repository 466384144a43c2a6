"""ResNet image models (He et al. 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.models.encoder import check_batch
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
POOLING = "global average of the last feature map, before the classifier (He et al. 2015, section 3.3 and table 1)"
FILES = (("preprocessor_config.json", "processor_config.json"),)


@dataclass(frozen=True, eq=False)
class ResNetEncoder:
    """Embeds images: the pooled last feature map, as many values as it has channels."""

    roles: tuple[Role, ...]
    dimension: int
    device: str
    precision: str
    network: Any
    processor: Any

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """See `Encoder.embed`."""
        import torch

        check_batch(self.roles, role, batch)
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            pooled = self.network(pixels.to(self.device, self.network.dtype)).pooler_output
        return pooled.flatten(start_dim=1).float().cpu().numpy()

    def cost(self, role: Role, content: Content) -> int:
        """1: images are all brought to one size."""
        return 1


def load(folder: str, device: str, dtype: "torch.dtype") -> ResNetEncoder:
    """Load a folder that ResNetModel or ResNetForImageClassification was saved to.

    Raises:
        PlatformError: if it holds another architecture, or lacks weights.
    """
    from transformers import AutoImageProcessor, ResNetModel

    check_architecture(folder, "resnet", "resnet")
    # The same processor with and without torchvision: another one resizes differently.
    processor = read_companion(AutoImageProcessor, folder, backend="pil")
    network = read_model(ResNetModel, folder, device, dtype)
    dimension = network.config.hidden_sizes[-1]
    return ResNetEncoder(("image",), dimension, device, str(dtype).removeprefix("torch."), network, processor)
