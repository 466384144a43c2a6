"""Reading a saved model strictly: nothing missing, nothing made up, nothing printed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_platform.errors import PlatformError

if TYPE_CHECKING:
    import torch


def read_config(folder: str) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        PlatformError: if it is missing or not JSON.
    """
    path = Path(folder, "config.json")
    if not path.is_file():
        raise PlatformError(f"{folder} holds no config.json; name the folder that the model's save_pretrained wrote to")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PlatformError(f"{path} is not valid JSON ({error}); copy or download the model again") from None


def check_architecture(folder: str, family: str, model_type: str) -> None:
    """Refuse a folder whose config.json names another architecture than `model_type`.

    Raises:
        PlatformError: naming both.
    """
    found = read_config(folder).get("model_type")
    if found != model_type:
        raise PlatformError(
            f"{folder} holds a model of type {found}, but family {family} reads {model_type}; "
            f"name a folder with a {model_type} model, or another family"
        )


def read_model(architecture: Any, folder: str, device: str, dtype: "torch.dtype", **options: Any) -> Any:
    """`architecture.from_pretrained(folder)` on `device`, ready for inference.

    transformers fills weights that the folder lacks with random numbers and only warns. Such
    a model would embed noise, so it is refused here.

    Raises:
        PlatformError: if weights are missing, of the wrong shape, or unreadable.
    """
    with quiet():
        try:
            network, report = architecture.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with a message that names them
                local_files_only=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise does_not_load(folder, error) from None
    missing = sorted(report["missing_keys"])
    misshapen = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"])
    if missing or misshapen:
        raise PlatformError(
            f"{folder} does not hold the weights of {architecture.__name__} that its config.json asks for: "
            f"{len(missing)} missing, {len(misshapen)} of another shape, {(missing + misshapen)[0]} among them; "
            "copy or download the model again, or name a folder of the right architecture"
        )
    return network.eval().requires_grad_(False).to(device)


def read_companion(loader: Any, folder: str, **options: Any) -> Any:
    """`loader.from_pretrained(folder)`: a configuration, processor or tokenizer beside the weights.

    Raises:
        PlatformError: if its files are missing or unreadable.
    """
    with quiet():
        try:
            return loader.from_pretrained(folder, local_files_only=True, **options)
        except (OSError, ValueError) as error:
            raise does_not_load(folder, error) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports of unused weights, which scare users."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def does_not_load(folder: str, error: Exception) -> PlatformError:
    """The error of a library that could not read the folder, in one line with the mend."""
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return PlatformError(f"{folder} does not load: {reason}; copy or download the model again")
