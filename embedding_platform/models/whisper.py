"""Whisper's encoder as an embedder of sound (Radford et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.models.encoder import check_batch
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import SAMPLE_RATE, Content
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
POOLING = (
    "mean of the encoder states that hold sound, of a window padded with silence to the length that the "
    "model was trained on (Radford et al. 2022, section 2.2)"
)
FILES = (("preprocessor_config.json", "processor_config.json"),)

MEL_FRAMES_PER_STATE = 2
"""The encoder's second convolution has stride 2 (Radford et al. 2022, section 2.2)."""


@dataclass(frozen=True, eq=False)
class WhisperEncoder:
    """Embeds mono sound at SAMPLE_RATE, up to the model's window (30 s for the published models)."""

    roles: tuple[Role, ...]
    dimension: int
    device: str
    precision: str
    network: Any
    extractor: Any

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """See `Encoder.embed`. Sound beyond the window is refused: the extractor would drop it silently."""
        import torch

        check_batch(self.roles, role, batch)
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        for sound in batch:
            if isinstance(sound, np.ndarray) and (sound.ndim != 1 or len(sound) > self.extractor.n_samples):
                raise ValueError(
                    f"sound of shape {sound.shape}; the model takes [n] with n up to {self.extractor.n_samples}"
                )
        features = self.extractor(
            list(batch), sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt"
        )
        with torch.inference_mode():
            mel = features["input_features"].to(self.device, self.network.dtype)
            states = self.network(mel).last_hidden_state.float()
            heard = features["attention_mask"][:, ::MEL_FRAMES_PER_STATE].to(self.device, torch.float32)
            heard[:, 0] = 1.0
            means = (states * heard[:, :, None]).sum(dim=1) / heard.sum(dim=1, keepdim=True)
        return means.cpu().numpy()

    def cost(self, role: Role, content: Content) -> int:
        """1: every window is padded to one length."""
        return 1


def load(folder: str, device: str, dtype: "torch.dtype") -> WhisperEncoder:
    """Load the encoder from a folder that WhisperModel or WhisperForConditionalGeneration was saved to.

    Raises:
        PlatformError: if it holds another architecture, or lacks weights.
    """
    from transformers import AutoFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Network

    check_architecture(folder, "whisper", "whisper")
    extractor = read_companion(AutoFeatureExtractor, folder)
    network = read_model(Network, folder, device, dtype, key_mapping={r"^(model\.)?encoder\.": ""})
    dimension = network.config.d_model
    return WhisperEncoder(("audio",), dimension, device, str(dtype).removeprefix("torch."), network, extractor)
