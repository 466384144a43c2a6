from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_platform_tests.models import small_models


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family's name to the folder of its small model, saved on first use."""
    root = tmp_path_factory.mktemp("models")

    def folder_of(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            import torch

            torch.manual_seed(7)
            getattr(small_models, f"save_{family}")(folder)
        return folder

    return folder_of
