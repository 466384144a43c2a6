"""Where and how precisely models run, chosen from what the settings wish and the machine has."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Precision
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

_BUDGETS: dict[str, dict[Role, int]] = {
    "cpu": {"text": 1024, "image": 4, "audio": 2, "video": 2},
    "mps": {"text": 8192, "image": 32, "audio": 8, "video": 8},
    "cuda": {"text": 32768, "image": 128, "audio": 32, "video": 16},
}
"""Tokens, images, audio windows and clips of a batch by kind of device. Those of the CPU were the
fastest of several; the others are starting points, halved where memory does not suffice."""

_WIDE = 50_000_000
"""Weights from which half as many tokens fill the CPU's caches: MPNet is 6 % faster with 512 than with 1,024."""


@dataclass(frozen=True)
class Execution:
    """How a model is to be run, in the words of the settings.

    `cache` is a local folder that keeps converted networks; without one they are converted in
    every process.
    """

    device: str = "auto"
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    precision: Precision = "float32"
    cache: str = ""


def budget_of(device: str, role: Role, parameters: int) -> int:
    """The summed cost of a batch that suits a model of so many weights on the device."""
    kind = device.partition(":")[0]
    budget = _BUDGETS[kind][role]
    return budget // 2 if kind == "cpu" and role == "text" and parameters >= _WIDE else budget


def choose_devices(wish: str) -> tuple[str, ...]:
    """The devices that `wish` comes to: "auto" takes every CUDA device, then MPS, then the CPU.

    Raises:
        PlatformError: if the device asked for is not there.
    """
    if wish == "cpu":
        return (wish,)
    import torch

    cuda = tuple(f"cuda:{n}" for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))
    mps = ("mps",) if torch.backends.mps.is_available() else ()
    if wish == "auto":
        return cuda or mps or ("cpu",)
    chosen = {"cuda": cuda, "mps": mps}.get(wish, (wish,) if wish in cuda else ())
    if not chosen:
        raise PlatformError(
            f"device {wish} is not there; set device to auto or to one of {', '.join(('cpu', *cuda, *mps))}"
        )
    return chosen


def choose_dtype(precision: Precision, device: str) -> "torch.dtype":
    """The torch type of weights and activations.

    Raises:
        PlatformError: for float16 on the CPU, which overflows and gains nothing there.
    """
    import torch

    if precision == "float16" and device == "cpu":
        raise PlatformError("precision float16 does not run on device cpu; choose bfloat16 or float32")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[precision]
