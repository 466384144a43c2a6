"""Which sources a collection holds as they are listed and cut now, told by looking at what changed alone.

Every run of a source asks it of all of them. What was found is kept with the marks of the files
that tell, and those marks come with the listing of a folder: nothing is opened of a source that
is as it was.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa

from embedding_platform import layout, storage
from embedding_platform.reconcile.collection import holds_all
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target
from embedding_platform.records import digest

_FOUND = pa.schema([("source", pa.string()), ("mark", pa.string()), ("is_held", pa.bool_())])
"""One row per source: the mark of all that tells, and whether the collection held all of it then."""


def unplaced(target: Target, sources: Sequence[str], live: Callable[[str], LiveRows]) -> list[str]:
    """Those of the sources that `holds_all` is false of, in their order.

    Raises:
        PlatformError: if what is kept cannot be read, or not be written.
    """
    if not sources:
        return []
    url = layout.found_placed_url(live(sources[0]).store, target.collection)
    kept = {row["source"]: row for row in storage.read_table(url, _FOUND).to_pylist()}
    # Marked before they are looked at: what changes meanwhile is looked at again.
    marks = _marks(target, sources, live(sources[0]))
    found = {
        source: kept[source]
        if source in kept and kept[source]["mark"] == marks[source]
        else {"source": source, "mark": marks[source], "is_held": holds_all(target, live(source))}
        for source in sources
    }
    if found != kept:
        storage.write_table(url, pa.Table.from_pylist(list(found.values()), _FOUND))
    return [source for source in sources if not found[source]["is_held"]]


def _marks(target: Target, sources: Sequence[str], some: LiveRows) -> dict[str, str]:
    store, modality = some.store, target.space.modality
    items = storage.shard_marks(layout.items_folder(store, modality))
    rejected = storage.shard_marks(layout.rejected_items_folder(store, modality))
    placed = storage.shard_marks(layout.placed_folder(store, target.collection), ".txt")
    cut_version, marks = some.cut_version, {}
    for source in sources:
        table, note = layout.table_of(source), layout.note_of(source)
        told = (items.get(table, ""), rejected.get(table, ""), placed.get(note, ""))
        marks[source] = digest(cut_version, *told)
    return marks
