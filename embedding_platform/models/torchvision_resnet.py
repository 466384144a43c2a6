"""ResNet image models (He et al. 2015), as PyTorch Hub publishes them (pytorch/vision)."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_platform.errors import PlatformError, first_line
from embedding_platform.models.pixels import Preparation, centre_of_resized
from embedding_platform.models.resnet import ResNetNetwork, as_network
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

CODE_VERSION = 1
POOLINGS = {"": "the network without its last layer: the global average of the last feature map (pytorch/vision)"}
FILES: tuple[tuple[str, ...], ...] = ()
WEIGHTS = ("*.pth",)
CONFIG = False

_STAGES = range(1, 5)

_NAMES = (
    (r"conv1\.", "embedder.embedder.convolution."),
    (r"bn1\.", "embedder.embedder.normalization."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", "encoder.stages.{0}.layers.{1}.layer.{2}.convolution."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", "encoder.stages.{0}.layers.{1}.layer.{2}.normalization."),
    (r"layer(\d)\.(\d+)\.downsample\.0\.", "encoder.stages.{0}.layers.{1}.shortcut.convolution."),
    (r"layer(\d)\.(\d+)\.downsample\.1\.", "encoder.stages.{0}.layers.{1}.shortcut.normalization."),
)
"""Torchvision's names, and those of transformers' ResNetModel, which counts stages and convolutions from 0."""


class TorchvisionResNetNetwork(ResNetNetwork):
    """Embeds images with the network of `ResNetNetwork`, whose weights are in a file of torchvision's.

    Both publishers have one architecture (torchvision's ResNet "v1.5", whose stride is in the
    3 x 3 convolution), so that equal weights give equal vectors of equal pixels. But they
    prepare images differently: torchvision resizes bilinearly, microsoft/resnet-50's
    processor bicubically, and they round the place of the crop differently. With equal seeded
    weights, four structured JPEG files had cosines of 0.996 to 0.9999 between the two: spaces
    of the two are not to be mixed.
    """

    def module(self, role: Role) -> "nn.Module":
        """See `Network.module`."""
        return as_network(self.preparation.normalised(), to_transformers(_read(self.folder), self.folder))


def load(folder: str, pooling: str) -> TorchvisionResNetNetwork:
    """Load a folder that holds one state dict of torchvision's resnet50, resnet101 or resnet152; its weights later.

    Raises:
        PlatformError: if it does not.
    """
    shapes = _read(folder, "meta")
    sizes = _configuration(shapes, folder)
    return TorchvisionResNetNetwork(("image",), sizes["hidden_sizes"][-1], folder, _preparation())


def to_transformers(state: Mapping[str, "Tensor"], folder: str) -> Any:
    """The ResNetModel of transformers with the weights of a torchvision state dict, less its last layer.

    Raises:
        PlatformError: if weights are missing, unknown, or of another shape; `folder` is for the message.
    """
    import torch
    from transformers import ResNetConfig, ResNetModel

    with torch.device("meta"):
        body = ResNetModel(ResNetConfig(**_configuration(state, folder)))
    expected = body.state_dict()
    # Files from before PyTorch 0.4 lack these counters, which decide nothing once trained.
    counters = {name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")}
    given = {_renamed(name): value for name, value in state.items() if not name.startswith("fc.")}
    given = {**counters, **given}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    misshapen = sorted(name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape)
    if missing or unknown or misshapen:
        raise PlatformError(
            f"{folder} does not hold the weights of a torchvision ResNet with bottlenecks: {len(missing)} missing, "
            f"{len(unknown)} unknown, {len(misshapen)} of another shape, {(missing + unknown + misshapen)[0]} among "
            "them; download resnet50 of pytorch/vision again, or name a folder of the right architecture"
        )
    body.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in given.items()}, assign=True
    )
    return body.eval().requires_grad_(False)


def _preparation() -> Preparation:
    """Resize(256), CenterCrop(224) and ImageNet's mean and deviation (pytorch.org/hub/pytorch_vision_resnet)."""
    from PIL.Image import Resampling

    framing = partial(centre_of_resized, 256, (224, 224), _rounded_to_even)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preparation(224, 224, framing, Resampling.BILINEAR, 1 / 255, mean, std)


def _rounded_to_even(left_out: int) -> int:
    """Half of the pixels left out, as torchvision's center_crop rounds it: by Python's round."""
    return round(left_out / 2)


def _configuration(state: Mapping[str, "Tensor"], folder: str) -> dict[str, Any]:
    """The sizes of the network, for ResNetConfig: channels of the stem, and channels and blocks of each stage."""
    last = [f"layer{stage}.0.conv3.weight" for stage in _STAGES]
    lacking = [name for name in ("conv1.weight", *last) if name not in state]
    if lacking:
        raise PlatformError(
            f"{folder} does not hold the weights of a torchvision ResNet with bottlenecks: {lacking[0]} is missing; "
            "name a folder with the state dict of resnet50, resnet101 or resnet152 of pytorch/vision"
        )
    return {
        "embedding_size": state["conv1.weight"].shape[0],
        "hidden_sizes": [state[name].shape[0] for name in last],
        "depths": [len({name.split(".")[1] for name in state if name.startswith(f"layer{n}.")}) for n in _STAGES],
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _renamed(name: str) -> str:
    for pattern, template in _NAMES:
        match = re.match(pattern, name)
        if match:
            stage, block, part = (*match.groups(), None, None, None)[:3]
            places = (int(stage) - 1 if stage else 0, block, int(part) - 1 if part else 0)
            return template.format(*places) + name[match.end() :]
    return name


def _read(folder: str, device: str = "cpu") -> Mapping[str, "Tensor"]:
    """The state dict of the folder; on device "meta" only its names and shapes.

    Raises:
        PlatformError: if there is none, more than one, or one that does not load.
    """
    import pickle

    import torch

    paths = sorted(Path(folder).glob(WEIGHTS[0]))
    if len(paths) != 1:
        raise PlatformError(f"{folder} holds {len(paths)} {WEIGHTS[0]} files; leave the one state dict of the model")
    try:
        state = torch.load(paths[0], map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise PlatformError(
            f"{paths[0]} is damaged or no state dict ({first_line(error)}); copy or download it again"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PlatformError(f"{paths[0]} is no state dict; save the model's state_dict() there")
    return state
