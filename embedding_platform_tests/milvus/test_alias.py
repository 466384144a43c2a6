from uuid import uuid4

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target, list_collections_of, point_alias
from embedding_platform.milvus.schema import read_provenance

from .making import new_collection


@pytest.fixture
def space():
    return f"image/{uuid4().hex[:8]}"


def test_an_alias_is_created_switched_and_left_alone(client, space):
    alias = f"a_{uuid4().hex}"
    first, second = new_collection(client, space=space), new_collection(client, space=space)
    assert alias_target(client, alias) is None
    assert point_alias(client, alias, first)
    assert alias_target(client, alias) == first
    assert not point_alias(client, alias, first)
    assert point_alias(client, alias, second)
    assert alias_target(client, alias) == second
    assert read_provenance(client, alias) == read_provenance(client, second)


def test_an_alias_never_leaves_its_space(client, space):
    alias = f"a_{uuid4().hex}"
    served = new_collection(client, space=space)
    point_alias(client, alias, served)
    with pytest.raises(PlatformError, match=f"serves the space {space}, not text/other"):
        point_alias(client, alias, new_collection(client, space="text/other"))
    assert alias_target(client, alias) == served


def test_an_alias_to_nothing_is_refused(client):
    with pytest.raises(PlatformError, match="nosuch"):
        point_alias(client, f"a_{uuid4().hex}", "nosuch")


def test_collections_are_listed_by_space(client, space):
    mine = {new_collection(client, space=space), new_collection(client, space=space)}
    new_collection(client, space=f"{space}_large")
    assert list_collections_of(client, space) == sorted(mine)
    assert list_collections_of(client, "audio/none") == []
