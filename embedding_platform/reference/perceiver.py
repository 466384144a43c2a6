"""The multimodal Perceiver IO (deepmind/multimodal-perceiver): the article's snippet, and its network with seeds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FRAMES, PIXELS, SAMPLES, LABELS = 16, 224, 30_720, 700
SAMPLE_RATE = 48_000
CHUNKS = 128


def save(folder: Path) -> None:
    """The multimodal Perceiver with random weights as deepmind/multimodal-perceiver publishes it.

    784 latents of width 512 read 52,097 tokens of 704 channels with one head, and 8 layers
    of self-attention follow (Jaegle et al. 2021, section on multimodal autoencoding). Its
    image processor is that of transformers with the frames squared and scaled to [0, 1].
    """
    import torch
    from transformers import PerceiverConfig, PerceiverForMultimodalAutoencoding, PerceiverImageProcessorPil

    torch.manual_seed(784)
    config = PerceiverConfig(
        num_latents=784,
        d_latents=512,
        d_model=704,
        num_blocks=1,
        num_self_attends_per_block=8,
        num_self_attention_heads=8,
        num_cross_attention_heads=1,
        num_labels=LABELS,
        # Wider than the usual 0.02, with which attention is even and all clips have nearly one vector.
        initializer_range=0.1,
    )
    PerceiverForMultimodalAutoencoding(config).save_pretrained(folder)
    square = {"height": PIXELS, "width": PIXELS}
    PerceiverImageProcessorPil(size=square, crop_size=square, resample=2, do_normalize=False).save_pretrained(folder)


def article(folder: str, chunks: int = CHUNKS) -> Callable[[str], np.ndarray]:
    """From the path of a clip to its vector float32 [512], by the article's code: encoder and decoder for each chunk.

    The snippet runs the whole model once for each of 128 chunks of its output, and takes
    `outputs[1]`, which is there only with `output_hidden_states=True`: here it is asked for,
    and the vector is the mean of the last latents. They are the same for all chunks; `chunks`
    tells how many of the 128 to run.
    """
    import torch

    model, processor = _load(folder)
    pixels, patches = FRAMES * PIXELS * PIXELS // CHUNKS, SAMPLES // model.config.samples_per_patch // CHUNKS

    def embed(path: str) -> np.ndarray:
        inputs = _inputs(path, processor)
        latents = torch.empty(0)
        for chunk in range(chunks):
            subsampling = {
                "image": torch.arange(pixels * chunk, pixels * (chunk + 1)),
                "audio": torch.arange(patches * chunk, patches * (chunk + 1)),
                "label": None,
            }
            with torch.no_grad():
                outputs = model(inputs=inputs, subsampled_output_points=subsampling, output_hidden_states=True)
            latents = outputs[1][-1]
        return _mean(latents)

    return embed


def encoder_only(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of a clip to its vector float32 [512], by transformers' encoder, once and without decoder."""
    import torch

    model, processor = _load(folder)
    perceiver = model.perceiver
    perceiver.decoder = perceiver.output_postprocessor = None

    def embed(path: str) -> np.ndarray:
        with torch.no_grad():
            return _mean(perceiver(inputs=_inputs(path, processor)).last_hidden_state)

    return embed


def _load(folder: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoImageProcessor, PerceiverForMultimodalAutoencoding

    model = PerceiverForMultimodalAutoencoding.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoImageProcessor.from_pretrained(folder, backend="pil")


def _inputs(path: str, processor: Any) -> Mapping[str, "Tensor"]:
    """The clip as the model takes it; zeros stand for the label, which it masks, and for sound that is missing."""
    import torch

    frames, samples = _read(path)
    return {
        "image": processor(images=frames, return_tensors="pt")["pixel_values"][None],
        "audio": torch.from_numpy(samples)[None, :, None],
        "label": torch.zeros(1, LABELS),
    }


def _mean(latents: "Tensor") -> np.ndarray:
    vector: np.ndarray = latents[0].mean(dim=0).numpy()
    return vector


def _read(path: str) -> tuple[list[Any], np.ndarray]:
    """The file's first 16 frames, and 30,720 samples of its sound: float32, mono, 48 kHz, zeros where it has none."""
    import av

    with av.open(path) as container:
        frames = [frame.to_image() for _, frame in zip(range(FRAMES), container.decode(video=0), strict=False)]
    samples = np.zeros(SAMPLES, np.float32)
    with av.open(path) as container:
        if container.streams.audio:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            decoded = [*container.decode(audio=0), None]
            heard = [piece.to_ndarray()[0] for frame in decoded for piece in resampler.resample(frame)]
            held = np.concatenate(heard)[:SAMPLES]
            samples[: len(held)] = held
    return frames, samples
