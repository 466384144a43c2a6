import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.deployment import LITE, deployment_of
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import (
    FIELD_NAMES,
    MAX_TEXT_BYTES,
    Maker,
    alias_name,
    collection_name,
    cut_to_bytes,
    ensure_collection,
    make_rows,
    partition_name,
    read_provenance,
    row_versions,
)
from embedding_platform.milvus.sync import read_rows, sync_partition
from embedding_platform.records import Segment, segment_id, segments_table

from .making import DIMENSION, FLAT, provenance, vector

SAFE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def segment(path="a.txt", text="words", **changes):
    plain = {
        "segment_id": segment_id("books", path, "text", 0),
        "path": path,
        "uri": f"file:///media/books/{path}",
        "item_version": "1" * 64,
        "role": "text",
        "position": 0,
        "start": 0.0,
        "end": 5.0,
        "text": text,
        "content_hash": "2" * 64,
        "attributes": {"language": "en"},
    }
    return Segment(**{**plain, **changes})


MAKER = Maker("books", "file:///media/books/", "model", "f" * 64)


def test_names():
    assert collection_name("image/clip", "3fa9c1d2e4b5" + "0" * 52) == "image_clip_3fa9c1d2e4b5_named2"
    assert collection_name("image/clip", "3fa9c1d2e4b5" + "0" * 52, "keyed") == "image_clip_3fa9c1d2e4b5_keyed2"
    assert alias_name("image/clip") == "image_clip"
    assert re.fullmatch(r"product_photos_[0-9a-f]{10}", partition_name("product-photos"))
    assert partition_name("product-photos") != partition_name("product_photos")


@given(st.text())
def test_every_source_has_a_name_that_a_server_accepts(source):
    name = partition_name(source)
    assert SAFE.fullmatch(name)
    assert len(name) <= 255


@given(st.text(alphabet="aé日𝄞"), st.integers(0, 12))
def test_cutting_keeps_the_longest_beginning_that_fits(text, limit):
    cut = cut_to_bytes(text, limit)
    assert text.startswith(cut)
    assert len(cut.encode()) <= limit
    if cut != text:
        assert len(text[: len(cut) + 1].encode()) > limit


def test_a_collection_is_created_once_and_says_what_made_it(client):
    made_by = provenance(dimension=4, metric="L2", normalised=False, model="a" * 300)
    name = ensure_collection(client, made_by, FLAT)
    assert ensure_collection(client, made_by, FLAT) == name
    assert read_provenance(client, name) == made_by
    assert [field["name"] for field in client.describe_collection(name)["fields"]] == list(FIELD_NAMES)
    assert read_rows(client, Partition(name, "absent")).empty


def test_a_collection_of_another_schema_is_refused_with_every_difference(client):
    from pymilvus import DataType

    made_by = provenance()
    name = collection_name(made_by.space, made_by.fingerprint)
    template = client.describe_collection(ensure_collection(client, provenance(), FLAT))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    for field in template["fields"]:
        changed = {"source": {"max_length": 7}, "vector": {"dim": 5}}.get(field["name"], field["params"])
        kind = DataType.INT64 if field["name"] == "position" else field["type"]
        if field["name"] != "role":
            schema.add_field(field["name"], kind, is_primary=field["name"] == "id", **changed)
    schema.add_field("colour", DataType.INT64)
    properties = {
        key: value.replace(read_provenance(client, template["collection_name"]).fingerprint, made_by.fingerprint)
        for key, value in template["properties"].items()
    }
    client.create_collection(name, schema=schema, properties=properties)
    with pytest.raises(PlatformError) as refusal:
        ensure_collection(client, made_by, FLAT)
    message = str(refusal.value)
    for difference in (
        "role is missing",
        "colour is unknown",
        "source: max_length stored=7, expected=1024",
        "vector: dim stored=5, expected=8",
        "position: type stored=INT64, expected=INT32",
        "dynamic",
        "drop the collection",
    ):
        assert difference in message
    assert "\n" not in message


def test_a_collection_made_otherwise_is_refused(client):
    made_by = provenance()
    ensure_collection(client, made_by, FLAT)
    other = provenance(fingerprint=made_by.fingerprint, metric="IP", pooling="mean")
    with pytest.raises(PlatformError, match=r"metric stored='COSINE'.*pooling stored='', expected='mean'"):
        ensure_collection(client, other, FLAT)


def test_a_model_that_lies_elsewhere_is_the_same_while_its_fingerprint_is(client):
    made_by = provenance()
    name = ensure_collection(client, made_by, FLAT)
    assert ensure_collection(client, replace(made_by, model="/moved/clip"), FLAT) == name


def test_a_foreign_collection_is_named(client):
    client.create_collection("foreign", dimension=4)
    try:
        with pytest.raises(PlatformError, match="collection foreign in Milvus does not say which model"):
            read_provenance(client, "foreign")
    finally:
        client.drop_collection("foreign")
    with pytest.raises(PlatformError, match="nosuch"):
        read_provenance(client, "nosuch")


def test_segment_root_and_fingerprint_decide_the_version_of_a_row():
    made = [
        row_versions(segments_table([segment(**change)], "books"), root, fingerprint).iloc[0]
        for change, root, fingerprint in (
            ({}, "/media/books/", "a" * 64),
            ({"text": "other"}, "/media/books/", "a" * 64),
            ({}, "/moved/books/", "a" * 64),
            ({}, "/media/books/", "b" * 64),
        )
    ]
    assert len(set(made)) == len(made)
    assert {len(version) for version in made} == {64}


def test_segments_become_rows_that_sync_accepts(client):
    long = "日" * MAX_TEXT_BYTES
    table = segments_table([segment(), segment("b.txt", long), segment("c.png", None, role="image")], "books")
    wanted = row_versions(table, MAKER.root, MAKER.fingerprint)
    vectors = np.stack([vector(n) for n in range(3)])

    def rows(ids: pd.Index):
        made = make_rows(table, MAKER, vectors, ["run"] * 3, ["2026-01-01T00:00:00Z"] * 3)
        yield [row for row in made if row["id"] in ids]

    name = ensure_collection(client, provenance(), FLAT)
    assert sync_partition(client, Partition(name, "books"), wanted, rows).upserted == 3
    plain, cut, whole = get_rows(client, name, list(wanted.index))
    assert set(plain) == set(FIELD_NAMES)
    assert len(plain["vector"]) == DIMENSION
    assert plain["text"] == "words"
    assert plain["attributes"] == {"language": "en"}
    assert cut["text"] == "日" * (MAX_TEXT_BYTES // 3)
    assert cut["attributes"] == {"language": "en", "text_truncated": True}
    assert whole["text"] == ""
    assert bool(client.list_indexes(name)) == (deployment_of(client) is not LITE)


def test_attributes_too_long_for_a_server_are_dropped():
    table = segments_table([segment(attributes={"comment": "x" * 70_000})], "books")
    (row,) = make_rows(table, MAKER, vector(0)[None], ["run"], ["now"])
    assert row["attributes"] == {"attributes_dropped": True}
