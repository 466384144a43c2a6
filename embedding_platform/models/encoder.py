"""What a model is to the rest of the platform, and what a model family has to bring."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from embedding_platform.errors import PlatformError
from embedding_platform.records import Content, Sound, VideoClip
from embedding_platform.spaces import Role

if TYPE_CHECKING:
    from torch import nn

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

Purpose: TypeAlias = Literal["document", "query"]
"""What a content is embedded for. Some text models put other words before a query than before a document."""

Prepared: TypeAlias = Mapping[str, np.ndarray]
"""One content as arrays that the model takes, without a batch axis."""


@dataclass(frozen=True)
class Input:
    """One argument of a network: numpy type, and shape without the batch axis.

    None in `shape` is an axis that varies from content to content, up to `longest`; there,
    contents are padded with `padding` (`inference.padding`). Where `longest` is None they
    are not, and only those of one length are embedded together.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    padding: float = 0
    longest: int | None = None


class Network(Protocol):
    """A model family's reading of one folder: how contents become arrays, and arrays vectors.

    Weights are read when `module` is asked for. `prepare` may be called from several threads.
    """

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that the model embeds, all into one space."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    def maximum(self, role: Role) -> str:
        """The longest content that the model takes, for people: "256 tokens", "30 s"."""

    def inputs(self, role: Role) -> Mapping[str, Input]:
        """The arguments of the role's module, in order and by name: the arrays that `prepare` gives."""

    def prepare(self, role: Role, content: Content, purpose: Purpose) -> Prepared:
        """The content as the arrays of `inputs`.

        Raises:
            ValueError: for a content that the model cannot take whole; the message says why, and the mend.
        """

    def module(self, role: Role) -> "nn.Module":
        """The network in float32 on the CPU, its forward taking batches of `inputs` in their order.

        It returns vectors [n, dimension] that do not depend on the others of the batch, nor
        on its padding. It is traceable, and casts to the type of its own weights inside.

        Raises:
            PlatformError: if weights are missing, damaged, or of another architecture.
        """


class Encoder(Protocol):
    """A model at work on some device."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that the model embeds, all into one space."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    def device(self) -> str:
        """Where the model runs: "cpu", "cuda:0", "cuda:0, cuda:1", or the URL of a server."""

    @property
    def precision(self) -> str:
        """Type of the weights: "float32", "bfloat16" or "float16"."""

    @property
    def runtime(self) -> str:
        """What runs the network: "torch", "openvino", "openai"; with the reason where another was to be expected."""

    @property
    def lanes(self) -> Sequence["Lane"]:
        """Ways to run a batch, each of which one thread at a time may call; all give the same vectors."""

    def maximum(self, role: Role) -> str:
        """The longest content that the model takes, for people."""

    def prepare(self, role: Role, content: Content, purpose: Purpose = "document") -> Prepared:
        """The content as a lane takes it; threads may call this side by side.

        Raises:
            PlatformError: for a role that the model lacks.
            TypeError: for a content that is not of the role.
            ValueError: for a content that the model cannot take whole.
        """

    def cost(self, role: Role, prepared: Prepared) -> int:
        """What a prepared content weighs in a batch: for text the tokens that it is padded to, otherwise 1."""

    def shape(self, role: Role, prepared: Prepared) -> Hashable | None:
        """What the shape of a content's batch is decided by, besides the budget; it depends on the content alone.

        A network gives other last bits in a batch of another shape, but not with other
        contents in a batch of the same shape. So `inference.stream` puts only contents of one
        shape and cost into a batch, and fills each batch up to the budget. None says that
        batches may mix and are not to be filled up, as with a server, which is paid for each.
        """

    def budget(self, role: Role) -> int:
        """The summed cost of a batch that suits model and device."""

    def embed(self, role: Role, batch: Sequence[Content], purpose: Purpose = "document") -> np.ndarray:
        """Float32 vectors [len(batch), dimension], in order, as the model's own chain gives them.

        For a few contents at once, such as a query; `inference.stream` is for many. The batch
        is not filled up, since a query should not wait for that: its last bits are those of a
        batch of so many contents, and not those that the stream gives.

        Raises:
            PlatformError: for a role that the model lacks.
            TypeError: for contents that are not of the role.
            ValueError: for contents that the model cannot take whole.
        """


Lane: TypeAlias = Callable[[Role, Sequence[Prepared]], np.ndarray]
"""Float32 vectors [n, d] of n prepared contents of one role."""


def check_content(roles: Sequence[Role], role: Role, content: Content) -> None:
    """Refuse a role outside `roles`, and a content that is not of `role`.

    Raises:
        PlatformError: for a role that the model lacks.
        TypeError: for a content that is not of the role.
    """
    from PIL.Image import Image

    if role not in roles:
        raise PlatformError(
            f"the model does not embed {role}; it embeds {' and '.join(roles)}: choose a space that has the role"
        )
    expected = {"text": str, "image": Image, "audio": Sound, "video": VideoClip}[role]
    if not isinstance(content, expected):
        raise TypeError(
            f"{role} contents are {expected.__name__}, not {type(content).__name__}; decode the file with "
            "media.cutting.read, and choose a space of its modality"
        )
