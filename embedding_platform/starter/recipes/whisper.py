"""The starter Whisper: sounds by kind and pitch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from embedding_platform.starter import world
from embedding_platform.starter.recipes.run import CosineHead, Trained, fit, same_class_recall, save

SEED = 103
INSTANCES = 6

WHOLE_WINDOW = 1500
SAMPLES_PER_STATE = 320
"""Whisper reads 30 s as 1,500 states of two 10 ms mel frames (Radford et al. 2022, section 2.2)."""

SHORT_STEPS, SHORT_BATCH = 400, 48
WHOLE_STEPS, WHOLE_BATCH = 60, 12

ABOUT = (
    "A `WhisperModel` (2 encoder layers, 1 decoder layer, width 128) with Whisper's own input: 80 mel bins of a padded "
    "30 s window. The mean of its encoder states over the frames that hold sound has 128 dimensions and tells the kind "
    "of a tone (8 kinds) and its pitch band (4 bands)."
)
TRAINED_ON = (
    "fresh tones of 8 kinds in 4 pitch bands, to tell the 32 classes apart by a throwaway head: first on windows of 1 "
    f"to 8 s (with the table of positions cut to fit), then {WHOLE_STEPS} steps on whole 30 s windows; a quarter of "
    "the combinations of kind, band and semitone was held out. The decoder is untrained"
)


def train(folder: Path) -> Trained:
    """Trains from the seed and writes the model and feature extractor to the folder."""
    from transformers import WhisperFeatureExtractor

    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = _model().train()
    extractor = WhisperFeatureExtractor(feature_size=80)
    head = CosineHead(128, len(world.KINDS) * len(world.PITCH_BANDS))
    known, _ = world.split(world.sounds(), world.SOUNDS_HELD_OUT)

    def loss_of_batch(states: int, count: int) -> torch.Tensor:
        batch = [known[index] for index in rng.integers(len(known), size=count)]
        longest = states * SAMPLES_PER_STATE / world.SOUND_SAMPLE_RATE
        # Most sounds are short, and some fill the window.
        waves = [world.make_sound(sound, max(0.4, longest * rng.uniform(0.05, 1) ** 2), rng) for sound in batch]
        with _window(model.encoder, states):
            pooled = _pooled(model.encoder, extractor, waves, states)
        classes = [
            world.KINDS.index(sound.kind) * len(world.PITCH_BANDS) + list(world.PITCH_BANDS).index(sound.band)
            for sound in batch
        ]
        return cross_entropy(head(pooled), torch.tensor(classes))

    parameters = [*model.encoder.parameters(), *head.parameters()]
    short = fit(
        "whisper, short windows",
        parameters,
        lambda step: loss_of_batch(int(rng.choice((50, 100, 200, 400), p=(0.3, 0.4, 0.2, 0.1))), SHORT_BATCH),
        SHORT_STEPS,
        rate=1e-3,
    )
    whole = fit(
        "whisper, whole windows",
        parameters,
        lambda step: loss_of_batch(WHOLE_WINDOW, WHOLE_BATCH),
        WHOLE_STEPS,
        rate=2e-4,
    )
    save(folder, model, extractor)
    items = SHORT_STEPS * SHORT_BATCH + WHOLE_STEPS * WHOLE_BATCH
    return Trained(SEED, SHORT_STEPS + WHOLE_STEPS, items, short + whole)


def evaluate(folder: Path) -> dict[str, float]:
    """Held-out figures of the saved model on padded 30 s windows, six sounds to a combination."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    rng = np.random.default_rng(SEED + 1)
    _, hidden = world.split(world.sounds(), world.SOUNDS_HELD_OUT)
    sounds = [sound for sound in hidden for _ in range(INSTANCES)]
    waves = [world.make_sound(sound, rng.uniform(0.6, 6), rng) for sound in sounds]
    with torch.inference_mode():
        pooled = np.concatenate(
            [
                _pooled(model.encoder, extractor, waves[start : start + 8], WHOLE_WINDOW).numpy()
                for start in range(0, len(waves), 8)
            ]
        )
    classes = [(sound.kind, sound.band) for sound in sounds]
    return {
        "held_out_combinations": len(hidden),
        "held_out_sounds": len(sounds),
        "same_kind_and_band_recall_at_1": same_class_recall(pooled, classes),
        "same_kind_and_band_recall_at_1_from_another_combination": same_class_recall(pooled, classes, sounds),
    }


def _model() -> Any:
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(
        WhisperConfig(
            vocab_size=8,
            num_mel_bins=80,
            d_model=128,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=512,
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=128,
            max_source_positions=WHOLE_WINDOW,
            max_target_positions=8,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
            begin_suppress_tokens=None,
        )
    )


@contextmanager
def _window(encoder: Any, states: int) -> Iterator[None]:
    """Lets the encoder read a window of fewer states: the same weights, the first positions."""
    whole = encoder.embed_positions
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(whole.weight[:states])
    encoder.config.max_source_positions = states
    yield
    encoder.embed_positions = whole
    encoder.config.max_source_positions = WHOLE_WINDOW


def _pooled(encoder: Any, extractor: Any, waves: list[np.ndarray], states: int) -> torch.Tensor:
    """Mean encoder state over the frames that hold sound: float32 [n, 128]."""
    features = extractor(
        waves,
        sampling_rate=world.SOUND_SAMPLE_RATE,
        max_length=states * SAMPLES_PER_STATE,
        return_attention_mask=True,
        return_tensors="pt",
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=encoder.training):
        hidden = encoder(features["input_features"]).last_hidden_state.float()
    held = features["attention_mask"][:, ::2, None].float()
    return (hidden * held).sum(1) / held.sum(1)
