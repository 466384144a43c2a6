"""The platform behind the routes: searches, a few at a time, and rows with their files, previews and passages."""

import logging
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from embedding_platform.buckets import among, folder_of
from embedding_platform.errors import MilvusError, PlatformError, RejectedError
from embedding_platform.inference.golden import golden_contents
from embedding_platform.inference.query import Query, read_query, text_query
from embedding_platform.lineage import RowTrace, trace_row
from embedding_platform.media.limits import awaited
from embedding_platform.media.previews import image_preview, sound_preview, video_preview
from embedding_platform.media.text import document_of
from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import explaining
from embedding_platform.milvus.query import get_rows
from embedding_platform.milvus.schema import alias_name
from embedding_platform.platform import Platform
from embedding_platform.search import Filter, Hit, Searcher
from embedding_platform.search.hits import place_in_file
from embedding_platform.serving.answers import (
    PassageAnswer,
    SearchAnswer,
    SpaceAnswer,
    SpaceHits,
    hit_answer,
    space_answer,
)
from embedding_platform.serving.media import OpenFile, open_inside
from embedding_platform.serving.passages import in_document
from embedding_platform.serving.refused import RefusedError
from embedding_platform.settings import ServingSettings

SECONDS_IN_LINE = 10.0
"""How long a request waits for those before it."""

SECONDS_TO_ANSWER = 3.0
"""What Milvus has to say that it is there, before a search would wait for it for minutes."""

_SECONDS_BELIEVED = 1.0
"""How long an answer of Milvus counts for those after it."""

_SECONDS_OF_SPACES = 5.0
"""How long the list of spaces and sources counts as new: reading it costs a look at each source's table."""

_MOST_SECONDS_OF_SPACES = 60.0
"""How long it may be given while a new one is read beside."""

_QUERY_NAME = "query"

_log = logging.getLogger(__name__)


class Service:
    """One platform for all requests; several threads share it.

    `open_platform` opens it, and opens it anew after Milvus went away, which may come back at another address.
    """

    def __init__(self, open_platform: Callable[[], Platform]) -> None:
        self._open_platform = open_platform
        self._asking = threading.Lock()
        self._platform = open_platform()
        self._searcher = Searcher(self._platform)
        self._answered = -_SECONDS_BELIEVED
        self._missed = (-_SECONDS_BELIEVED, "")
        self._spaces: tuple[float, list[SpaceAnswer]] = (-math.inf, [])
        self._listing = threading.Lock()
        places = self._platform.settings.serving.concurrent_searches
        self._places = threading.BoundedSemaphore(places)
        self._upload_places = threading.BoundedSemaphore(places)
        self._preview_places = threading.BoundedSemaphore(places)

    @property
    def settings(self) -> ServingSettings:
        """The settings of the page and the API."""
        return self._platform.settings.serving

    def warm(self) -> None:
        """Load the model of every published space in all its roles, so that no request waits for one.

        Raises:
            PlatformError: if Milvus does not answer, or a model is not there.
        """
        for space in self._searcher.spaces():
            for role in space.roles:
                name, content = golden_contents(role)[0]
                self._searcher.search(Query(role, (content,), name), space.key, limit=1)

    def check_milvus(self) -> None:
        """See that Milvus answers, asking for all requests at once; what came of it within the last second is believed.

        Raises:
            MilvusError: if it does not.
        """
        with self._asking:
            if time.monotonic() - self._answered < _SECONDS_BELIEVED:
                return
            missed, reason = self._missed
            if time.monotonic() - missed < _SECONDS_BELIEVED:
                raise MilvusError(reason)
            try:
                self._ask_milvus()
            except MilvusError:
                self._open_anew()

    def spaces(self) -> list[SpaceAnswer]:
        """The published spaces with their sources, a few seconds old.

        They are read by one at a time, and beside the requests wherever somebody asks at least
        every minute: the more sources there are, the longer it takes.

        Raises:
            MilvusError: if Milvus does not answer.
        """
        self.check_milvus()
        read, known = self._spaces
        age = time.monotonic() - read
        if not known or age > _MOST_SECONDS_OF_SPACES:
            with self._listing:
                # Who waited for the list of another takes that.
                if self._spaces[0] == read:
                    self._list_spaces()
            return self._spaces[1]
        if age > _SECONDS_OF_SPACES and self._listing.acquire(blocking=False):
            threading.Thread(target=self._list_spaces_beside, name="list of spaces", daemon=True).start()
        return known

    def search(
        self, query: Query, spaces: Sequence[str], filter: Filter, limit: int, words: str = "", hybrid: bool = False
    ) -> SearchAnswer:
        """The nearest rows of the named spaces, or of all that can answer and have one of the sources.

        A space that cannot take the query says so, and the others answer. `words` are those that
        somebody typed, which a passage then marks.

        Raises:
            RefusedError: if no space can answer, or too many searches are under way.
            PlatformError: if none of them could take the query.
        """
        self.check_limit(limit)
        chosen = self._chosen(query, spaces, filter.sources)
        answers: list[SpaceHits] = []
        errors: list[PlatformError] = []
        with self._in_line(self._places):
            for space in chosen:
                known = tuple(source for source in filter.sources if among(space.sources, [source]))
                own = replace(filter, sources=known)
                started, hits, said = time.perf_counter(), [], None
                try:
                    hits = self._searcher.search(
                        query, space.key, filter=own, limit=limit, hybrid=hybrid and space.hybrid
                    )
                except MilvusError:
                    raise
                except PlatformError as error:
                    errors.append(error)
                    said = str(error)
                answers.append(self._space_hits(space.key, hits, started, words, said))
        if errors and len(errors) == len(chosen):
            raise errors[0]
        return SearchAnswer(query=query.name, spaces=answers)

    def more_like(self, space: str, row_id: str, limit: int) -> SearchAnswer:
        """The rows nearest to one that a space holds.

        Raises:
            RefusedError: 404 if the space is not published or does not hold the row.
        """
        self.check_limit(limit)
        self.check_milvus()
        started = time.perf_counter()
        try:
            hits = self._searcher.more_like(row_id, space, limit=limit)
        except MilvusError:
            raise
        except PlatformError as error:
            raise RefusedError(404, str(error)) from None
        return SearchAnswer(query=row_id, spaces=[self._space_hits(space, hits, started, "", None)])

    def words_query(self, words: str) -> Query:
        """A query in words.

        Raises:
            PlatformError: if there are none.
        """
        return text_query(words)

    def file_query(self, file: BinaryIO, name: str) -> Query:
        """A query by a file that somebody sent, which is decoded within `serving.upload_seconds`.

        Raises:
            PlatformError: if it holds no known media, or cannot be decoded in that time.
            RefusedError: if too many files are being decoded.
        """
        shown = re.split(r"[/\\]", name)[-1][:200] or "the file"
        suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", shown)
        cutting = self._platform.cutting
        seconds = min(self.settings.upload_seconds, cutting.decoding.max_seconds)
        # A parser of documents is a process of its own, with a limit of its own.
        cutting = replace(cutting, decoding=cutting.decoding.model_copy(update={"max_seconds": seconds}))
        with self._in_line(self._upload_places), tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, _QUERY_NAME + (suffix[0].lower() if suffix else ""))
            with open(place, "wb") as copy:
                while piece := file.read(2**20):
                    copy.write(piece)
            try:
                with awaited(seconds):
                    return replace(read_query(place, cutting), name=shown)
            except PlatformError as error:
                raise PlatformError(str(error).replace(place, shown)) from None

    def row(self, space: str, row_id: str) -> dict[str, Any]:
        """A row of a published space.

        Raises:
            RefusedError: 404 if the space is not published or does not hold it.
        """
        self.check_milvus()
        platform = self._platform
        if space not in [known.key for known in platform.spaces]:
            raise RefusedError(404, f"there is no space {space}; /api/spaces names those there are")
        collection = alias_target(platform.milvus, alias_name(space))
        rows = get_rows(platform.milvus, collection, [row_id]) if collection else []
        if not rows:
            raise RefusedError(404, f"{space} holds no row {row_id}")
        return rows[0]

    def traces(self, row_id: str) -> list[RowTrace]:
        """A row in every published space that holds it, with all that it came from.

        Raises:
            RefusedError: 404 if none does.
        """
        self.check_milvus()
        try:
            return trace_row(self._platform, row_id)
        except MilvusError:
            raise
        except PlatformError as error:
            raise RefusedError(404, str(error)) from None

    def media(self, space: str, row_id: str) -> tuple[OpenFile, str]:
        """The file that a row lies in, open, and its path in its source; from the media root alone.

        Raises:
            RefusedError: if there is no such row, or its file is gone or outside.
        """
        row = self.row(space, row_id)
        return self._opened(row), row["path"]

    def preview(self, space: str, row_id: str) -> tuple[bytes, str]:
        """A small picture of what a row stands for, and its media type.

        Raises:
            RefusedError: if there is none.
        """
        row = self.row(space, row_id)
        modality = space.partition("/")[0]
        limits = self._platform.settings.decoding
        with self._opened(row) as opened, self._in_line(self._preview_places):
            try:
                match modality:
                    case "image" | "image_text":
                        return image_preview(opened.uri, limits), "image/jpeg"
                    case "video":
                        return video_preview(opened.uri, (row["start"] + row["end"]) / 2, limits), "image/jpeg"
                    case "audio":
                        return sound_preview(opened.uri, row["start"], row["end"], limits), "image/png"
            except RejectedError as error:
                raise RefusedError(404, f"{row['source']}/{row['path']} {error}") from None
        raise RefusedError(404, f"rows of {space} have no picture; read /passage/{space}/{row_id}")

    def passage(self, space: str, row_id: str) -> PassageAnswer:
        """A passage with what stands around it in its document.

        Raises:
            RefusedError: if the row is no passage, or its document cannot be read any more.
        """
        row = self.row(space, row_id)
        modality = space.partition("/")[0]
        if modality != "text":
            raise RefusedError(404, f"rows of {space} are no passages of a document")
        limits = self._platform.settings.decoding
        with self._opened(row) as opened, self._in_line(self._preview_places):
            payload = opened.file.read(limits.max_document_megabytes * 2**20 + 1)
            try:
                document = document_of(payload, row["path"], limits).text
            except RejectedError as error:
                raise RefusedError(404, f"{row['source']}/{row['path']} {error}") from None
        found = in_document(document, row["text"], int(row["start"]), int(row["end"]))
        return PassageAnswer(
            source=row["source"],
            path=row["path"],
            where=place_in_file(modality, row["start"], row["end"]),
            before=found.before if found else "",
            text=row["text"],
            after=found.after if found else "",
            changed=found is None,
        )

    def check_limit(self, limit: int) -> None:
        """Refuse a number of hits that is none, or more than `serving.most_hits`."""
        if not 1 <= limit <= self.settings.most_hits:
            raise RefusedError(422, f"limit is {limit}; ask for 1 to {self.settings.most_hits} hits")

    def _chosen(self, query: Query, spaces: Sequence[str], sources: Sequence[str]) -> list[SpaceAnswer]:
        published = self.spaces()
        names = {space.key: space for space in published}
        for key in spaces:
            if key not in names:
                there = f"choose from {', '.join(names)}" if names else "none is: run `embedding-platform run` first"
                raise RefusedError(404, f"no space {key!r} is published; {there}")
        able = [space for space in published if query.role in space.takes and (not spaces or space.key in spaces)]
        if not able:
            those = ", ".join(space.key for space in published if query.role in space.takes) or "none"
            asked = " and ".join(spaces) or "no space"
            raise RefusedError(422, f"{asked} cannot be asked with {query.role}; can be: {those}")
        known = {source for space in able for source in space.sources}
        for source in sources:
            if not among(known, [source]):
                raise RefusedError(404, f"no source {source!r} there; choose from {', '.join(sorted(known))}"[:1000])
        return [space for space in able if not sources or among(space.sources, sources)]

    def _list_spaces_beside(self) -> None:
        # The lock was taken for this thread.
        try:
            self._list_spaces()
        except PlatformError as error:
            _log.warning("the list of spaces was not read anew: %s", error)
        finally:
            self._listing.release()

    def _list_spaces(self) -> None:
        spaces = self._searcher.spaces()
        # Spaces of one modality have the same sources.
        one_of = {space.modality: space.key for space in spaces}
        sources = {modality: self._searcher.sources(key) for modality, key in one_of.items()}
        self._spaces = (time.monotonic(), [space_answer(space, sources[space.modality]) for space in spaces])

    def _space_hits(self, space: str, hits: Sequence[Hit], started: float, words: str, said: str | None) -> SpaceHits:
        return SpaceHits(
            space=space,
            modality=space.partition("/")[0],
            hits=[hit_answer(hit, self.settings.dagster_url, words) for hit in hits],
            milliseconds=round((time.perf_counter() - started) * 1000, 1),
            error=said,
        )

    def _opened(self, row: dict[str, Any]) -> OpenFile:
        # By source and path: the uri is as old as the row, and whoever writes to Milvus might write any.
        return open_inside(self._platform.settings.media_url, folder_of(row["source"]), row["path"])

    def _open_anew(self) -> None:
        """Look for Milvus where it may be by now, not as patiently as at the start, since somebody waits."""
        opened = self._open_platform()
        milvus = opened.settings.milvus.model_copy(update={"timeout_seconds": SECONDS_TO_ANSWER})
        self._platform = replace(opened, settings=opened.settings.model_copy(update={"milvus": milvus}))
        self._searcher = Searcher(self._platform)
        try:
            self._ask_milvus()
        except MilvusError as error:
            self._missed = (time.monotonic(), str(error))
            raise

    def _ask_milvus(self) -> None:
        with explaining("say that it is there"):
            self._platform.milvus.list_collections(timeout=SECONDS_TO_ANSWER)
        self._answered = time.monotonic()

    @contextmanager
    def _in_line(self, places: threading.BoundedSemaphore) -> Iterator[None]:
        if not places.acquire(timeout=SECONDS_IN_LINE):
            raise RefusedError(503, "too many searches at once; try again in a moment")
        try:
            yield
        finally:
            places.release()
