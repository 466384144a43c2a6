"""The starter ResNet: pictures by shape and colour."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from embedding_platform.starter import world
from embedding_platform.starter.recipes.run import CosineHead, Trained, fit, same_class_recall, save

PIXELS = 64
SEED = 102
ROUNDS = ((450, 0.2), (330, 0.0))
"""Steps of each round and the weight of textures, which the first round told apart too."""

BATCH = 128

ABOUT = (
    "A `ResNetModel` of bottleneck blocks (2 to a stage, 64x64 images). Its pooled features have 256 dimensions; "
    "pictures of the same shape and colour lie together, whatever their size, texture, place and background."
)
TRAINED_ON = (
    "fresh drawings of coloured shapes, to tell the 48 pairs of shape and colour apart by throwaway heads; a "
    "tenth of the combinations of colour, shape, size, texture and position was held out"
)


def train(folder: Path) -> Trained:
    """Trains from the seed and writes the model and image processor to the folder."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(SEED)
    model = ResNetModel(ResNetConfig(embedding_size=32, hidden_sizes=[64, 96, 160, 256], depths=[2, 2, 2, 2]))
    seconds = sum(train_round(model, number) for number in range(len(ROUNDS)))
    save(folder, model, _processor())
    steps = sum(steps for steps, _ in ROUNDS)
    return Trained(SEED, steps, steps * BATCH, seconds)


def train_round(model: Any, number: int) -> float:
    """Trains the model in place for one of ROUNDS; returns wall time in seconds."""
    steps, texture_weight = ROUNDS[number]
    rng = np.random.default_rng([SEED, number])
    processor = _processor()
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
    deviation = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    pairs, textures = CosineHead(256, len(world.SHAPES) * len(world.COLOURS)), CosineHead(256, len(world.TEXTURES))
    known, _ = world.split(world.pictures(), world.PICTURES_HELD_OUT)
    model.train()

    def loss_of_step(step: int) -> torch.Tensor:
        batch = [world.on_any_background(known[index], rng) for index in rng.integers(len(known), size=BATCH)]
        images = np.stack([np.asarray(world.draw_picture(picture, PIXELS, rng)) for picture in batch])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels + 0.02 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(pixels) - mean) / deviation
        pooled = model(pixels.contiguous(memory_format=torch.channels_last)).pooler_output.flatten(1)
        pair = [
            world.SHAPES.index(picture.shape) * len(world.COLOURS) + list(world.COLOURS).index(picture.colour)
            for picture in batch
        ]
        texture = [world.TEXTURES.index(picture.texture) for picture in batch]
        return cross_entropy(pairs(pooled), torch.tensor(pair)) + texture_weight * cross_entropy(
            textures(pooled), torch.tensor(texture)
        )

    parameters = [*model.parameters(), *pairs.parameters(), *textures.parameters()]
    return fit(f"resnet50, round {number + 1}", parameters, loss_of_step, steps, rate=3e-3)


def evaluate(folder: Path) -> dict[str, float]:
    """Held-out figures of the saved model, on one picture of each held-out combination."""
    from transformers import AutoImageProcessor, ResNetModel

    model = ResNetModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    rng = np.random.default_rng(SEED + 1)
    _, hidden = world.split(world.pictures(), world.PICTURES_HELD_OUT)
    drawn = [world.draw_picture(world.on_any_background(picture, rng), 160, rng) for picture in hidden]
    with torch.inference_mode():
        pooled = model(**processor(drawn, return_tensors="pt")).pooler_output.flatten(1).numpy()
    return {
        "held_out": len(hidden),
        "same_shape_and_colour_recall_at_1": same_class_recall(pooled, [(p.shape, p.colour) for p in hidden]),
    }


def _processor() -> Any:
    from transformers import ConvNextImageProcessorPil

    # Shapes touch the edge: nothing is cropped away, unlike ImageNet's 7/8.
    return ConvNextImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_pct=1.0, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
