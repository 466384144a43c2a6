"""ResNet-50 of Hugging Face (microsoft/resnet-50): the article's snippet, and its network with seeded weights."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn


def save(folder: Path) -> None:
    """Save ResNet-50 with random weights and its image processor as microsoft/resnet-50 publishes them."""
    import torch
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(50)
    network = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    settle(network)
    network.save_pretrained(folder)
    ConvNextImageProcessorPil(
        size={"shortest_edge": 224},
        crop_pct=0.875,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)


def article(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of an image to its vector float32 [2048], by the article's code.

    The snippet prints `AutoFeatureExtractor`, which no longer knows ResNet: here it is
    `AutoImageProcessor`, with the PIL backend that it falls back to without torchvision. It
    takes `outputs[1]`, which does not exist, or with hidden states is a list of feature maps:
    here it is `pooler_output`, flattened.
    """
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, ResNetModel

    extractor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = ResNetModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(path: str) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        inputs = extractor(images=image, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        vector: np.ndarray = outputs.pooler_output.flatten().numpy()
        return vector

    return embed


def settle(network: "nn.Module") -> None:
    """Give batch normalisations random gains and offsets, and the statistics of pictures; then set to inference.

    With the initial ones, a random network gives all images nearly the same vector, and no
    cosine between two ways to embed would prove anything.
    """
    import torch
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.momentum = None  # a plain average
    coarse = torch.randn(6, 3, 7, 7)
    pictures = nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic") + 0.3 * torch.randn(6, 3, 224, 224)
    network.train()
    with torch.no_grad():
        network(pictures)
    network.eval()
