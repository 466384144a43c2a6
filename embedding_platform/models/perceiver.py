"""The multimodal Perceiver IO as an embedder of clips (Jaegle et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Input, Prepared, Purpose
from embedding_platform.models.pixels import Preparation, preparation_of, read_preparation
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import CLIP_FRAMES, CLIP_SOUND_SAMPLES, Content, VideoClip
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

CODE_VERSION = 2
POOLINGS = {
    "": "mean of the latents after the last self-attention, label masked, no decoder (Jaegle et al. 2021, figure 2)"
}
FILES: tuple[tuple[str, ...], ...] = ()

PATCH = 4
"""Edge in pixels of the square patches that are one token each (spatial_downsample of transformers'
PerceiverForMultimodalAutoencoding)."""


@dataclass(frozen=True, eq=False)
class PerceiverNetwork:
    """Embeds clips of CLIP_FRAMES frames and CLIP_SOUND_SAMPLES samples of sound.

    The class label is masked: run so, the autoencoder is a video classifier (Jaegle et al.
    2021, section 4.3; mask_probs of the published model: label 1.0, image and audio 0.0).
    With these probabilities nothing is random.

    A clip without sound is one of silence, samples of 0: something that recordings hold. The
    paper masks the label alone. The mask token of audio is no choice, because the published
    model never runs with it, and nothing tells that it was trained.
    """

    roles: tuple[Role, ...]
    dimension: int
    folder: str
    preparation: Preparation

    def maximum(self, role: Role) -> str:
        """See `Network.maximum`."""
        return f"{CLIP_FRAMES} frames"

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """See `Network.inputs`: pixels patch by patch, rows of a patch first, and samples of sound."""
        patches = CLIP_FRAMES * self._rows * self._columns
        return {
            "patches": Input("uint8", (patches, PATCH, PATCH, 3)),
            "samples": Input("float32", (CLIP_SOUND_SAMPLES,)),
        }

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """See `Network.prepare`. A clip without sound gets samples of 0."""
        if not isinstance(content, VideoClip):
            raise TypeError(f"video contents are VideoClip, not {type(content).__name__}")
        if len(content.frames) != CLIP_FRAMES:
            raise ValueError(
                f"a clip of {len(content.frames)} frames; the model takes {CLIP_FRAMES}: cut the video into such clips"
            )
        samples = np.zeros(CLIP_SOUND_SAMPLES, np.float32) if content.sound is None else content.sound
        if samples.shape != (CLIP_SOUND_SAMPLES,):
            raise ValueError(
                f"a clip with sound of shape {samples.shape}; the model takes [{CLIP_SOUND_SAMPLES}]: "
                "cut it as long as the frames"
            )
        frames = self.preparation.prepare_frames(content.frames)
        patches = frames.reshape(CLIP_FRAMES, self._rows, PATCH, self._columns, PATCH, 3).swapaxes(2, 3)
        return {
            "patches": np.ascontiguousarray(patches).reshape(-1, PATCH, PATCH, 3),
            "samples": samples.astype(np.float32, copy=False),
        }

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        import torch
        from transformers import PerceiverForMultimodalAutoencoding

        whole = read_model(PerceiverForMultimodalAutoencoding, self.folder, "cpu", torch.float32)
        return _reassociated(whole.perceiver, self.preparation.normalised(), self._rows, self._columns)

    @property
    def _rows(self) -> int:
        return self.preparation.height // PATCH

    @property
    def _columns(self) -> int:
        return self.preparation.width // PATCH


def load(folder: str, pooling: str) -> PerceiverNetwork:
    """Load the configuration of what PerceiverForMultimodalAutoencoding was saved to.

    Without an image processor in the folder, frames are prepared as the authors' video
    notebook does: the centred square, resized bilinearly to the size of the model's output,
    scaled to [0, 1]. (image_size is another one: 56 in the published model, the number of
    patches along an edge of its 224 pixels.)

    Raises:
        PlatformError: if it holds another architecture, or takes other clips.
    """
    from transformers import AutoConfig, PerceiverImageProcessorPil
    from transformers.image_utils import PILImageResampling

    check_architecture(folder, "perceiver", "perceiver")
    config = read_companion(AutoConfig, folder)
    taken = (config.num_frames, config.num_frames * config.audio_samples_per_frame)
    if taken != (CLIP_FRAMES, CLIP_SOUND_SAMPLES):
        raise PlatformError(
            f"{folder} takes clips of {taken[0]} frames and {taken[1]} samples, but clips here have {CLIP_FRAMES} "
            f"and {CLIP_SOUND_SAMPLES}; name a model of these sizes"
        )
    if Path(folder, "preprocessor_config.json").is_file():
        preparation = read_preparation(folder)
    else:
        height, width = config.output_shape[-2:]
        square = {"height": height, "width": width}
        processor = PerceiverImageProcessorPil(
            size=square, crop_size=square, resample=PILImageResampling.BILINEAR, do_normalize=False
        )
        preparation = preparation_of(processor, folder)
    if preparation.height % PATCH or preparation.width % PATCH:
        raise PlatformError(
            f"{folder} takes frames of {preparation.height} x {preparation.width} pixels, which do not part into "
            f"patches of {PATCH} x {PATCH}; correct size in its preprocessor_config.json"
        )
    return PerceiverNetwork(("video",), config.d_latents, folder, preparation)


def _reassociated(perceiver: Any, normalised: "nn.Module", rows: int, columns: int) -> "nn.Module":
    """The encoder of transformers' PerceiverModel at a fraction of its work, equal but for rounding.

    The cross-attention reads tokens x of several hundred channels by way of their layer norm
    s * (x - mean x) * gain + offset. Its queries are constants, and of a patch's channels
    all but its pixels are too: they are functions of frame, row and column. So

    - a score is s times the dot product of x with query and key weights multiplied out once
      and centred over the channels. What query, offset and key bias add is equal for all
      tokens, and falls out of the softmax;
    - x of a patch is a short feature, its pixels beside a 1 for each of its frame, row and
      column, times a constant table; queries meet the features, and the table is applied
      to their weighted mean;
    - so is the value projection, to one mean token for each query instead of to every token.

    The softmax runs over frame after frame with a running maximum, so that scores of one
    frame at a time are in memory (Milakov and Gimelshein 2018, "Online normalizer
    calculation for softmax"). The few tokens of sound and label stay as they are.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import layer_norm

    # The class below must not name `perceiver`, which would keep the decoder in memory.
    attention = perceiver.encoder.cross_attention.attention.self
    heads, epsilon = attention.num_heads, attention.layernorm2.eps
    blocks, count = perceiver.config.num_blocks, perceiver.config.num_latents

    class Reassociated(nn.Module):
        """Mean latents float32 [n, d] of patches uint8 [n, tokens, PATCH, PATCH, 3] and samples [n, samples]."""

        queries: Tensor
        feature_queries: Tensor
        table: Tensor
        placed: Tensor
        place_sums: Tensor
        place_squares: Tensor
        sound: Tensor
        label: Tensor
        values: Tensor
        value_bias: Tensor
        residual: Tensor

        def __init__(self, encoder: Any, constants: Mapping[str, Tensor]) -> None:
            super().__init__()
            self.normalised = normalised
            self.layers = encoder.self_attends
            cross = encoder.cross_attention
            self.project, self.normalise, self.feed_forward = cross.attention.output, cross.layernorm, cross.mlp
            for name, value in constants.items():
                self.register_buffer(name, value.float())

        def forward(self, patches: Tensor, samples: Tensor) -> Tensor:
            hidden = self.attended(patches, samples)
            hidden = hidden + self.feed_forward(self.normalise(hidden))
            for _ in range(blocks):
                for layer in self.layers:
                    hidden = layer(hidden)[0]
            return hidden.float().mean(dim=1)

        def attended(self, patches: Tensor, samples: Tensor) -> Tensor:
            """Latents [n, latents, d] after the cross-attention."""
            mean = self.mean_token(patches, samples)
            mean = (mean - mean.mean(dim=-1, keepdim=True)).to(self.queries.dtype)
            values = mean.view(-1, heads, count, mean.shape[-1]) @ self.values + self.value_bias
            context = values.transpose(1, 2).flatten(2)
            return self.project(context) + self.residual

        def mean_token(self, patches: Tensor, samples: Tensor) -> Tensor:
            """The attention-weighted mean of s * x over all tokens, float32 [n, heads * latents, channels]."""
            others = self.other_tokens(samples)
            scores = (self.queries @ others.transpose(1, 2)).float()
            highest = scores.amax(dim=-1, keepdim=True)
            weights = (scores - highest).exp()
            total = weights.sum(dim=-1, keepdim=True)
            of_others = (weights.to(others.dtype) @ others).float()

            first, of_patches = highest, torch.zeros_like(highest)
            for features in self.features(patches).split(rows * columns, dim=1):
                scores = (self.feature_queries @ features.transpose(1, 2)).float()
                higher = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
                weights, fading = (scores - higher).exp(), (highest - higher).exp()
                total = total * fading + weights.sum(dim=-1, keepdim=True)
                of_patches = of_patches * fading + (weights.to(features.dtype) @ features).float()
                highest = higher
            of_patches = (of_patches.to(features.dtype) @ self.table).float()
            return (of_others * (first - highest).exp() + of_patches) / total

        def features(self, patches: Tensor) -> Tensor:
            """What differs between patches, times their s: [n, tokens, pixels + frames + rows + columns]."""
            pixels = self.normalised(patches).flatten(2)
            channels = self.table.shape[1]
            # Not pixels.sum(dim=-1): to such a sum OpenVINO 2026.4 adds the first of the constants in every place.
            ones = torch.ones(pixels.shape[-1], device=pixels.device)
            mean = (pixels @ ones + self.place_sums.float()) / channels
            square = (pixels.square() @ ones + self.place_squares.float()) / channels
            scale = (square - mean.square() + epsilon).rsqrt()[..., None]
            placed = self.placed.expand(pixels.shape[0], -1, -1)
            return (torch.cat([pixels, placed.float()], dim=2) * scale).to(self.queries.dtype)

        def other_tokens(self, samples: Tensor) -> Tensor:
            """Normalised tokens of sound and label [n, tokens, channels], without gain and offset."""
            sound = samples.view(-1, len(self.sound), samples.shape[1] // len(self.sound))
            sound = torch.cat([sound, self.sound.float().expand(sound.shape[0], -1, -1)], dim=2)
            tokens = torch.cat([sound, self.label.float().expand(sound.shape[0], -1, -1)], dim=1)
            return layer_norm(tokens, tokens.shape[-1:], eps=epsilon).to(self.queries.dtype)

    return Reassociated(perceiver.encoder, _constants(perceiver, _Places(rows, columns)))


@dataclass(frozen=True)
class _Places:
    """Where a patch can be: in one of CLIP_FRAMES frames, in a row and a column."""

    rows: int
    columns: int

    @property
    def grid(self) -> tuple[int, int, int]:
        return (CLIP_FRAMES, self.rows, self.columns)

    def one_hot(self) -> "Tensor":
        """[tokens, frames + rows + columns] with a 1 for each of a token's frame, row and column."""
        import torch
        from torch.nn.functional import one_hot

        indices = torch.cartesian_prod(*map(torch.arange, self.grid))
        return torch.cat([one_hot(indices[:, axis], size) for axis, size in enumerate(self.grid)], dim=1)

    def part(self, constant: "Tensor") -> "Tensor":
        """Table [frames + rows + columns, channels] that `one_hot` times gives `constant` [tokens, channels].

        Holds for what is a sum of functions of one coordinate each, as Fourier features are.
        """
        import torch

        constant = constant.view(*self.grid, -1)
        first = constant[0, 0, 0]
        return torch.cat([constant[:, 0, 0], constant[0, :, 0] - first, constant[0, 0, :] - first])


def _constants(perceiver: Any, places: _Places) -> dict[str, "Tensor"]:
    """All that the re-associated cross-attention knows before it sees a clip, in float64."""
    import torch
    from torch import Tensor

    prepare = perceiver.input_preprocessor
    attention = perceiver.encoder.cross_attention.attention.self
    heads, channels = attention.num_heads, prepare.num_channels
    latents = perceiver.embeddings.latents

    def split(weights: Tensor) -> Tensor:
        """[heads, out / heads, in] of weights [out, in]."""
        return weights.double().view(heads, -1, weights.shape[1])

    def in_place(modality: str, grid: tuple[int, ...]) -> Tensor:
        """Position and padding [tokens, channels] of a modality's tokens, behind what they hold."""
        positions = prepare.modalities[modality].position_embeddings(grid, 1, latents.device, torch.float32)[0]
        return torch.cat([positions, prepare.padding[modality].expand(len(positions), -1)], dim=1).double()

    gain, offset = attention.layernorm2.weight.double(), attention.layernorm2.bias.double()
    asked = attention.query(attention.layernorm1(latents)).view(len(latents), heads, -1).transpose(0, 1).double()
    queries = asked @ split(attention.key.weight) / attention.qk_channels_per_head**0.5 * gain
    queries = (queries - queries.mean(dim=-1, keepdim=True)).flatten(0, 1)
    values = split(attention.value.weight)

    pixels = 3 * PATCH**2
    # Channels of a token go by row, column and colour of the patch; those of a feature by colour first.
    order = torch.arange(pixels).view(PATCH, PATCH, 3).permute(2, 0, 1).flatten()
    behind = in_place("image", places.grid)
    table = torch.zeros(pixels + sum(places.grid), channels, dtype=torch.float64)
    table[:pixels] = torch.eye(channels, dtype=torch.float64)[order]
    table[pixels:, pixels:] = places.part(behind)

    residual = latents if perceiver.encoder.cross_attention.attention.use_query_residual else torch.zeros_like(latents)
    return {
        "queries": queries,
        "feature_queries": queries @ table.T,
        "table": table,
        "placed": places.one_hot(),
        "place_sums": behind.sum(dim=1),
        "place_squares": behind.square().sum(dim=1),
        "sound": in_place("audio", (CLIP_SOUND_SAMPLES // prepare.modalities["audio"].samples_per_patch,)),
        "label": prepare.mask["label"],
        "values": (values * gain).transpose(1, 2),
        "value_bias": (values @ offset + attention.value.bias.double().view(heads, -1))[:, None],
        "residual": residual,
    }
