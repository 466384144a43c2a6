"""The items of a source: what its files are, which belong together, what has changed."""

import dataclasses
import hashlib
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_platform import records
from embedding_platform.buckets import own_paths
from embedding_platform.errors import PlatformError, RejectedError, first_line
from embedding_platform.increments import place_in
from embedding_platform.media import recognition
from embedding_platform.media.cutting import modality_module
from embedding_platform.media.documents import storable
from embedding_platform.media.limits import USUAL_LIMITS, check_size, not_readable_now, stands
from embedding_platform.media.listing import Entry, current_state, entries_table
from embedding_platform.media.listing import entries as entries_of
from embedding_platform.media.reading import open_media
from embedding_platform.media.recognition import CAPTIONS_FILE, claimed, recognise
from embedding_platform.media.suspects import UNNOTED, Decode, Decodes
from embedding_platform.records import ITEMS, ROWS_PER_PIECE, Item, digest
from embedding_platform.settings import DecodingSettings

CODE_VERSION = "1"

RejectedRow: TypeAlias = tuple[str, str, str, str]
"""Path, uri, version and reason, as the table REJECTED has them."""

_Read = TypeVar("_Read")

MAX_CAPTION_CHARACTERS = 10_000
"""A longer text beside an image is a document of the same name; no model reads that much as a caption."""

ITEMS_PER_CHUNK = 8192
BYTES_PER_CHUNK = 2**30
SECONDS_PER_CHUNK = 60.0
"""Work that a killed run may lose: what was examined is kept when it is so many files, or so much media, or so old."""

_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Listing:
    """The items of one modality in a source, and what was done to know them.

    `table` has them by path, of schema ITEMS. `skipped` counts the source's files of no known
    kind, `hashed` the files that had to be read because they are new or changed, and `media` the
    files of all modalities.
    """

    table: pa.Table
    rejected: list[RejectedRow]
    skipped: int
    hashed: int
    media: int = 0

    @property
    def items(self) -> list[Item]:
        """The rows of `table`, each as an object."""
        return records.items(self.table)


@dataclass(frozen=True)
class _Sighting:
    """A file, or a line of captions, and what is known of it without reading it through."""

    modality: str
    entry: Entry
    media_type: str = ""
    reason: str = ""
    captions: tuple[str, ...] = ()
    captions_modified: str = ""
    item: Item | None = None
    last: Item | None = None


@dataclass(frozen=True)
class _Survey:
    """What there is in a source.

    `settled` has by modality the rows of former listings that hold for the files as they are now, and
    `sightings` all other files of a known kind, sorted by path. `skipped` counts those of none.
    """

    settled: Mapping[str, pa.Table]
    sightings: list[_Sighting]
    skipped: int

    @property
    def media(self) -> int:
        return len(self.sightings) + sum(table.num_rows for table in self.settled.values())


@dataclass(frozen=True)
class _Caption:
    """A caption that a line of a captions file gives to the image at `path`."""

    path: str
    text: str
    state: str


def list_items(
    modality: str,
    media_root: str,
    source: str,
    known: Mapping[str, pa.Table],
    known_rejected: Mapping[str, Sequence[RejectedRow]],
    limits: DecodingSettings = USUAL_LIMITS,
    keep: Callable[[pa.Table, list[RejectedRow]], None] = lambda items, rejected: None,
    decodes: Decodes = UNNOTED,
    listed: pa.Table | None = None,
) -> Listing:
    """All items of one modality in a source, and what had to be rejected.

    `known` and `known_rejected` map modality names to what is known of this source, the former to
    tables of schema ITEMS. A file that one of them shows with the size and change mark it has now
    is not opened, unless it was rejected by other code, by a lower limit, or because it could not
    be read. An item that changed but cannot be read now stays as it was, and is rejected besides.
    A table may name a path again below its last listing, in another state. What has not changed
    passes from table to table; only the other files are held as objects.

    `keep` is given what was read through, chunk by chunk and each time what is new, for a caller that
    will not have it read again should this call not come to its end. `decodes` calls what opens files
    by native code. `listed` are the source's files, of schema ENTRIES, where they have been listed already.

    Raises:
        PlatformError: if a folder of the source, or a file of captions, cannot be read.
    """
    standing = {name: [row for row in rows if stands(row[3], limits)] for name, rows in known_rejected.items()}
    survey = _survey(media_root, source, known, standing, limits, decodes, listed)
    tables = [survey.settled.get(modality, ITEMS.empty_table())]
    examined = _Examined(keep)
    others: list[Item] = []
    rejected: list[RejectedRow] = []
    hashed = 0
    for sighting in survey.sightings:
        if sighting.modality != modality:
            continue
        if sighting.reason:
            outcome: Item | RejectedRow = _rejected_row(modality, sighting.entry, sighting.reason)
        elif sighting.item is not None:
            others.append(
                dataclasses.replace(
                    sighting.item,
                    uri=sighting.entry.uri,
                    captions=sighting.captions,
                    captions_modified=sighting.captions_modified,
                )
            )
            continue
        else:
            hashed += 1
            outcome = _examined(sighting, limits, decodes)
            tables += examined.add(outcome, sighting.entry.size)
        if not isinstance(outcome, Item):
            rejected.append(outcome)
            if sighting.last is not None and not_readable_now(outcome[3]):
                others.append(dataclasses.replace(sighting.last, uri=sighting.entry.uri))
    tables += [examined.rest(), records.items_table(others)]
    table = pa.concat_tables(tables)
    paths = table["path"]
    if not pc.all(pc.less(paths.slice(0, max(0, len(paths) - 1)), paths.slice(1)), min_count=0).as_py():
        table = table.sort_by("path")
    return Listing(table, rejected, survey.skipped, hashed, survey.media)


def classify(
    media_root: str,
    source: str,
    known: Mapping[str, pa.Table],
    known_rejected: Mapping[str, Sequence[RejectedRow]],
    limits: DecodingSettings = USUAL_LIMITS,
    decodes: Decodes = UNNOTED,
    listed: pa.Table | None = None,
) -> dict[str, dict[str, str]]:
    """The state of every file of a source by modality and path, without hashing any.

    `known`, `known_rejected`, `decodes` and `listed` are those of `list_items`. Only files that are new or changed
    are opened, to recognise what they hold, and those rejected by other code or a lower limit; one that
    could not be read waits for the next listing. Compare with `item_states` and `rejected_state` of
    the last listing to see what has changed.

    Raises:
        PlatformError: if a folder of the source, or a file of captions, cannot be read.
    """
    standing = {
        name: [row for row in rows if not_readable_now(row[3]) or stands(row[3], limits)]
        for name, rows in known_rejected.items()
    }
    survey = _survey(media_root, source, known, standing, limits, decodes, listed)
    states = {
        modality: dict(zip(table["path"].to_pylist(), item_states(table).to_pylist(), strict=True))
        for modality, table in survey.settled.items()
        if table.num_rows
    }
    for sighting in survey.sightings:
        if sighting.reason:
            state = f"{_rejected_version(sighting.modality, sighting.entry)}-"
        else:
            state = f"{_file_state(sighting.entry)}-{sighting.captions_modified}"
        states.setdefault(sighting.modality, {})[sighting.entry.path] = state
    return states


def item_states(table: pa.Table) -> pa.ChunkedArray:
    """The states of the listed items of a table with these columns of ITEMS, in the form that `classify` has them."""
    return pc.binary_join_element_wise(_file_states(table), table["captions_modified"], "-")


def rejected_state(row: RejectedRow) -> str:
    """The state of a rejected row, in the form that `classify` has it."""
    return f"{row[2]}-"


def verdict_code(modality: str) -> str:
    """A hash of the code that rejects files of a modality: what the version of a rejected row ends with."""
    # The text beside an image is read as a document.
    readers = ("image_text", "text") if modality == "image_text" else (modality,)
    code = digest(CODE_VERSION, recognition.CODE_VERSION, *(modality_module(name).CODE_VERSION for name in readers))
    return code[:8]


class _Examined:
    """What was read through since it was last given away to be kept."""

    def __init__(self, keep: Callable[[pa.Table, list[RejectedRow]], None]) -> None:
        self._keep = keep
        self._begin()

    def add(self, outcome: Item | RejectedRow, size: int) -> list[pa.Table]:
        """Take what reading a file of `size` bytes gave; if that makes a chunk, give it away, and return its items."""
        if isinstance(outcome, Item):
            self._items.append(outcome)
        else:
            self._rejected.append(outcome)
        self._bytes += size
        if (
            len(self._items) + len(self._rejected) >= ITEMS_PER_CHUNK
            or self._bytes >= BYTES_PER_CHUNK
            or time.monotonic() - self._begun > SECONDS_PER_CHUNK
        ):
            items = self.rest()
            self._keep(items, self._rejected)
            self._begin()
            return [items]
        return []

    def rest(self) -> pa.Table:
        """The items that are in no chunk yet, as a table of schema ITEMS."""
        return records.items_table(self._items)

    def _begin(self) -> None:
        self._items: list[Item] = []
        self._rejected: list[RejectedRow] = []
        self._bytes = 0
        self._begun = time.monotonic()


def _survey(
    media_root: str,
    source: str,
    known: Mapping[str, pa.Table],
    known_rejected: Mapping[str, Sequence[RejectedRow]],
    limits: DecodingSettings,
    decodes: Decodes = UNNOTED,
    listed: pa.Table | None = None,
) -> _Survey:
    """What every file of the source is."""
    listed = entries_table(media_root, source) if listed is None else listed
    is_known = np.zeros(listed.num_rows, dtype=bool)
    unchanged: dict[str, pa.Table] = {}
    for modality, table in known.items():
        unchanged[modality], places = _unchanged(table, listed)
        is_known[places] = True
    unknown = listed.filter(pa.array(~is_known))
    entries = {entry.path: entry for entry in entries_of(unknown)}
    last = _last_items(known, unknown["path"])
    reasons = _reasons(known_rejected, listed)

    def look(paths: Iterable[str]) -> dict[str, _Sighting | None]:
        return {path: _sighting(entries[path], reasons.get(path), last.get(path), limits, decodes) for path in paths}

    documents = set(filter(_may_caption, entries))
    looked = look(entries.keys() - documents)
    images = _images(unchanged, [path for path, found in looked.items() if found and found.modality == "image"])
    beside = _captions_beside(listed, images)
    looked |= look(documents - set(beside["document"].filter(_is_in(beside["document"], unknown["path"])).to_pylist()))
    skipped = sum(found is None and posixpath.basename(path) != CAPTIONS_FILE for path, found in looked.items())
    sightings = {path: found for path, found in looked.items() if found is not None}

    lines, faults = _captions_in_lines(source, listed, images, limits)
    settled = _settled(unchanged, beside, lines)
    as_before = _unsettled_images(unchanged, settled)
    for entry in _entries_at(listed, as_before):
        item = as_before[entry.path][0]
        sightings[entry.path] = _Sighting("image", entry, item.media_type, item=item)
    sightings |= faults
    if "image_text" in settled:
        beside = beside.filter(_is_in_none(beside["image"], settled["image_text"]["path"]))
    caption_of = dict(zip(beside["image"].to_pylist(), beside["document"].to_pylist(), strict=True))
    caption_files = {entry.path: entry for entry in _entries_at(listed, caption_of.values())}
    for path in caption_of.keys() | lines.keys():
        file = caption_files.get(caption_of.get(path, ""))
        before = as_before.get(path, ())
        for found in _paired(sightings[path], before, file, reasons, lines.get(path, ()), limits):
            sightings[found.entry.path] = found
    return _Survey(
        {name: _chosen(table, _is_in_none(table["path"], _strings(sightings))) for name, table in settled.items()}
        if sightings
        else settled,
        sorted(sightings.values(), key=lambda sighting: sighting.entry.path),
        skipped,
    )


def _unchanged(table: pa.Table, listed: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rows of files that are as they were, each path once, with the URLs that they have now; and the rows of
    `listed`, which is sorted by path, that name them."""
    pieces, places = [table.slice(0, 0)], [np.zeros(0, np.int64)]
    for first in range(0, table.num_rows, ROWS_PER_PIECE):
        piece = table.slice(first, ROWS_PER_PIECE)
        ends = pc.min_max(piece["path"]).as_py()
        begin = place_in(listed["path"], ends["min"])
        near = listed.slice(begin, place_in(listed["path"], ends["max"], begin) + 1 - begin)
        piece, found = _unchanged_among(piece, near)
        pieces.append(piece)
        places.append(found.to_numpy() + begin)
    table, rows_listed = pa.concat_tables(pieces), np.concatenate(places)
    # Of a path that is named again the later row is the newer one.
    _, last = np.unique(rows_listed[::-1], return_index=True)
    if len(last) < len(rows_listed):
        rows = np.sort(len(rows_listed) - 1 - last)
        table, rows_listed = table.take(pa.array(rows)), rows_listed[rows]
    return table, rows_listed


def _unchanged_among(table: pa.Table, listed: pa.Table) -> tuple[pa.Table, pa.ChunkedArray]:
    """The rows of files that are listed as they were, with the URLs that they have now, and their places."""
    places = pc.index_in(table["path"], listed["path"])
    same = pc.and_(
        pc.equal(table["size"], listed["size"].take(places)),
        pc.equal(table["modified"], listed["modified"].take(places)),
    ).fill_null(False)
    table, places = _chosen(table, same), places.filter(same)
    uris = listed["uri"].take(places)
    if not table["uri"].equals(uris):
        table = table.set_column(table.schema.get_field_index("uri"), "uri", uris)
    return table, places


def _chosen(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """The rows that a mask without nulls chooses, not copied where it chooses all."""
    return table if pc.all(mask, min_count=0).as_py() else table.filter(mask)


def _last_items(known: Mapping[str, pa.Table], paths: pa.ChunkedArray) -> dict[str, tuple[str, Item]]:
    """Modality and item of the last listing by path, of those paths."""
    last: dict[str, tuple[str, Item]] = {}
    for modality, table in known.items():
        for item in reversed(records.items(table.filter(_is_in(table["path"], paths)))):
            last[item.path] = (modality, item)
    return last


def _reasons(known_rejected: Mapping[str, Sequence[RejectedRow]], listed: pa.Table) -> dict[str, tuple[str, str]]:
    """Modality and reason by path of the files that were rejected as they are now, by the code that is here."""
    rejected = {row[0] for rows in known_rejected.values() for row in rows}
    entries = {entry.path: entry for entry in _entries_at(listed, rejected)}
    return {
        row[0]: (modality, row[3])
        for modality, rows in known_rejected.items()
        for row in rows
        if row[0] in entries and _rejected_version(modality, entries[row[0]]) == row[2]
    }


def _images(unchanged: Mapping[str, pa.Table], new: Sequence[str]) -> pa.ChunkedArray:
    """The paths of all images, each once. One that is named like a document is none that has captions."""
    known = [unchanged[name]["path"] for name in ("image", "image_text") if name in unchanged]
    paths = pa.chunked_array([chunk for column in (*known, _strings(new)) for chunk in column.chunks], pa.string())
    return pa.chunked_array([pc.unique(paths.filter(pc.invert(_is_text_file(paths))))])


def _captions_beside(listed: pa.Table, images: pa.ChunkedArray) -> pa.Table:
    """Each image that has a text file of the same name beside it, that document, and its state."""
    if not len(images):
        listed = listed.slice(0, 0)
    documents = listed.drop_columns("uri").filter(_is_text_file(listed["path"]))
    # Where several have that name in other letters, the last counts.
    documents = documents.take(pa.array(range(documents.num_rows - 1, -1, -1), pa.int64()))
    places = pc.index_in(_stems(images), _stems(documents["path"]))
    images, places = images.filter(places.is_valid()), places.drop_null()
    return pa.table(
        {
            "image": images,
            "document": documents["path"].take(places),
            "state": _file_states(documents).take(places),
        }
    )


def _settled(unchanged: Mapping[str, pa.Table], beside: pa.Table, lines: Iterable[str]) -> dict[str, pa.Table]:
    """The rows that hold, captions included. Captions in lines are compared elsewhere."""
    captioned, lined = beside["image"], _strings(lines)
    settled = {
        modality: _chosen(table, _is_in_none(table["path"], beside["document"])) if beside.num_rows else table
        for modality, table in unchanged.items()
    }
    if "image_text" in settled:
        pairs = settled["image_text"]
        states = beside["state"].take(pc.index_in(pairs["path"], captioned))
        holds = pc.equal(pairs["captions_modified"], states).fill_null(False)
        settled["image_text"] = _chosen(pairs, pc.and_(holds, _is_in_none(pairs["path"], lined)))
    if "image" in settled and (len(captioned) or len(lined)):
        alone = _is_in_none(settled["image"]["path"], captioned, lined)
        settled["image"] = _chosen(settled["image"], alone)
    return settled


def _unsettled_images(unchanged: Mapping[str, pa.Table], settled: Mapping[str, pa.Table]) -> dict[str, list[Item]]:
    """The known items by path of images that are as they were, but whose captions have to be looked at."""
    held = [settled[name]["path"] for name in ("image", "image_text") if name in settled]
    items: dict[str, list[Item]] = {}
    for name in ("image", "image_text"):
        # A set of all images is worth avoiding where all are settled.
        if name in unchanged and settled[name].num_rows < unchanged[name].num_rows:
            table = unchanged[name]
            for item in records.items(table.filter(_is_in_none(table["path"], *held))):
                items.setdefault(item.path, []).append(item)
    return items


def _entries_at(listed: pa.Table, paths: Iterable[str]) -> list[Entry]:
    """The entries of those paths that are listed."""
    return entries_of(listed.filter(_is_in(listed["path"], _strings(paths))))


def _is_in(column: pa.ChunkedArray, *values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(column, pa.chunked_array([chunk for part in values for chunk in part.chunks], pa.string()))


def _is_in_none(column: pa.ChunkedArray, *values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.invert(_is_in(column, *values))


def _strings(values: Iterable[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(values), pa.string())])


def _is_text_file(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.ends_with(pc.utf8_lower(paths), ".txt")


def _stems(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    # What `posixpath.splitext` leaves: no name here begins with a dot.
    return pc.replace_substring_regex(paths, r"\.[^./]*$", "")


def _file_states(table: pa.Table) -> pa.ChunkedArray:
    """`_file_state` of the rows of a table of entries or items."""
    return pc.binary_join_element_wise(table["size"].cast(pa.string()), table["modified"], "-")


def _sighting(
    entry: Entry,
    known_reason: tuple[str, str] | None,
    last: tuple[str, Item] | None,
    limits: DecodingSettings,
    decodes: Decodes,
) -> _Sighting | None:
    """What a file that is not as it was listed is by itself, captions apart."""
    # A text file that was rejected as a caption may be a good document now that its image is gone.
    if known_reason is not None and not (known_reason[0] == "image_text" and _may_caption(entry.path)):
        modality, reason = known_reason
        return _Sighting(_unpaired(modality), entry, reason=reason)
    try:
        modality, media_type, reason = _recognised(_Look(entry, limits, decodes))
    except RejectedError as error:
        modality, media_type, reason = _claimed_modality(entry), "", str(error)
        if last is not None:
            modality = _unpaired(last[0])
    return _Sighting(modality, entry, media_type, reason, last=last[1] if last else None) if modality else None


def _may_caption(path: str) -> bool:
    return path.lower().endswith(".txt")


def _unpaired(modality: str) -> str:
    return "image" if modality == "image_text" else modality


@dataclass(frozen=True)
class _Look:
    """A file that is recognised within limits; by what it is opened makes no difference."""

    entry: Entry
    limits: DecodingSettings
    decodes: Decodes = field(compare=False)


@lru_cache(maxsize=1 << 16)
def _recognised(look: _Look) -> tuple[str, str, str]:
    """Modality, media type and reason to reject. Cached, because files of no known kind are in no listing.

    Raises:
        RejectedError: if the file cannot be read now, which is not cached.
    """
    entry = look.entry
    decode = partial(look.decodes.one, _decode("recognise", "", entry))
    try:
        return (*(recognise(entry.path, entry.uri, look.limits, decode) or ("", "")), "")
    except RejectedError as error:
        if not_readable_now(str(error)):
            raise
        return (_claimed_modality(entry), "", str(error))


def _claimed_modality(entry: Entry) -> str:
    """The modality of a file that could not be recognised."""
    # Only a container is rejected whatever its name, and most of those are video.
    claim = claimed(entry.path) or ("video", "")
    return claim[0]


def _captions_in_lines(
    source: str, listed: pa.Table, images: pa.ChunkedArray, limits: DecodingSettings
) -> tuple[dict[str, list[_Caption]], dict[str, _Sighting]]:
    """Image path -> captions from captions files; and the lines of those that are faulty.

    Of the buckets of a folder, the one that has the image that a line names judges the line. Those that name none
    are shared out by their numbers: many in one bucket would be a large part of what it has.
    """
    is_ours = own_paths(source)
    captions: dict[str, list[_Caption]] = {}
    faults: dict[str, _Sighting] = {}
    files = entries_of(listed.filter(pc.match_substring_regex(listed["path"], rf"(^|/){re.escape(CAPTIONS_FILE)}$")))
    paths = set(listed["path"].to_pylist()) if files else set()
    image_paths = set(images.to_pylist()) if files else set()
    for entry in files:
        path = entry.path
        content, fault, entry = _read_whole(entry, partial(_content_of_captions, limits=limits))
        if fault:
            if is_ours(path):
                faults[path] = _Sighting("image_text", entry, reason=fault)
            continue
        for number, line in enumerate((content or b"").split(b"\n"), start=1):
            if not line.strip():
                continue
            named = f"{path}/{number}"
            try:
                row = _row_of_line(line)
                named = posixpath.normpath(posixpath.join(posixpath.dirname(path), row["file_name"]))
                if is_ours(named):
                    for caption in _captions_of_row(row, named, entry, image_paths, paths):
                        captions.setdefault(caption.path, []).append(caption)
            except RejectedError as error:
                if is_ours(named):
                    place = dataclasses.replace(entry, path=f"{path}:{number}")
                    faults[place.path] = _Sighting("image_text", place, reason=str(error))
    return captions, faults


def _read_whole(entry: Entry, read: Callable[[Entry], _Read]) -> tuple[_Read | None, str, Entry]:
    """What a file of captions holds or why it is rejected, and the file in the state that was read.

    One that went away since it was listed holds nothing, and is no longer rejected.

    Raises:
        PlatformError: if it cannot be read now, or changes whenever it is read: captions of
            which only a part was seen would be taken for removed.
    """
    for _ in range(2):
        content, fault = None, ""
        try:
            content = read(entry)
        except RejectedError as error:
            fault = str(error)
        try:
            size, modified = current_state(entry.uri)
        except FileNotFoundError:
            return None, "", entry
        except RejectedError as error:
            fault = str(error)
        if not_readable_now(fault):
            raise PlatformError(f"captions in {entry.uri}: the file {fault}")
        if (size, modified) == (entry.size, entry.modified):
            return content, fault, entry
        entry = dataclasses.replace(entry, size=size, modified=modified)
    raise PlatformError(
        f"captions in {entry.uri}: the file changed while it was read, twice; run again when it has been written"
    )


def _content_of_captions(entry: Entry, limits: DecodingSettings) -> bytes:
    """The bytes of a captions file.

    Raises:
        RejectedError: if it is too large, or cannot be read.
    """
    check_size(limits, "text", entry.size)
    with open_media(entry.uri) as file:
        return file.read(limits.max_document_megabytes * 2**20)


def _row_of_line(line: bytes) -> dict[str, Any]:
    """What a line of a captions file tells, with the name of an image as `file_name`."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise RejectedError(f"is not JSON: {first_line(error)}") from error
    except RecursionError as error:
        raise RejectedError("is not JSON that can be read: nested too deeply") from error
    if not isinstance(row, dict):
        raise RejectedError('is not an object like {"file_name": "cat.jpg", "text": "a cat"}')
    name = row.get("file_name", row.get("file"))
    if not isinstance(name, str) or not name:
        raise RejectedError('has no "file_name"')
    return {**row, "file_name": name}


def _captions_of_row(
    row: Mapping[str, Any], path: str, entry: Entry, images: Set[str], paths: Set[str]
) -> list[_Caption]:
    if path not in paths:
        raise RejectedError(f"names {row['file_name']}, which is not there")
    if path not in images:
        raise RejectedError(f"names {row['file_name']}, which is not an image")
    texts = row.get("text", row.get("caption"))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RejectedError('has no "text" that is a text or a list of texts')
    texts = [storable(text).strip() for text in texts]
    if not texts or not all(texts):
        raise RejectedError("holds an empty caption")
    for text in texts:
        _check_caption(text)
    return [_Caption(path, text, _file_state(entry)) for text in texts]


def _paired(
    image: _Sighting,
    listed: Sequence[Item],
    caption_file: Entry | None,
    reasons: Mapping[str, tuple[str, str]],
    lines: Sequence[_Caption],
    limits: DecodingSettings,
) -> Iterator[_Sighting]:
    """Yield the image as a pair if it has a caption, and the caption file if it holds none."""
    states = [line.state for line in lines]
    modified = _joined([*([_file_state(caption_file)] if caption_file else []), *states])
    as_listed = next((item for item in listed if item.captions_modified == modified), None)
    if as_listed is not None:
        captions: Sequence[str] = as_listed.captions
    else:
        captions = [line.text for line in lines]
        if caption_file is not None:
            text, fault, caption_file = _caption_of_file(caption_file, reasons.get(caption_file.path), limits)
            if fault:
                yield _Sighting("image_text", caption_file, reason=fault)
            if text:
                captions = [text, *captions]
                states = [_file_state(caption_file), *states]
            modified = _joined(states)
    if captions:
        unique = tuple(dict.fromkeys(captions))
        yield dataclasses.replace(image, modality="image_text", captions=unique, captions_modified=modified)


def _joined(states: Iterable[str]) -> str:
    """What an image's captions came from, as `captions_modified` has it."""
    return "+".join(dict.fromkeys(states))


def _caption_of_file(
    entry: Entry, known_reason: tuple[str, str] | None, limits: DecodingSettings
) -> tuple[str, str, Entry]:
    """The caption that a text file holds or why it holds none, and the file in the state that was read.

    Raises:
        PlatformError: as `_read_whole` does.
    """
    if known_reason is not None and known_reason[0] == "image_text":
        return "", known_reason[1], entry

    def read(entry: Entry) -> str:
        text: str = modality_module("text").extract(entry.uri, limits).text.strip()
        _check_caption(text)
        return text

    text, fault, entry = _read_whole(entry, read)
    return text or "", f"is no caption: {fault}" if fault else "", entry


def _check_caption(text: str) -> None:
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise RejectedError(
            f"has {len(text)} characters, a caption at most {MAX_CAPTION_CHARACTERS}; "
            "give a document another name than its image"
        )


def _examined(sighting: _Sighting, limits: DecodingSettings, decodes: Decodes) -> Item | RejectedRow:
    """Hash and probe a file; once more if it changed meanwhile."""
    entry, modality = sighting.entry, sighting.modality
    try:
        before = current_state(entry.uri)
        for _ in range(2):
            try:
                outcome: Item | RejectedRow = _item(sighting, entry, limits, decodes)
            except RejectedError as error:
                outcome = _rejected_row(modality, entry, str(error))
            after = current_state(entry.uri)
            if after == before:
                return outcome
            seen, before = entry, after
            entry = dataclasses.replace(entry, size=after[0], modified=after[1])
    except FileNotFoundError:
        return _rejected_row(modality, entry, "went away while it was read")
    except RejectedError as error:
        return _rejected_row(modality, entry, str(error))
    # The version is that of a state which is past, so that the next listing tries again.
    return _rejected_row(modality, seen, "changed while it was read, twice; it is tried again at the next listing")


def _item(sighting: _Sighting, entry: Entry, limits: DecodingSettings, decodes: Decodes) -> Item:
    check_size(limits, sighting.modality, entry.size)
    hasher = hashlib.sha256()
    with open_media(entry.uri) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            hasher.update(block)
    probe: Callable[..., dict[str, Any]] = modality_module(sighting.modality).probe
    attributes = decodes.one(_decode("probe", sighting.modality, entry), probe, entry.uri, limits)
    claim = claimed(entry.path)
    if claim is not None and claim[1].partition("/")[2] != sighting.media_type.partition("/")[2]:
        attributes["named_as"] = claim[1]
    return Item(
        path=entry.path,
        uri=entry.uri,
        size=entry.size,
        modified=entry.modified,
        media_type=sighting.media_type,
        content_hash=hasher.hexdigest(),
        captions=sighting.captions,
        captions_modified=sighting.captions_modified,
        attributes=attributes,
    )


def _decode(step: Literal["recognise", "probe"], modality: str, entry: Entry) -> Decode:
    return Decode(step, modality, entry.uri, entry.size, entry.modified)


def _rejected_row(modality: str, entry: Entry, reason: str) -> RejectedRow:
    return (entry.path, entry.uri, _rejected_version(modality, entry), reason)


def _rejected_version(modality: str, entry: Entry) -> str:
    """What a verdict was passed on: the file, and the code that listed it."""
    return f"{_file_state(entry)}-{verdict_code(modality)}"


def _file_state(file: Entry | Item) -> str:
    return f"{file.size}-{file.modified}"
