"""The starter Perceiver: clips by movement and colour, with their sound."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from embedding_platform.starter import world
from embedding_platform.starter.recipes.run import CosineHead, Trained, fit, same_class_recall, save

PIXELS = 64
SEED = 104
STEPS = 1900

BATCH = 32
POOL = 4000
INSTANCES = 4
SILENT = 0.3
KEPT = 0.4
"""Part of the tokens that a training step reads: each step another part, and the last tenth of the steps all."""

ABOUT = (
    "A `PerceiverForMultimodalAutoencoding` (64 latents of width 128, 4 self-attention layers; 16 frames of 64x64 and "
    "30,720 sound samples). The mean of its encoder's latents has 128 dimensions and tells a clip's movement (6) and "
    "colour (8), whatever the shape, with or without sound."
)
TRAINED_ON = (
    f"{POOL:,} clips of moving shapes, rolled in time at random, {SILENT:.0%} of them with the sound "
    "zeroed, to tell the 48 pairs of movement and colour apart by throwaway heads; a quarter of the combinations of "
    "movement, colour and shape was held out. The decoder is untrained"
)


def train(folder: Path) -> Trained:
    """Trains from the seed and writes the model and image processor to the folder."""
    from transformers import PerceiverForMultimodalAutoencoding

    torch.manual_seed(SEED)
    model = PerceiverForMultimodalAutoencoding(_config())
    seconds = _fit(model)
    save(folder, model, _processor())
    return Trained(SEED, STEPS, STEPS * BATCH, seconds)


def _fit(model: Any) -> float:
    rng = np.random.default_rng(SEED)
    processor = _processor()
    mean = torch.tensor(processor.image_mean).view(1, 1, 3, 1, 1)
    deviation = torch.tensor(processor.image_std).view(1, 1, 3, 1, 1)
    count = len(world.MOTIONS), len(world.COLOURS)
    motions, colours, both = (CosineHead(128, classes) for classes in (*count, count[0] * count[1]))
    known, _ = world.split(world.clips(), world.CLIPS_HELD_OUT)
    model.train()
    chosen = [known[index] for index in rng.integers(len(known), size=POOL)]
    frames = np.empty((POOL, world.MOTION_FRAMES, PIXELS, PIXELS, 3), np.uint8)
    sounds = np.empty((POOL, world.CLIP_SAMPLES), np.float16)
    for index, clip in enumerate(chosen):
        frames[index], sounds[index] = world.make_clip(clip, PIXELS, rng)
    motion = torch.tensor([world.MOTIONS.index(clip.motion) for clip in chosen])
    colour = torch.tensor([list(world.COLOURS).index(clip.colour) for clip in chosen])

    def loss_of_step(step: int) -> torch.Tensor:
        picked = rng.choice(POOL, BATCH, replace=False)
        turns = rng.integers(world.MOTION_FRAMES, size=BATCH)
        seen = np.stack([np.roll(frames[index], turn, 0) for index, turn in zip(picked, turns, strict=True)])
        samples_per_frame = world.CLIP_SAMPLES // world.MOTION_FRAMES
        heard = np.stack(
            [np.roll(sounds[index], turn * samples_per_frame) for index, turn in zip(picked, turns, strict=True)]
        )
        heard[rng.random(BATCH) < SILENT] = 0
        pixels = torch.from_numpy(seen).permute(0, 1, 4, 2, 3).float() / 255
        pixels = (pixels + 0.02 * torch.rand(BATCH, 1, 1, 1, 1) * torch.randn_like(pixels) - mean) / deviation
        with torch.autocast("cpu", torch.bfloat16):
            kept = KEPT if step < 0.9 * STEPS else 1.0
            pooled = _latents(model, pixels, torch.from_numpy(heard).float(), kept).mean(1).float()
        true_motion, true_colour = motion[picked], colour[picked]
        return (
            cross_entropy(both(pooled), len(world.COLOURS) * true_motion + true_colour)
            + cross_entropy(motions(pooled), true_motion)
            + cross_entropy(colours(pooled), true_colour)
        )

    encoder = [parameter for name, parameter in model.perceiver.named_parameters() if not name.startswith("decoder")]
    heads = [*motions.parameters(), *colours.parameters(), *both.parameters()]
    return fit("perceiver", [*encoder, *heads], loss_of_step, STEPS, rate=1e-3)


def evaluate(folder: Path) -> dict[str, float]:
    """Held-out figures of the saved model, four clips to a combination, by its own encoder."""
    from transformers import AutoImageProcessor, PerceiverForMultimodalAutoencoding

    model = PerceiverForMultimodalAutoencoding.from_pretrained(folder, dtype=torch.float32).eval()
    model.perceiver.decoder = None
    processor = AutoImageProcessor.from_pretrained(folder)
    rng = np.random.default_rng(SEED + 1)
    _, hidden = world.split(world.clips(), world.CLIPS_HELD_OUT)
    clips = [clip for clip in hidden for _ in range(INSTANCES)]
    with_sound: list[np.ndarray] = []
    without: list[np.ndarray] = []
    for clip in clips:
        frames, sound = world.make_clip(clip, 128, rng)
        pixels = processor(list(frames), return_tensors="pt")["pixel_values"][None]
        for heard, vectors in ((sound, with_sound), (np.zeros_like(sound), without)):
            inputs = {
                "image": pixels,
                "audio": torch.from_numpy(heard)[None, :, None],
                "label": torch.zeros(1, model.config.num_labels),
            }
            with torch.inference_mode():
                vectors.append(model.perceiver(inputs=inputs).last_hidden_state.mean(1)[0].numpy())
    classes = [(clip.motion, clip.colour) for clip in clips]
    mixed = np.stack([*with_sound[0::2], *without[1::2]])
    return {
        "held_out_combinations": len(hidden),
        "held_out_clips": len(clips),
        "same_motion_and_colour_recall_at_1": same_class_recall(np.stack(with_sound), classes),
        "same_motion_and_colour_recall_at_1_from_another_combination": same_class_recall(
            np.stack(with_sound), classes, clips
        ),
        "same_motion_and_colour_recall_at_1_silent": same_class_recall(np.stack(without), classes),
        "same_motion_and_colour_recall_at_1_half_silent": same_class_recall(mixed, [*classes[0::2], *classes[1::2]]),
    }


def _processor() -> Any:
    from transformers import PerceiverImageProcessorPil

    side = {"height": PIXELS, "width": PIXELS}
    return PerceiverImageProcessorPil(size=side, crop_size=side)


def _config() -> Any:
    from transformers import PerceiverConfig

    return PerceiverConfig(
        num_latents=64,
        d_latents=128,
        d_model=128,
        qk_channels=128,
        v_channels=128,
        num_self_attends_per_block=4,
        num_self_attention_heads=4,
        num_cross_attention_heads=1,
        self_attention_widening_factor=2,
        cross_attention_widening_factor=2,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        image_size=PIXELS,
        num_frames=world.MOTION_FRAMES,
        audio_samples_per_frame=world.CLIP_SAMPLES // world.MOTION_FRAMES,
        samples_per_patch=16,
        output_shape=[1, world.MOTION_FRAMES, PIXELS, PIXELS],
        output_num_channels=32,
        num_labels=8,
        _label_trainable_num_channels=64,
    )


def _latents(model: Any, pixels: torch.Tensor, sound: torch.Tensor, kept: float = 1.0) -> torch.Tensor:
    """The encoder's latents as `model.perceiver` gives them, at a fraction of the work.

    The queries of the cross-attention are constants, and all but the 48 pixel or 16 sound
    channels of a token are too. So scores are taken against the raw channels, and the value
    projection falls on the attention-weighted mean of tokens instead of on 6,017 of them.

    Args:
        model: a `PerceiverForMultimodalAutoencoding` with one cross-attention head.
        pixels: float32 [n, 16, 3, 64, 64], normalised.
        sound: float32 [n, 30,720].
        kept: part of the tokens to read, drawn at random; below 1 the result is an estimate.

    Returns:
        float32 [n, latents, width].
    """
    from transformers.models.perceiver.modeling_perceiver import space_to_depth

    perceiver = model.perceiver
    prepare = perceiver.input_preprocessor
    layer = perceiver.encoder.cross_attention
    attention = layer.attention.self
    count, channels = len(pixels), prepare.num_channels
    latents = perceiver.embeddings(batch_size=1)[0]
    gain, offset = attention.layernorm2.weight, attention.layernorm2.bias
    asked = attention.query(attention.layernorm1(latents)) @ attention.key.weight / attention.qk_channels**0.5 * gain
    valued = attention.value.weight * gain

    grid = (model.config.num_frames, PIXELS // 4, PIXELS // 4)
    raws = {
        "audio": sound.reshape(count, -1, model.config.samples_per_patch),
        "image": space_to_depth(pixels, spatial_block_size=4).flatten(1, 3),
        "label": pixels.new_zeros(count, 1, 0),
    }
    index_dims = {"audio": raws["audio"].shape[1:2], "image": grid}
    scores, values, scales, means = [], [], [], []
    for name, raw in raws.items():
        if name == "label":
            constant = prepare.mask["label"]
        else:
            place = prepare.modalities[name].position_embeddings(index_dims[name], 1, raw.device, raw.dtype)[0]
            constant = torch.cat([place, prepare.padding[name].expand(len(place), -1)], dim=1)
            if kept < 1:
                drawn = torch.randperm(len(constant))[: round(kept * len(constant))]
                raw, constant = raw[:, drawn], constant[drawn]
        width = raw.shape[-1]
        average = (raw.sum(-1) + constant.sum(-1)) / channels
        square = (raw.square().sum(-1) + constant.square().sum(-1)) / channels
        scale = (square - average.square() + attention.layernorm2.eps).rsqrt()
        score = raw @ asked[:, :width].T + constant @ asked[:, width:].T - average[..., None] * asked.sum(1)
        scores.append(score * scale[..., None])
        values.append((raw, constant @ valued[:, width:].T, valued[:, :width]))
        scales.append(scale)
        means.append(average)
    weights = torch.cat(scores, dim=1).softmax(dim=1).transpose(1, 2)
    scaled = weights * torch.cat(scales, dim=1)[:, None]
    context = -(scaled @ torch.cat(means, dim=1)[..., None]) * valued.sum(1)
    start = 0
    for raw, constant, projection in values:
        part = scaled[:, :, start : start + raw.shape[1]]
        context = context + (part @ raw) @ projection.T + part @ constant
        start += raw.shape[1]
    context = context + attention.value(offset)

    hidden = layer.attention.output(context) + latents
    hidden = hidden + layer.feed_forward_chunk(hidden)
    for block in perceiver.encoder.self_attends:
        hidden = block(hidden)[0]
    return hidden
