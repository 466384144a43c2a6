"""Whisper as an embedder of sound (Radford et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Input, Prepared, Purpose
from embedding_platform.models.pretrained import check_architecture, read_companion, read_model
from embedding_platform.records import Content, Sound
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

CODE_VERSION = 1
POOLINGS = {
    "": (
        "mean of the encoder states that hold sound, of a window padded with silence to the length that the "
        "model was trained on (Radford et al. 2022, section 2.2)"
    ),
    "true_length": (
        "mean of the states of an encoder that sees no more than the frames that hold sound; faster for short "
        "sounds, but not how the model was trained"
    ),
    "decoder": (
        "mean of the decoder's states of two start tokens over the padded window (the example of transformers' "
        "WhisperModel)"
    ),
}
FILES = (("preprocessor_config.json", "processor_config.json"),)

MEL_FRAMES_PER_STATE = 2
"""The encoder's second convolution has stride 2 (Radford et al. 2022, section 2.2)."""


@dataclass(frozen=True, eq=False)
class WhisperNetwork:
    """Embeds mono sound at the model's rate, up to its window: 16 kHz and 30 s for the published models.

    A state holds sound if either of its two mel frames begins within it. Each sound has one at least.
    """

    roles: tuple[Role, ...]
    dimension: int
    folder: str
    pooling: str
    extractor: Any

    def maximum(self, role: Role) -> str:
        """See `Network.maximum`."""
        return f"{self.extractor.n_samples / self.extractor.sampling_rate:g} s"

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """See `Network.inputs`: the log-mel spectrogram, and how many encoder states of it hold sound."""
        bins, frames = self.extractor.feature_size, self.extractor.nb_max_frames
        mel = Input("float32", (bins, None if self.pooling == "true_length" else frames), longest=frames)
        return {"mel": mel} if self.pooling == "decoder" else {"mel": mel, "states": Input("int64")}

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """See `Network.prepare`. Sound beyond the window is refused: the extractor would drop it silently."""
        if not isinstance(content, Sound):
            raise TypeError(f"audio contents are Sound, not {type(content).__name__}")
        samples = self._checked(content)
        states = -(-len(samples) // (self.extractor.hop_length * MEL_FRAMES_PER_STATE))
        mel = self._log_mel(samples)
        if self.pooling == "true_length":
            mel = mel[:, : states * MEL_FRAMES_PER_STATE]
        arrays = {"mel": mel, "states": np.array(states, np.int64)}
        return {name: arrays[name] for name in self.inputs(role)}

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        read = {"": _read_padded, "true_length": _read_true_length, "decoder": _read_decoder}
        return read[self.pooling](self.folder)

    def _checked(self, sound: Sound) -> np.ndarray:
        samples, rate, most = sound.samples, self.extractor.sampling_rate, self.extractor.n_samples
        if sound.rate != rate:
            raise ValueError(
                f"sound of {sound.rate} samples a second, but the model takes {rate}; resample it to {rate} Hz first"
            )
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"sound of shape {samples.shape}; give one channel with one sample at least")
        if len(samples) > most:
            raise ValueError(
                f"sound of {len(samples) / rate:.2f} s, but the model's window takes up to {most / rate:g} s "
                f"({most} samples); cut it into windows"
            )
        return samples

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """The extractor's log-mel spectrogram [bins, frames] of the window padded with silence.

        Frames of silence are all alike, so the extractor sees only so many that the last is one.
        """
        extractor = self.extractor
        hop, frames = extractor.hop_length, extractor.nb_max_frames
        past = -(-extractor.n_fft // (2 * hop)) + 1
        seen = min(-(-len(samples) // hop) + past, frames)
        features = extractor(
            samples, sampling_rate=extractor.sampling_rate, max_length=seen * hop, return_tensors="np"
        )["input_features"][0]
        silence = np.broadcast_to(features[:, -1:], (len(features), frames - seen))
        return np.concatenate([features, silence], axis=1)


def load(folder: str, pooling: str) -> WhisperNetwork:
    """Load the configuration of what WhisperModel or WhisperForConditionalGeneration was saved to.

    Raises:
        PlatformError: if the folder holds another architecture, or an extractor for other windows than its model's.
    """
    from transformers import AutoConfig, AutoFeatureExtractor

    check_architecture(folder, "whisper", "whisper")
    config, extractor = read_companion(AutoConfig, folder), read_companion(AutoFeatureExtractor, folder)
    taken = (config.num_mel_bins, config.max_source_positions * MEL_FRAMES_PER_STATE)
    given = (extractor.feature_size, extractor.nb_max_frames)
    if taken != given:
        raise PlatformError(
            f"{folder} takes windows of {taken[0]} mel bins and {taken[1]} frames, but its feature extractor gives "
            f"{given[0]} and {given[1]}; copy or download both from one model"
        )
    return WhisperNetwork(("audio",), config.d_model, folder, pooling, extractor)


def _read_padded(folder: str) -> "nn.Module":
    from torch import Tensor, nn

    class Padded(nn.Module):
        """The encoder over whole windows, and the mean of its first states."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = _read_encoder(folder)

        def forward(self, mel: Tensor, states: Tensor) -> Tensor:
            hidden = self.encoder(mel.to(self.encoder.conv1.weight.dtype)).last_hidden_state
            return _mean_of_first(hidden, states)

    return Padded()


def _read_true_length(folder: str) -> "nn.Module":
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import gelu

    class TrueLength(nn.Module):
        """The encoder over sounds of several lengths, each as if it were alone.

        What lies beyond a sound's end is zero before each convolution, as the convolutions'
        own padding is, and no state attends to it.
        """

        def __init__(self) -> None:
            super().__init__()
            self.encoder = _read_encoder(folder)

        def forward(self, mel: Tensor, states: Tensor) -> Tensor:
            encoder = self.encoder
            frames = states * MEL_FRAMES_PER_STATE
            mel = mel.to(encoder.conv1.weight.dtype)
            hidden = gelu(encoder.conv1(mel * _is_first(mel.shape[2], frames, mel)[:, None]))
            hidden = gelu(encoder.conv2(hidden * _is_first(hidden.shape[2], frames, hidden)[:, None]))
            hidden = hidden.transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
            beyond = 1 - _is_first(hidden.shape[1], states, hidden)[:, None, None]
            mask = beyond * torch.finfo(hidden.dtype).min
            for layer in encoder.layers:
                hidden = layer(hidden, mask)
            return _mean_of_first(encoder.layer_norm(hidden), states)

    return TrueLength()


def _read_decoder(folder: str) -> "nn.Module":
    import torch
    from torch import Tensor, nn
    from transformers import WhisperModel

    class Decoder(nn.Module):
        """Encoder and decoder over whole windows, and the mean of the decoder's two states."""

        def __init__(self) -> None:
            super().__init__()
            # The language head shares the weights of the token embedding and takes no part.
            self.whole = read_model(WhisperModel, folder, "cpu", torch.float32, key_mapping={r"^model\.": ""})

        def forward(self, mel: Tensor) -> Tensor:
            start = torch.full((mel.shape[0], 2), self.whole.config.decoder_start_token_id, device=mel.device)
            mel = mel.to(self.whole.encoder.conv1.weight.dtype)
            # Without a mask transformers looks for packed sequences, which OpenVINO cannot convert.
            output = self.whole(
                mel, decoder_input_ids=start, decoder_attention_mask=torch.ones_like(start), use_cache=False
            )
            return output.last_hidden_state.float().mean(dim=1)

    return Decoder()


def _read_encoder(folder: str) -> Any:
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return read_model(WhisperEncoder, folder, "cpu", torch.float32, key_mapping={r"^(model\.)?encoder\.": ""})


def _mean_of_first(hidden: "Tensor", states: "Tensor") -> "Tensor":
    """Float32 means [n, d] of the first `states` [n] of hidden [n, length, d]."""
    hidden = hidden.float()
    kept = _is_first(hidden.shape[1], states, hidden)
    return (hidden * kept[:, :, None]).sum(dim=1) / states[:, None]


def _is_first(length: int, counts: "Tensor", like: "Tensor") -> "Tensor":
    """[n, length] of the type of `like`: 1 in the first `counts` [n] places, 0 after them."""
    import torch

    return (torch.arange(length, device=like.device)[None] < counts[:, None]).to(like.dtype)
