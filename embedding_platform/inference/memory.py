"""Is there memory enough, and was it its lack that an error tells of?"""

import re

from embedding_platform.errors import PlatformError
from embedding_platform.memory import available_bytes

_SAYS_SO = re.compile(
    r"out of memory|not enough memory|can't allocate memory|bad_alloc|failed to allocate", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, OpenVINO or Python says that memory did not suffice."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAYS_SO.search(str(error))))


def is_device_lost(error: BaseException) -> bool:
    """Whether a CUDA device failed for good, so that this process can compute nothing more on it."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def refuse_without_memory(what: str, needed: int, device: str) -> None:
    """Refuse to begin what cannot end well.

    Raises:
        PlatformError: if `needed` bytes are not free on the device.
    """
    free = free_bytes(device)
    if free is not None and free < needed:
        raise PlatformError(
            f"{what} needs about {_gigabytes(needed)} of memory on {device}, and {_gigabytes(free)} are free; "
            "stop what else runs there, or choose a smaller model or another device"
        )


def free_bytes(device: str) -> int | None:
    """Bytes that a new allocation may take; None where the device does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if device == "mps":
        return None
    return available_bytes()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
