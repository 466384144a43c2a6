from pathlib import Path

import pytest

from embedding_platform.starter.sample_media import make_sample_media, make_sample_queries


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample media in `media` and the query files in `queries`."""
    root = tmp_path_factory.mktemp("sample")
    make_sample_media(str(root / "media"))
    make_sample_queries(str(root / "queries"))
    return root
