"""What every model is to the rest of the platform, and where and how precisely it runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.records import Content, VideoClip
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    import torch

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]


class Encoder(Protocol):
    """A loaded model that embeds contents of its roles."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that the model embeds, all into one space."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    def device(self) -> str:
        """Where the model runs: "cpu", "cuda:0", "mps"."""

    @property
    def precision(self) -> str:
        """Type of the weights: "float32", "bfloat16" or "float16"."""

    def embed(self, role: Role, batch: Sequence[Content]) -> np.ndarray:
        """Float32 vectors [len(batch), dimension], in order, as the model's own chain gives them.

        A content's vector does not depend on the others of its batch.

        Raises:
            PlatformError: for a role that the model lacks.
            TypeError: for contents that are not of the role.
            ValueError: for contents longer than the model can take.
        """

    def cost(self, role: Role, content: Content) -> int:
        """What the content weighs in a batch: its tokens after truncation for text, otherwise 1."""


def choose_device(wish: str) -> str:
    """The device that `wish` comes to: "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        PlatformError: if the device asked for is not there.
    """
    import torch

    if wish == "cpu":
        return wish
    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if wish == "auto":
        return "cuda:0" if cuda_devices else "mps" if has_mps else "cpu"
    kind, _, number = wish.partition(":")
    if kind == "cuda" and int(number or 0) < cuda_devices:
        return f"cuda:{int(number or 0)}"
    if kind == "mps" and has_mps:
        return "mps"
    present = ["cpu", *(f"cuda:{index}" for index in range(cuda_devices)), *(["mps"] if has_mps else [])]
    raise PlatformError(f"device {wish} is not there; set device to auto or to one of {', '.join(present)}")


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


def check_batch(roles: Sequence[Role], role: Role, batch: Sequence[Content]) -> None:
    """Refuse a role outside `roles`, and contents that are not of `role`.

    Raises:
        PlatformError: for a role that the model lacks.
        TypeError: for contents that are not of the role.
    """
    from PIL.Image import Image

    if role not in roles:
        raise PlatformError(
            f"the model does not embed {role}; it embeds {' and '.join(roles)}: choose a space that has the role"
        )
    expected = {"text": str, "image": Image, "audio": np.ndarray, "video": VideoClip}[role]
    for content in batch:
        if not isinstance(content, expected):
            raise TypeError(f"{role} contents are {expected.__name__}, not {type(content).__name__}")
