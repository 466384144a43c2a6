"""Running a network with torch, on CUDA, MPS or the CPU."""

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, eq=False)
class TorchProgram:
    """A network placed on one device. One thread at a time runs it; `beside` serves a second thread."""

    network: "nn.Module"
    device: str
    stream: Any = None
    turn: Any = field(default_factory=threading.Lock)

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float32 [n, d] of a batch of arrays, in the order of the network's arguments."""
        import torch

        here = torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()
        with self.turn, torch.inference_mode(), here:
            vectors = self.network(*(_placed(array, self.device) for array in arrays))
            return vectors.float().cpu().numpy()

    def beside(self) -> "TorchProgram":
        """The same network for another thread, which copies its batch in while this one computes."""
        if not self.device.startswith("cuda"):
            # On other devices two batches at once take more than twice as long as one.
            return self
        return TorchProgram(self.network, self.device, _own_stream(self.device))


def place(network: "nn.Module", device: str, dtype: "torch.dtype") -> TorchProgram:
    """The network on the device in the type; convolutions with channels last, which tensor cores and oneDNN read."""
    import torch

    placed = network.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TorchProgram(placed, device, _own_stream(device))


def _own_stream(device: str) -> Any:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.Stream(device)


def _placed(array: np.ndarray, device: str) -> "torch.Tensor":
    """The array on the device; for CUDA by way of pinned memory, so that the copy does not wait."""
    import torch

    tensor = torch.from_numpy(array)
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
