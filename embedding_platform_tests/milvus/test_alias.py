from uuid import uuid4

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import (
    alias_target,
    is_withdrawn,
    note_published,
    point_alias,
    publications,
    withdraw,
)
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


def test_collections_are_listed_by_space_the_last_published_last(client, space):
    first, second, third = sorted(new_collection(client, space=space) for _ in range(3))
    new_collection(client, space=f"{space}_large")
    assert [one.collection for one in publications(client, space)] == [first, second, third]
    note_published(client, third)
    note_published(client, first)
    found = publications(client, space)
    assert [(one.collection, one.number) for one in found] == [(second, 0), (third, 1), (first, 2)]
    assert publications(client, "audio/none") == []
    assert {first, second, third} < {one.collection for one in publications(client)}


def test_a_publication_is_counted_once_and_again_after_another(client, space):
    first, second = new_collection(client, space=space), new_collection(client, space=space)
    for collection in (first, first, second, second, first):
        note_published(client, collection)
    assert [(one.collection, one.number) for one in publications(client, space)] == [(second, 2), (first, 3)]


def test_a_withdrawn_collection_is_known_until_it_is_published_again(client, space):
    collection = new_collection(client, space=space)
    note_published(client, collection)
    assert not is_withdrawn(client, collection)
    withdraw(client, collection)
    assert is_withdrawn(client, collection)
    withdraw(client, collection, withdrawn=False)
    assert not is_withdrawn(client, collection)
    withdraw(client, collection)
    note_published(client, collection)
    assert not is_withdrawn(client, collection)
