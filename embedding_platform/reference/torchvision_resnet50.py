"""ResNet-50 of PyTorch Hub (pytorch/vision): the article's snippet, and its network with seeded weights.

The network is written out here in plain torch, so that it owes nothing to the platform's own
path by way of transformers.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from embedding_platform.reference.resnet50 import settle


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride (torchvision's "v1.5"), and 1 x 1 convolution beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps [n, channels, h, w] to [n, 4 * width, h / stride, w / stride]."""
        shortcut = maps if self.downsample is None else self.downsample(maps)
        inner = self.relu(self.bn1(self.conv1(maps)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        result: torch.Tensor = self.relu(self.bn3(self.conv3(inner)) + shortcut)
        return result


class ResNet(nn.Module):
    """ResNet with bottlenecks (He et al. 2015, table 1) for 1000 classes; children and names are torchvision's."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(width, width, blocks[0], 1)
        self.layer2 = _stage(4 * width, 2 * width, blocks[1], 2)
        self.layer3 = _stage(8 * width, 4 * width, blocks[2], 2)
        self.layer4 = _stage(16 * width, 8 * width, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32 * width, 1000)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [n, 3, h, w] to logits [n, 1000]."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: torch.Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits


def save(folder: Path) -> None:
    """Save the state dict of ResNet-50 with random weights, as PyTorch Hub publishes it."""
    torch.manual_seed(51)
    network = ResNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    settle(network)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "resnet50.pth")


def article(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of an image to its vector float32 [2048], by the article's code.

    The snippet cuts the last layer off and takes `squeeze()`, which drops the batch axis of a
    single image: here the result is flattened from axis 1. Its `torch.hub.load` needs the
    network: here the same architecture reads the same kind of file. Transforms are those of
    the hub's page, written with PIL for want of torchvision.
    """
    (path_of_weights,) = Path(folder).glob("*.pth")
    model = ResNet()
    model.load_state_dict(torch.load(path_of_weights, weights_only=True))
    cut = nn.Sequential(*list(model.children())[:-1]).eval()

    def embed(path: str) -> np.ndarray:
        pixels = transform(Image.open(path).convert("RGB"))
        with torch.no_grad():
            vectors = cut(pixels[None]).flatten(1)
        vector: np.ndarray = vectors[0].numpy()
        return vector

    return embed


def transform(image: Image.Image) -> torch.Tensor:
    """Resize(256), CenterCrop(224), ToTensor and Normalize, one after the other: float32 [3, 224, 224]."""
    width, height = image.size
    if width <= height:
        image = image.resize((256, int(256 * height / width)), Image.Resampling.BILINEAR)
    else:
        image = image.resize((int(256 * width / height), 256), Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2.0), round((image.height - 224) / 2.0)
    image = image.crop((left, top, left + 224, top + 224))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (values - mean[:, None, None]) / std[:, None, None]


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(channels, width, stride), *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    )
