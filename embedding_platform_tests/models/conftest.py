"""Models at full size do not stay in memory when the tests of their family are over."""

import gc
from collections.abc import Iterator

import pytest

from embedding_platform.inference import engine


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays_loaded() -> Iterator[None]:
    yield
    engine._loaded.clear()
    gc.collect()
