import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from embedding_platform.starter.recipes import whisper


def test_short_window_takes_the_same_weights_and_leaves_them_in_place() -> None:
    torch.manual_seed(0)
    encoder = whisper._model().encoder.eval()
    table = encoder.embed_positions
    waves = [np.sin(np.arange(8_000) / 9).astype(np.float32)]
    with torch.inference_mode(), whisper._window(encoder, 50):
        short = whisper._pooled(encoder, WhisperFeatureExtractor(), waves, 50)
    assert encoder.embed_positions is table
    assert encoder.config.max_source_positions == 1500
    with torch.inference_mode():
        whole = whisper._pooled(encoder, WhisperFeatureExtractor(), waves, 1500)
    assert short.shape == whole.shape == (1, 128)
    assert torch.nn.functional.cosine_similarity(short, whole).item() > 0.8
