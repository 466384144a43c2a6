"""Images as networks take them: prepared as the model's own image processor does, and sent as bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Input
from embedding_platform.models.pretrained import read_companion

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

Framing: TypeAlias = "Callable[[Image, int], Image]"
"""Brings an image to the model's size with a filter of PIL."""

Offset: TypeAlias = Callable[[int], int]
"""Where a centred crop begins that leaves so many pixels out."""

_SQUEEZED_FROM = 384
"""From this size on, ConvNeXT processors do not crop (transformers' ConvNextImageProcessor)."""

_WIDEST_FILTER = 3
"""Pixels to either side that PIL's widest filter, Lanczos, takes into account at scale 1."""

_STEPS = ("process_image", "resize", "center_crop", "rescale", "normalize", "_preprocess")


@dataclass(frozen=True)
class Preparation:
    """How one model wants its images: uint8 [height, width, 3], and what the network makes of the bytes.

    `resample` is a filter of PIL. A byte becomes (byte * scale - mean) / std of its channel.
    """

    height: int
    width: int
    framing: Framing
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input(self) -> Input:
        """What `prepare` gives, as an argument of a network."""
        return Input("uint8", (self.height, self.width, 3))

    def prepare(self, image: "Image") -> np.ndarray:
        """An RGB image as uint8 [height, width, 3], read-only: the processor's own bytes.

        Where a crop is cut out, one or two in a hundred at most, and usually one in a thousand,
        are one level off, because PIL takes the edges of a box in float32; hardly any is two.

        Raises:
            ValueError: for an image without pixels, or of other channels.
        """
        if image.mode != "RGB":
            raise ValueError(f"an image of mode {image.mode}; convert it to RGB")
        if 0 in image.size:
            raise ValueError(f"an image of {image.width} x {image.height} pixels holds nothing; leave it out")
        return np.asarray(self.framing(image, self.resample))

    def prepare_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [n, h, w, 3] as uint8 [n, height, width, 3].

        Raises:
            ValueError: for frames without pixels.
        """
        from PIL import Image

        if 0 in frames.shape:
            raise ValueError(f"frames of shape {frames.shape} hold nothing; leave the clip out")
        return np.stack([self.prepare(Image.fromarray(frame)) for frame in frames])

    def normalised(self) -> "nn.Module":
        """The network's first step: uint8 [..., h, w, 3] to float32 [..., 3, h, w], whatever type its weights have."""
        import torch
        from torch import Tensor, nn

        channels = list(zip(self.mean, self.std, strict=True))
        scale = self.scale

        class Normalised(nn.Module):
            """Rescales and normalises. The constants are no tensors, which would be cast with the weights."""

            def forward(self, pixels: Tensor) -> Tensor:
                values = pixels.float() * scale
                return torch.stack(
                    [(values[..., place] - mean) / std for place, (mean, std) in enumerate(channels)], dim=-3
                )

        return Normalised()


def read_preparation(folder: str) -> Preparation:
    """The preparation that the folder's image processor is configured for.

    Raises:
        PlatformError: if there is no processor, or one that prepares images in a way that is not known here.
    """
    from transformers import AutoImageProcessor

    # The same processor with and without torchvision: another one resizes differently.
    return preparation_of(read_companion(AutoImageProcessor, folder, backend="pil"), folder)


def preparation_of(processor: Any, folder: str) -> Preparation:
    """The preparation that one of transformers' image processors on PIL is configured for; `folder` is for messages.

    Raises:
        PlatformError: if it prepares images in a way that is not known here.
    """
    from PIL.Image import Resampling

    if not processor.do_resize:
        raise _not_known(folder, "do_resize is off, so that images would keep their sizes")
    if getattr(processor, "do_pad", None):
        raise _not_known(folder, "do_pad is on")
    # transformers, too, takes the bilinear filter where none is named.
    resample = Resampling.BILINEAR if processor.resample is None else Resampling(processor.resample)
    # A filter that jumps picks another pixel when a crop's edge is off by a rounding error.
    if resample in (Resampling.NEAREST, Resampling.BOX):
        raise _not_known(folder, f"resample is {resample.name}")
    height, width, framing = _framing(processor, folder)
    return Preparation(
        height,
        width,
        framing,
        resample,
        processor.rescale_factor if processor.do_rescale else 1.0,
        _channels(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        _channels(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
    )


def centre_of_resized(
    shortest_edge: int, crop: tuple[int, int], offset: Offset, image: "Image", resample: int
) -> "Image":
    """The centred crop (height, width) of the image resized to `shortest_edge`; no more than the crop is computed.

    The longer edge is cut to whole pixels, by transformers' get_resize_output_image_size as
    by torchvision's Resize.
    """
    longest_edge = int(shortest_edge * max(image.size) / min(image.size))
    is_upright = image.width <= image.height
    resized = (longest_edge, shortest_edge) if is_upright else (shortest_edge, longest_edge)
    return _cropped(resized, crop, offset, image, resample)


def _framing(processor: Any, folder: str) -> tuple[int, int, Framing]:
    """Height and width of the processor's images, and how it brings an image to them."""
    from transformers import ConvNextImageProcessorPil, PerceiverImageProcessorPil
    from transformers.image_processing_backends import PilBackend

    size = processor.size
    if isinstance(processor, ConvNextImageProcessorPil):
        return _framing_of_convnext(processor, folder)
    if isinstance(processor, PerceiverImageProcessorPil):
        return _framing_of_perceiver(processor, folder)
    changed = [step for step in _STEPS if getattr(type(processor), step, None) is not getattr(PilBackend, step)]
    if changed:
        raise _not_known(folder, f"{type(processor).__name__} has a {changed[0]} of its own")
    if size.longest_edge or not (size.shortest_edge or (size.height and size.width)):
        raise _not_known(folder, f"size is {dict(size)}")
    resized = (size.shortest_edge, size.shortest_edge) if size.shortest_edge else (size.height, size.width)
    if not processor.do_center_crop:
        if size.shortest_edge:
            raise _not_known(folder, "images keep their aspect ratio and are not cropped")
        return *resized, partial(_squeezed, resized)
    crop = (processor.crop_size.height, processor.crop_size.width)
    _refuse_padding(folder, resized, crop)
    if size.shortest_edge:
        return *crop, partial(centre_of_resized, size.shortest_edge, crop, _rounded_down)
    return *crop, partial(_cropped, resized, crop, _rounded_down)


def _framing_of_convnext(processor: Any, folder: str) -> tuple[int, int, Framing]:
    edge = processor.size.shortest_edge
    if not edge or processor.do_center_crop:
        raise _not_known(folder, f"size is {dict(processor.size)} and do_center_crop is {processor.do_center_crop}")
    square = (edge, edge)
    if edge >= _SQUEEZED_FROM:
        return *square, partial(_squeezed, square)
    shortest_edge = int(edge / processor.crop_pct)
    _refuse_padding(folder, (shortest_edge, shortest_edge), square)
    return *square, partial(centre_of_resized, shortest_edge, square, _rounded_down)


def _framing_of_perceiver(processor: Any, folder: str) -> tuple[int, int, Framing]:
    size, crop = processor.size, processor.crop_size
    if not (size.height and size.width):
        raise _not_known(folder, f"size is {dict(size)}")
    result = (size.height, size.width)
    if not processor.do_center_crop:
        return *result, partial(_squeezed, result)
    _refuse_padding(folder, (crop.height, crop.width), result)
    shares = (size.height / crop.height, size.width / crop.width)
    return *result, partial(_centre_resized, shares, result)


def _squeezed(size: tuple[int, int], image: "Image", resample: int) -> "Image":
    return image.resize(size[::-1], resample)


def _centre_resized(shares: tuple[float, float], size: tuple[int, int], image: "Image", resample: int) -> "Image":
    """The centre, whose height and width are shares of the image's shorter edge, resized to `size`."""
    # transformers would leave nothing of an image of one pixel.
    rows, columns = (max(1, int(share * min(image.size))) for share in shares)
    top, left = (image.height - rows) // 2, (image.width - columns) // 2
    return image.crop((left, top, left + columns, top + rows)).resize(size[::-1], resample)


def _cropped(resized: tuple[int, int], crop: tuple[int, int], offset: Offset, image: "Image", resample: int) -> "Image":
    """The centred crop of the image resized to `resized`.

    PIL resizes rows and columns one after the other, with bytes in between, so that the order
    shows. From Pillow 13 on, columns come first where the height loses more than twice the
    pixels of the width (its Resample.c). Here both passes are called by themselves, to take
    the order of the whole image and not that of the crop.
    """
    left, right, low_x, high_x = _span(image.width, resized[1], crop[1], offset)
    top, bottom, low_y, high_y = _span(image.height, resized[0], crop[0], offset)
    # PIL rounds a box to float32: in the part that counts, coordinates are small.
    part = image.crop((low_x, low_y, high_x, high_y))
    columns_first = image.height - resized[0] > max(0, 2 * (image.width - resized[1]))
    if columns_first:
        part = part.resize((part.width, crop[0]), resample, (0, top, part.width, bottom))
        return part.resize((crop[1], crop[0]), resample, (left, 0, right, crop[0]))
    part = part.resize((crop[1], part.height), resample, (left, 0, right, part.height))
    return part.resize((crop[1], crop[0]), resample, (0, top, crop[1], bottom))


def _span(whole: int, resized: int, crop: int, offset: Offset) -> tuple[float, float, int, int]:
    """Along one axis: begin and end of the crop in the part that counts, and begin and end of that in the image."""
    scale = whole / resized
    begin = offset(resized - crop)
    margin = _WIDEST_FILTER * max(scale, 1.0) + 1
    low = max(0, math.floor(begin * scale - margin))
    high = min(whole, math.ceil((begin + crop) * scale + margin))
    return begin * scale - low, min((begin + crop) * scale - low, high - low), low, high


def _rounded_down(left_out: int) -> int:
    """Half of the pixels left out, as transformers' center_crop rounds it."""
    return left_out // 2


def _refuse_padding(folder: str, resized: tuple[int, int], crop: tuple[int, int]) -> None:
    if crop[0] > resized[0] or crop[1] > resized[1]:
        raise _not_known(folder, f"crops of {crop} from images of {resized} would be padded")


def _channels(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))


def _not_known(folder: str, reason: str) -> PlatformError:
    return PlatformError(
        f"{folder} prepares images in a way that is not known here: {reason}; name a model whose "
        "preprocessor_config.json resizes images to one size, or crops their centre"
    )
