"""Whisper (openai/whisper-base): the article's snippet, the right vector by plain code, and the network with seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000


def save(folder: Path) -> None:
    """Whisper base with random weights, and its feature extractor, as openai/whisper-base publishes them.

    Encoder and decoder have 6 layers of width 512 (Radford et al. 2022, table 1).
    """
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(74)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=512,
        encoder_layers=6,
        encoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_layers=6,
        decoder_attention_heads=8,
        decoder_ffn_dim=2048,
        # Wider than the usual 0.02, with which all sounds have nearly one vector.
        init_std=0.06,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def article(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of a sound to its vector float32 [512], by the article's code: decoder states of two start tokens.

    The snippet does not say the sampling rate, which the extractor wants to be told, and
    keeps the gradient: here it is 16 kHz, and inference. It prints states (1, 2, 512), which
    are no vector yet: here it is their mean. Sound beyond 30 s is cut silently, as printed.
    """
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(path: str) -> np.ndarray:
        inputs = extractor(_read(path), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
        with torch.no_grad():
            states = model(inputs.input_features, decoder_input_ids=decoder_input_ids).last_hidden_state
        return _mean(states[0])

    return embed


def encoder_padded(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of a sound of 30 s at most to its right vector float32 [512].

    It is the mean of the encoder's states of the padded window over those that hold sound,
    two mel frames for each: over all of them the silence behind a short sound would count.
    """
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(path: str) -> np.ndarray:
        inputs = extractor(_read(path), sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt")
        with torch.no_grad():
            states = model.encoder(inputs.input_features).last_hidden_state[0]
        holds_sound = inputs.attention_mask[0, ::2].bool()
        return _mean(states[holds_sound])

    return embed


def _mean(states: Any) -> np.ndarray:
    vector: np.ndarray = states.mean(dim=0).numpy()
    return vector


def _read(path: str) -> np.ndarray:
    """The file's first sound, float32 [n] mono at SAMPLE_RATE."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(path) as container:
        frames = [*container.decode(audio=0), None]
        pieces = [piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)]
    return np.concatenate(pieces)
