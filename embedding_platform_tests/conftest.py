"""What many tests stand on: a platform in a folder of its own, and its Dagster instance."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.settings import load_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SETTINGS", "MEDIA_ROOT", "STORE_ROOT", "MILVUS__URI", "MILVUS__TOKEN", "MODEL_SET", "SPACES"):
        monkeypatch.delenv(f"EMBEDDING_PLATFORM_{name}", raising=False)


def open_platform(folder: Path, **settings: object) -> Platform:
    """A platform whose media, store and Milvus Lite lie in `folder`; relative paths start there."""
    return Platform(load_settings(base=folder, **settings))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance that ends with the test."""
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform in a folder of the test's own, with an empty media root."""
    (tmp_path / "media").mkdir()
    opened = open_platform(tmp_path)
    yield opened
    close_directory(opened.settings.milvus_uri)
