"""CLIP: images and text in one space (Radford et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.models.encoder import check_batch
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
POOLING = "projected class token and projected end-of-text token (Radford et al. 2021, section 2.4 and figure 3)"
FILES = (("preprocessor_config.json", "processor_config.json"), ("tokenizer.json",))


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """Embeds images and text. A tower's weights are read when its role is first embedded."""

    roles: tuple[Role, ...]
    dimension: int
    device: str
    precision: str
    folder: str
    config: Any
    processor: Any
    tokenizer: Any

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """See `Encoder.embed`. Text is padded to the batch's longest and cut at the model's longest."""
        check_batch(self.roles, role, batch)
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        vectors = self._embed_text(batch) if role == "text" else self._embed_images(batch)
        return vectors.float().cpu().numpy()

    def cost(self, role: Role, content: Content) -> int:
        """1 for an image; for text its tokens with start and end, at most the model's longest."""
        return len(self._tokens([content])["input_ids"][0]) if role == "text" else 1

    @cached_property
    def image_tower(self) -> Any:
        """The vision transformer and its projection."""
        from transformers import CLIPVisionModelWithProjection

        return self._read_tower(CLIPVisionModelWithProjection, self.config.vision_config)

    @cached_property
    def text_tower(self) -> Any:
        """The text transformer and its projection."""
        from transformers import CLIPTextModelWithProjection

        return self._read_tower(CLIPTextModelWithProjection, self.config.text_config)

    def _embed_images(self, images: Sequence[Content]) -> "torch.Tensor":
        import torch

        tower = self.image_tower
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return tower(pixels.to(self.device, tower.dtype)).image_embeds

    def _embed_text(self, texts: Sequence[Content]) -> "torch.Tensor":
        import torch

        tower = self.text_tower
        tokens = self._tokens(texts, padding="longest", return_tensors="pt").to(self.device)
        with torch.inference_mode():
            return tower(tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds

    def _tokens(self, texts: Sequence[Content], **options: Any) -> Any:
        longest = self.config.text_config.max_position_embeddings
        return self.tokenizer(list(texts), truncation=True, max_length=longest, **options)

    def _read_tower(self, architecture: Any, config: Any) -> Any:
        import torch

        # A tower's own configuration can carry transformers' default instead of the model's width.
        config.projection_dim = self.dimension
        return read_model(architecture, self.folder, self.device, getattr(torch, self.precision), config=config)


def load(folder: str, device: str, dtype: "torch.dtype") -> ClipEncoder:
    """Load a folder that CLIPModel was saved to, its towers later.

    Raises:
        PlatformError: if it holds another architecture.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig

    check_architecture(folder, "clip", "clip")
    config = read_companion(CLIPConfig, folder)
    processor = read_companion(AutoImageProcessor, folder, backend="pil")
    tokenizer = read_companion(AutoTokenizer, folder)
    precision = str(dtype).removeprefix("torch.")
    roles: tuple[Role, ...] = ("image", "text")
    return ClipEncoder(roles, config.projection_dim, device, precision, folder, config, processor, tokenizer)
