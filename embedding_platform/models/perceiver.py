"""The multimodal Perceiver IO as an embedder of clips (Jaegle et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import check_batch
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import CLIP_FRAMES, CLIP_SOUND_SAMPLES, Content, VideoClip
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
POOLING = "mean of the latents after the last self-attention, label masked, no decoder (Jaegle et al. 2021, figure 2)"
FILES: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class PerceiverEncoder:
    """Embeds clips of CLIP_FRAMES frames and CLIP_SOUND_SAMPLES samples of sound.

    The class label is masked: run so, the autoencoder is a video classifier (Jaegle et al.
    2021, section 4.3; mask_probs of the published model: label 1.0, image and audio 0.0).
    With these probabilities nothing is random.

    A clip without sound is one of silence, samples of 0: something that recordings hold. The
    mask token of audio is no choice, because the published model never runs with it, and
    nothing tells that it was trained.
    """

    roles: tuple[Role, ...]
    dimension: int
    device: str
    precision: str
    perceiver: Any
    processor: Any

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """See `Encoder.embed`."""
        import torch

        check_batch(self.roles, role, batch)
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        clips = [clip for clip in batch if isinstance(clip, VideoClip)]
        inputs = {
            "image": torch.stack([self._pixels(clip) for clip in clips]).to(self.device),
            "audio": torch.stack([_samples(clip) for clip in clips]).to(self.device),
            "label": torch.zeros(len(clips), self.perceiver.config.num_labels, device=self.device),
        }
        with torch.inference_mode():
            tokens, _, _ = self.perceiver.input_preprocessor(inputs)
            latents = self.perceiver.encoder(
                self.perceiver.embeddings(batch_size=len(clips)), inputs=tokens.to(self.perceiver.dtype)
            ).last_hidden_state
        return latents.float().mean(dim=1).cpu().numpy()

    def cost(self, role: Role, content: Content) -> int:
        """1: every clip has as many tokens."""
        return 1

    def _pixels(self, clip: VideoClip) -> "torch.Tensor":
        """Frames as the model takes them: float32 [CLIP_FRAMES, 3, size, size]."""
        if len(clip.frames) != CLIP_FRAMES:
            raise ValueError(f"a clip of {len(clip.frames)} frames; the model takes {CLIP_FRAMES}")
        frames = self.processor(images=list(clip.frames), input_data_format="channels_last", return_tensors="pt")
        return frames["pixel_values"]


def load(folder: str, device: str, dtype: "torch.dtype") -> PerceiverEncoder:
    """Load all but the decoder from a folder that PerceiverForMultimodalAutoencoding was saved to.

    Without an image processor in the folder, frames are prepared as the authors' video
    notebook does: the centred square, resized bilinearly, scaled to [0, 1].

    Raises:
        PlatformError: if it holds another architecture, lacks weights, or takes other clips.
    """
    from transformers import AutoImageProcessor, PerceiverForMultimodalAutoencoding, PerceiverImageProcessorPil
    from transformers.image_utils import PILImageResampling

    check_architecture(folder, "perceiver", "perceiver")
    perceiver = read_model(PerceiverForMultimodalAutoencoding, folder, device, dtype).perceiver
    perceiver.decoder = perceiver.output_postprocessor = None
    config = perceiver.config
    taken = (config.num_frames, config.num_frames * config.audio_samples_per_frame)
    if taken != (CLIP_FRAMES, CLIP_SOUND_SAMPLES):
        raise PlatformError(
            f"{folder} takes clips of {taken[0]} frames and {taken[1]} samples, but clips here have {CLIP_FRAMES} "
            f"and {CLIP_SOUND_SAMPLES}; name a model of these sizes"
        )
    if Path(folder, "preprocessor_config.json").is_file():
        processor = read_companion(AutoImageProcessor, folder, backend="pil")
    else:
        square = {"height": config.image_size, "width": config.image_size}
        processor = PerceiverImageProcessorPil(
            size=square, crop_size=square, resample=PILImageResampling.BILINEAR, do_normalize=False
        )
    return PerceiverEncoder(
        ("video",), config.d_latents, device, str(dtype).removeprefix("torch."), perceiver, processor
    )


def _samples(clip: VideoClip) -> "torch.Tensor":
    """Sound as the model takes it: float32 [CLIP_SOUND_SAMPLES, 1], zeros for a clip without."""
    import torch

    if clip.sound is None:
        return torch.zeros(CLIP_SOUND_SAMPLES, 1)
    if clip.sound.shape != (CLIP_SOUND_SAMPLES,):
        raise ValueError(f"sound of shape {clip.sound.shape}; a clip has [{CLIP_SOUND_SAMPLES}]")
    return torch.from_numpy(clip.sound).float()[:, None]
