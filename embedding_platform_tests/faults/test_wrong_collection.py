"""What stands in our collection's or alias's place, or comes from a model, and is not what it should be."""

import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.alias import alias_target
from embedding_platform_tests.faults.indexing import assert_true_to_media, collect, index, one_line, publish_all
from embedding_platform_tests.reconcile.small_lake import Lake


def foreign(client, name: str, dimension: int = 16) -> str:
    """A collection that somebody else made."""
    client.create_collection(name, dimension=dimension, timeout=60)
    client.insert(name, [{"id": 1, "vector": [0.5] * dimension}], timeout=60)
    return name


def test_a_model_of_another_dimension_than_described_stores_nothing(client, lake: Lake) -> None:
    index(client, lake)
    lake.write("late", 10)
    lake.files()
    lake.segments()
    lake.encoder.spoil = lambda content, vector: np.append(vector, vector).astype(np.float32)
    report = lake.embeddings()
    assert (report.embedded, len(report.faults["dimension"])) == (0, 1)
    (_, _, _, reason) = report.rejected[0]
    assert reason == "dimension: small gave 16 dimensions where text/small has 8"
    lake.encoder.spoil = lambda content, vector: vector
    index(client, lake)
    assert_true_to_media(client, lake)


def test_a_foreign_collection_under_our_name_is_refused_and_left_alone(client, lake: Lake) -> None:
    foreign(client, lake.target.collection)
    lake.run()
    with pytest.raises(PlatformError, match=r"collection text_small_.* differs: .*which model made it") as failure:
        collect(client, lake)
    one_line(failure)
    assert client.query(lake.target.collection, ids=[1], output_fields=["id"], timeout=60) == [{"id": 1}]
    client.drop_collection(lake.target.collection, timeout=60)
    index(client, lake)
    assert_true_to_media(client, lake)


def test_our_collection_with_another_dimension_is_named_field_by_field(client, lake: Lake) -> None:
    index(client, lake)
    provenance = client.describe_collection(lake.target.collection, timeout=60)
    schema = client.create_schema(auto_id=False, description=provenance["description"])
    from pymilvus import DataType

    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=16)
    schema.add_field("text", DataType.VARCHAR, max_length=10)
    schema.add_field("colour", DataType.VARCHAR, max_length=10)
    client.drop_alias(lake.target.alias, timeout=60)
    client.drop_collection(lake.target.collection, timeout=60)
    client.create_collection(lake.target.collection, schema=schema, properties=provenance["properties"], timeout=60)
    with pytest.raises(PlatformError, match="differs") as failure:
        collect(client, lake)
    said = one_line(failure)
    for difference in (
        "field vector: dim stored=16, expected=8",
        "field text: max_length stored=10",
        "field colour is unknown",
        "field path is missing",
    ):
        assert difference in said
    client.drop_collection(lake.target.collection, timeout=60)
    embedded = lake.encoder.embedded
    index(client, lake)
    assert_true_to_media(client, lake)
    assert lake.encoder.embedded == embedded


def test_a_foreign_collection_under_the_name_of_our_alias_is_refused_and_left_alone(client, lake: Lake) -> None:
    foreign(client, lake.target.alias)
    lake.run()
    collect(client, lake)
    with pytest.raises(PlatformError, match="text_small") as failure:
        publish_all(client, lake)
    one_line(failure)
    assert client.query(lake.target.alias, ids=[1], output_fields=["id"], timeout=60) == [{"id": 1}]
    client.drop_collection(lake.target.alias, timeout=60)
    index(client, lake)
    assert_true_to_media(client, lake)


def test_a_foreign_collection_under_our_alias_is_refused_and_stays_there(client, lake: Lake) -> None:
    client.create_alias(foreign(client, "theirs"), lake.target.alias, timeout=60)
    lake.run()
    collect(client, lake)
    with pytest.raises(PlatformError, match="collection theirs in Milvus does not say which model made it") as failure:
        publish_all(client, lake)
    one_line(failure)
    assert alias_target(client, lake.target.alias) == "theirs"
