"""Where each stage keeps its tables under the store root."""

import re
from urllib.parse import quote, unquote

from embedding_platform.storage import join, subfolders

FINGERPRINT_DIGITS = 16
"""Hex digits of a fingerprint that name a folder."""


def items_url(store: str, modality: str, source: str) -> str:
    """The table of a source's media files."""
    return join(items_folder(store, modality), table_of(source))


def items_folder(store: str, modality: str) -> str:
    """The folder over all sources' tables of media files."""
    return join(store, "files", modality)


def rejected_items_url(store: str, modality: str, source: str) -> str:
    """The table of files that could not be listed."""
    return join(rejected_items_folder(store, modality), table_of(source))


def rejected_items_folder(store: str, modality: str) -> str:
    """The folder over all sources' tables of files that could not be listed."""
    return join(store, "rejected", "files", modality)


def examined_folder(store: str, modality: str, source: str) -> str:
    """The shards of files that a listing which has not ended yet has read through."""
    return join(store, "examined", modality, _safe(source))


def rejected_examined_folder(store: str, modality: str, source: str) -> str:
    """The shards of those that it could not use."""
    return join(store, "rejected", "examined", modality, _safe(source))


def table_of(source: str) -> str:
    """The name of a source's table in a folder that has one for each."""
    return f"{_safe(source)}.parquet"


def note_of(source: str) -> str:
    """The name of a source's note in a folder that has one for each."""
    return f"{_safe(source)}.txt"


def source_name(table: str) -> str:
    """The source whose table is named `table`."""
    return unquote(table.removesuffix(".parquet"))


def segments_root(store: str, modality: str) -> str:
    """The folder over all sources' segments."""
    return join(store, "segments", modality)


def segments_folder(store: str, modality: str, source: str, cut_version: str) -> str:
    """The shards of segments that one version of the cutter made."""
    return join(segments_root(store, modality), _safe(source), cut_version[:16])


def rejected_segments_url(store: str, modality: str, source: str, cut_version: str) -> str:
    """The table of items that one version of the cutter could not cut."""
    return join(store, "rejected", "segments", modality, _safe(source), f"{cut_version[:16]}.parquet")


def space_folder(store: str, space_key: str, fingerprint: str) -> str:
    """The folder over all sources' vectors of one space and fingerprint."""
    return join(store, "vectors", space_key, fingerprint[:FINGERPRINT_DIGITS])


def space_folders(store: str) -> list[str]:
    """The folders over the vectors of every space and fingerprint that has any."""
    root = join(store, "vectors")
    return [
        join(root, modality, space, fingerprint)
        for modality in subfolders(root)
        for space in subfolders(join(root, modality))
        for fingerprint in subfolders(join(root, modality, space))
    ]


def beside_vectors(store: str, folder: str) -> tuple[str, ...]:
    """What else is kept of the space and fingerprint whose vectors lie in a folder of `space_folders`."""
    modality, space, fingerprint = folder.rsplit("/", 3)[1:]
    return (
        join(store, "rejected", "vectors", modality, space, fingerprint),
        join(store, "distributions", modality, space, fingerprint),
        join(store, "queries", modality, space, f"{fingerprint}.parquet"),
        join(store, "models", "pins", f"{fingerprint}.json"),
        join(store, "models", "golden", f"{fingerprint}.parquet"),
        join(store, "models", "golden", f"{fingerprint}.passed"),
    )


def vectors_folder(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """The shards of one source's vectors."""
    return join(space_folder(store, space_key, fingerprint), _safe(source))


def rejected_vectors_url(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """The table of segments that could not be embedded, or whose vector failed judgement."""
    return join(store, "rejected", "vectors", space_key, fingerprint[:FINGERPRINT_DIGITS], table_of(source))


def distribution_url(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """How the vectors of a source were distributed when its checks last passed, and the times before."""
    return join(store, "distributions", space_key, fingerprint[:FINGERPRINT_DIGITS], f"{_safe(source)}.json")


def arrived_url(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """The contents that came to a source since its vectors were last accepted."""
    folder = join(store, "distributions", space_key, fingerprint[:FINGERPRINT_DIGITS], "arrived")
    return join(folder, table_of(source))


def duplicates_url(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """How many segments of a source repeated another's content when its checks passed."""
    folder = join(store, "distributions", space_key, fingerprint[:FINGERPRINT_DIGITS], "duplicates")
    return join(folder, f"{_safe(source)}.json")


def verified_url(store: str, collection: str, source: str) -> str:
    """The rows of a partition that were last read back from Milvus."""
    return join(collection_folder(store, collection), "verified", table_of(source))


def intended_url(store: str, collection: str, source: str) -> str:
    """The rows that a sync of a partition, which has not ended yet, means to write or delete."""
    return join(collection_folder(store, collection), "intended", table_of(source))


def placed_url(store: str, collection: str, source: str) -> str:
    """What a source was listed as when a collection last held all of it."""
    return join(placed_folder(store, collection), note_of(source))


def placed_folder(store: str, collection: str) -> str:
    """The folder over the notes of what all sources were listed as when a collection last held all of them."""
    return join(collection_folder(store, collection), "placed")


def found_placed_url(store: str, collection: str) -> str:
    """Which sources a collection was last found to hold as they were listed."""
    return join(collection_folder(store, collection), "found_placed.parquet")


def behind_url(store: str, collection: str) -> str:
    """Since when sources are not in a collection as they are listed, by source, as the probes met them."""
    return join(collection_folder(store, collection), "behind.json")


def audited_url(store: str, collection: str, source: str) -> str:
    """How far the rows of a partition have been compared in whole with what they should be."""
    return join(collection_folder(store, collection), "audited", note_of(source))


def recall_url(store: str, collection: str, source: str) -> str:
    """The recall that was last measured in a partition."""
    return join(collection_folder(store, collection), "recall", f"{_safe(source)}.json")


def collection_folder(store: str, collection: str) -> str:
    """The folder of what is known of a collection in Milvus."""
    return join(collections_folder(store), collection)


def collections_folder(store: str) -> str:
    """The folder over what is known of all collections."""
    return join(store, "collections")


def precision_folder(store: str) -> str:
    """The folder of what was measured of each runtime's precision."""
    return join(store, "models", "precision")


def pin_url(store: str, fingerprint: str) -> str:
    """What the model of a fingerprint was when it made the first vector."""
    return join(store, "models", "pins", f"{fingerprint[:FINGERPRINT_DIGITS]}.json")


def golden_url(store: str, fingerprint: str) -> str:
    """The vectors that the model of a fingerprint gave of fixed inputs when it first made vectors."""
    return join(store, "models", "golden", f"{fingerprint[:FINGERPRINT_DIGITS]}.parquet")


def golden_passed_url(store: str, fingerprint: str) -> str:
    """The mark that the model of a fingerprint gave its golden vectors when a collection of it was published."""
    return join(store, "models", "golden", f"{fingerprint[:FINGERPRINT_DIGITS]}.passed")


def held_out_url(store: str, space_key: str, fingerprint: str) -> str:
    """The vectors of a space's held-out queries."""
    return join(store, "queries", space_key, f"{fingerprint[:FINGERPRINT_DIGITS]}.parquet")


def _safe(source: str) -> str:
    # Letters of any script stay as they are: quoted, a name of 30 Chinese ones is too long for a file.
    return re.sub(r"[^\w.-]", lambda found: quote(found[0], safe=""), source)
