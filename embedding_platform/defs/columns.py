"""Columns of the tables, as Dagster shows them: names and types from the schemas, and a line on each."""

from collections.abc import Iterable, Mapping

import dagster as dg
import pyarrow as pa

from embedding_platform.milvus.schema import Provenance, column_types

DESCRIPTIONS: Mapping[str, str] = {
    "attributes": "What else is known of the file or segment, as JSON",
    "captions": "Texts beside an image",
    "captions_modified": "Times or etags of the files that the captions came from",
    "content_hash": "SHA-256 of the content: of a file's bytes, or of what a segment holds; equal ones share a vector",
    "device": "Where the vector was made",
    "embedded_at": "When the vector was made, UTC",
    "end": "Where the segment ends: characters or seconds; 0 for a whole file",
    "fingerprint": "Hash of all that decides a vector's values: model, weights, preprocessing, precision",
    "id": "Key of the row: 32 hex digits from source, path, role and position",
    "item_version": "Version of the file that the segment was cut from",
    "media_type": "What the file is, by its content",
    "model": "Where the model came from",
    "modified": "Times or etag that spare hashing an unchanged file",
    "path": "Path in the source",
    "position": "Place among the file's segments of one role, from 0",
    "role": "What the segment is to a model: text, image, audio or video",
    "row_version": "Digest of all that the segment tells its row in Milvus",
    "run_id": "The Dagster run that made the vector",
    "segment_id": "Key of the segment and its row: 32 hex digits from source, path, role and position",
    "size": "Bytes of the file",
    "source": "Top-level folder of the media root",
    "start": "Where the segment begins: characters or seconds; 0 for a whole file",
    "text": "The passage or caption; nothing for other roles",
    "uri": "Whole path or URL of the file",
    "vector": "The embedding, float32",
    "words": "The words of the text, as the sparse vector that Milvus makes of them",
    "version": "Changes with anything that decides the rest: two rows of equal key and version need no work",
}
"""What a column holds, in whichever table it stands."""


def columns(schema: pa.Schema, key: str = "") -> dg.TableSchema:
    """The columns of a Parquet table; `key` names the one that tells its rows apart."""
    return _table_schema(((field.name, str(field.type)) for field in schema), key)


def collection_columns(provenance: Provenance) -> dg.TableSchema:
    """The fields of a collection in Milvus."""
    return _table_schema(column_types(provenance).items(), "id")


def _table_schema(types: Iterable[tuple[str, str]], key: str) -> dg.TableSchema:
    unique, other = dg.TableColumnConstraints(nullable=False, unique=True), dg.TableColumnConstraints()
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name, kind, DESCRIPTIONS.get(name), constraints=unique if name == key else other)
            for name, kind in types
        ]
    )
