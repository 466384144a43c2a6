import subprocess
import sys

import pytest

from embedding_platform.media.cutting import Cutting, code_version, modality_module
from embedding_platform.spaces import MODALITIES

from .made import CUTTING


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_has_a_module_with_the_same_functions(modality: str) -> None:
    module = modality_module(modality)
    assert isinstance(module.CODE_VERSION, str)
    assert all(callable(getattr(module, name)) for name in ("probe", "cut", "read", "parameters"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_code_version_follows_the_code(modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version(modality, CUTTING)
    assert code_version(modality, CUTTING) == before
    monkeypatch.setattr(modality_module(modality), "CODE_VERSION", "another")
    assert code_version(modality, CUTTING) != before


def test_images_are_not_cut_anew_for_the_parameters_of_others() -> None:
    other = Cutting("/nowhere/tokenizer.json", 1, 2, 3.0, 4.0)
    assert code_version("image", CUTTING) == code_version("image", other)
    assert code_version("image_text", CUTTING) == code_version("image_text", other)


def test_listing_files_loads_no_decoder() -> None:
    program = (
        "import sys, embedding_platform.media.items\n"
        "print(sorted({'av', 'PIL', 'bs4', 'pypdf', 'semantic_text_splitter', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
