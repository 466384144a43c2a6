"""One platform: what its settings name, opened when first asked for.

The command line and the Dagster resource are both this. A process has one Milvus client and
loads a model once.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from embedding_platform import layout, records, storage
from embedding_platform.buckets import among, count_of, counts_with, folder_of, is_superseded, sources_of
from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.inference.golden import GoldenReport, check_golden
from embedding_platform.inference.pins import hold
from embedding_platform.inference.precision import PrecisionRecord
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.listing import entries_table, newest_change, shares
from embedding_platform.milvus.connection import connect
from embedding_platform.models import loading
from embedding_platform.models.encoder import Encoder, Precision
from embedding_platform.models.openai import Endpoint
from embedding_platform.reconcile.collection import holds_all, holds_source
from embedding_platform.reconcile.files import (
    FilesReport,
    classify_source,
    files_increment,
    has_settled,
    is_listed,
    items_table,
    listed_sources,
    listing_ages,
    once_listed,
    present_sources,
    reconcile_files,
    refuse_emptied,
)
from embedding_platform.reconcile.pending import Pending, pending_of_source, pending_publication
from embedding_platform.reconcile.placed import unplaced
from embedding_platform.reconcile.publication import PublicationReport, publish
from embedding_platform.reconcile.queries import held_out_queries
from embedding_platform.reconcile.rejects import Rejected, rejected_of_source
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.target import Target, target_of
from embedding_platform.records import digest
from embedding_platform.settings import ListingSettings, Settings
from embedding_platform.sights import SHARE_OF_INTERVAL, Shared, Sight, Sights
from embedding_platform.spaces import Space

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Platform:
    """Settings, what they name, and who watches long work.

    `watch` hears (asset, source, done, total) as stages go on.
    """

    settings: Settings
    watch: Callable[[str, str, int, int], None] = lambda asset, source, done, total: None
    _root: Shared[list[str]] = field(default_factory=Shared, init=False, repr=False, compare=False)
    _folders: dict[tuple[str, int], Shared[Mapping[str, Sights | PlatformError]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def store(self) -> str:
        """The store root."""
        return self.settings.store_url

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces to keep, in the order of the catalogue."""
        return self.settings.active_spaces

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that some space embeds, in the order of the catalogue."""
        return tuple(dict.fromkeys(space.modality for space in self.spaces))

    def space(self, key: str) -> Space:
        """The space called `key`, for instance "image/clip".

        Raises:
            PlatformError: naming the spaces there are.
        """
        for space in self.spaces:
            if space.key == key:
                return space
        raise PlatformError(f"no space {key!r}; choose from {', '.join(space.key for space in self.spaces)}")

    @cached_property
    def cutting(self) -> Cutting:
        """How files are cut; text by the tokens of the text model that reads least."""
        limits = self.settings.cutting
        # A model behind a server reads more than any other, and shows no tokenizer.
        texts = [
            space.model for space in self.spaces if space.modality == "text" and not loading.is_remote(space.model)
        ]
        shortest = min(texts, key=lambda model: model.max_tokens or 0, default=None)
        return Cutting(
            tokenizer_file=loading.tokenizer_file(shortest) if shortest else None,
            max_tokens=(shortest.max_tokens if shortest else None) or 256,
            overlap_tokens=limits.overlap_tokens,
            audio_window_seconds=limits.audio_window_seconds,
            clip_seconds=limits.clip_seconds,
            decoding=self.settings.decoding,
        )

    @cached_property
    def milvus(self) -> "MilvusClient":
        """A client of the Milvus that the settings name."""
        milvus = self.settings.milvus
        return connect(self.settings.milvus_uri, milvus.token.get_secret_value(), milvus.timeout_seconds)

    def check(self) -> None:
        """Look at all that Dagster needs to load the asset graph.

        Raises:
            PlatformError: naming what is not there, and the mend.
        """
        _ = self.cutting
        for space in self.spaces:
            self.fingerprint(space)

    def encoder(self, space: Space, precision: Precision | None = None, for_queries: bool = False) -> Encoder:
        """The space's model in the settings' precision or another, loaded once per process.

        For queries it runs on torch, unless the settings name a runtime: the vectors are the
        same, and nothing has to be converted before the first answer.

        Raises:
            PlatformError: if it cannot be loaded, is no longer the model that made the first
                vectors under its fingerprint, or gives other vectors than then.
        """
        settings = self.settings
        openai = settings.openai
        endpoint = Endpoint(
            url=openai.url,
            key=openai.key.get_secret_value(),
            timeout_seconds=openai.timeout_seconds,
            requests=openai.requests,
            items_per_request=openai.items_per_request,
        )
        runtime = "torch" if for_queries and settings.runtime == "auto" else settings.runtime
        execution = Execution(settings.device, runtime, precision or settings.precision, settings.cache_folder)
        record = PrecisionRecord(layout.precision_folder(self.store))
        encoder = load_encoder(space.model, execution, record, endpoint)
        fingerprint = self.fingerprint(space, precision)
        hold(space.model, layout.pin_url(self.store, fingerprint))
        # A model in this process does not change between a document and a query; one behind a server may.
        if not for_queries or loading.is_remote(space.model):
            check_golden(encoder, space, self.store, fingerprint)
        return encoder

    def golden(self, space: Space) -> GoldenReport:
        """Load the model and compare its golden vectors, in the roles too that the space is only searched by.

        Raises:
            PlatformError: if it gives other vectors than when it made its first.
        """
        return check_golden(self.encoder(space), space, self.store, self.fingerprint(space), space.model.roles)

    def compared(self, space: Space) -> GoldenReport:
        """What loading the space's model compared; nothing is done again where this process has loaded it.

        Raises:
            PlatformError: as `encoder` does.
        """
        return check_golden(self.encoder(space), space, self.store, self.fingerprint(space))

    def _golden_once(self, space: Space) -> float | None:
        """The worst golden cosine; None, and no model, where the fingerprint has passed here before.

        A Milvus that lost everything is filled again, and published, from the stored vectors alone.
        """
        passed = layout.golden_passed_url(self.store, self.fingerprint(space))
        if storage.read_bytes(passed) is not None:
            return None
        worst = self.golden(space).worst_cosine
        storage.write_bytes(passed, f"{worst}".encode())
        return worst

    def held_out(self, space: Space) -> np.ndarray | None:
        """The space's held-out queries, float32 [q, d]; None where the settings name none.

        The model is loaded only for queries that have no stored vector yet.
        """
        return held_out_queries(
            self.store,
            space,
            self.fingerprint(space),
            self.settings.queries_url(space.key),
            self.cutting,
            lambda: self.encoder(space, for_queries=True),
        )

    def fingerprint(self, space: Space, precision: Precision | None = None) -> str:
        """The hash of all that decides the values of the space's vectors."""
        return loading.fingerprint(space, precision or self.settings.precision)

    def target(self, space: Space, sources: int | None = None) -> Target:
        """The collection that the space has, or is to have; `sources` is their number, where it is known already."""
        count = len(listed_sources(self.store, space.modality)) if sources is None else sources
        most_named = self.settings.milvus.named_partitions
        words = self.settings.finds_words(space)
        return target_of(lambda: self.milvus, space, self.fingerprint(space), count, most_named, words)

    def _targets(self, modality: str, sources: int) -> list[Target]:
        """The collections of a modality's spaces, whose number of sources is known."""
        return [self.target(space, sources) for space in self.spaces if space.modality == modality]

    def unplaced(self, modality: str, of: Collection[str] | None = None) -> set[str]:
        """Listed sources, of all or of some, that a space's present collection does not hold as they are now.

        A run of them is due, whatever came between: a new listing, a killed run, a migration.
        """
        listed = listed_sources(self.store, modality)
        targets = self._targets(modality, len(listed))
        return {
            source
            for source in listed
            for target in targets
            if (of is None or source in of) and not holds_all(target, self._live_of(target, source))
        }

    def live(self, space: Space, source: str) -> LiveRows:
        """The rows that a source should have in the space's collection."""
        return LiveRows(self.store, space, source, self.fingerprint(space), self.cutting)

    def _live_of(self, target: Target, source: str) -> LiveRows:
        """The same, of a target, whose fingerprint need not be computed for each of many sources."""
        return LiveRows(self.store, target.space, source, target.fingerprint, self.cutting)

    def published(self, space: Space, unlisted: Callable[[], Sequence[str]]) -> PublicationReport:
        """Let readers have the space's collection if every source is in it and sound; see `publish`.

        `unlisted` tells of sources that are not listed yet, or not any more and not emptied yet.
        """

        def listed() -> list[str]:
            return listed_sources(self.store, space.modality)

        target = self.target(space)
        return publish(
            self.milvus,
            target,
            listed(),
            partial(self._live_of, target),
            self.settings.quality,
            known=lambda: [*unlisted(), *listed(), *self._former_sources_kept(target)],
            golden=lambda: self._golden_once(space),
            held_out=cache(lambda: self.held_out(space)),
        )

    def _former_sources_kept(self, target: Target) -> list[str]:
        """Former sources of folders that a collection does not hold all successors of, though others may have.

        Their rows are all that it has of the folder where another collection was the target while they were succeeded.
        """
        modality, counts = target.space.modality, self.settings.listing.buckets
        former = [source for source in once_listed(self.store, modality) if is_superseded(source, counts)]
        if not former:
            return []
        sources = listed_sources(self.store, modality)
        behind = set(map(folder_of, unplaced(target, sources, partial(self._live_of, target))))
        return [source for source in former if folder_of(source) in behind]

    def present(self, modality: str) -> list[str]:
        """Names of the sources under the media root; one look serves each modality once, as those of `sight` do.

        Raises:
            PlatformError: as `present_sources` does.
        """
        media_url, guard = self.settings.media_url, self.settings.listing
        return self._root.of(modality, self._seconds_of_look, lambda _: present_sources(self.store, media_url, guard))

    def sight(self, modality: str, source: str) -> Sight:
        """What is to be known of the files of one modality that a source holds.

        A look at a folder serves each modality of each of its sources once, for a part of `sensor_seconds`, and until
        one of the source's listings is replaced. While neither its files nor its listings change, none of them is
        read again: only names, sizes and times are looked at.

        A source that is superseded is looked at in the same way while it awaits successors, and counts as empty
        from then on.

        Raises:
            PlatformError: if it cannot be read, or is large and found empty.
        """
        superseded = is_superseded(source, self.settings.listing.buckets)
        if superseded and not self.awaits_successors(modality, source):
            return Sight("superseded", False, is_listed(self.store, modality, source), time.time())
        return self._seen(modality, source)

    def awaits_successors(self, modality: str, source: str) -> bool:
        """Whether a superseded source has listed a file that its successor does not have in all collections yet.

        So long it goes on as if it were not superseded, lest a search miss the file. What a successor rejected for
        good is no reason to wait.
        """
        counts = self.settings.listing.buckets
        if not is_superseded(source, counts) or not is_listed(self.store, modality, source):
            return False
        own = items_table(self.store, modality, source, ["path"])
        needed = {name: files["path"] for name, files in shares(folder_of(source), own, counts) if files.num_rows}
        if self.unplaced(modality, needed):
            return True
        return not all(has_settled(self.store, modality, name, paths) for name, paths in needed.items())

    def listed(self, modality: str, source: str) -> FilesReport:
        """List one modality of a source anew, and keep what was found; see `reconcile_files`."""
        settings = self.settings
        return reconcile_files(
            self.store,
            settings.media_url,
            modality,
            source,
            self._guard(modality, source),
            settings.decoding,
            settings.decoding_notes,
        )

    def _guard(self, modality: str, source: str) -> ListingSettings:
        """The settings that a source is listed by: while it awaits successors, those that do not supersede it."""
        guard = self.settings.listing
        if not self.awaits_successors(modality, source):
            return guard
        return guard.model_copy(update={"buckets": counts_with(source, guard.buckets)})

    def _seen(self, modality: str, source: str) -> Sight:
        """What the last look at the source's folder saw, the folder being shared out as the source's name says."""
        place = (folder_of(source), count_of(source))
        # One object, however many ask for a new folder at once.
        shared = self._folders.setdefault(place, Shared())
        seen = shared.of(
            f"{modality} {source}",
            self._seconds_of_look,
            partial(self._look, *place),
            lambda last: _ages(last[source]) == listing_ages(self.store, source),
        )[source]
        if isinstance(seen, PlatformError):
            raise PlatformError(str(seen))
        return seen.of[modality]

    @property
    def _seconds_of_look(self) -> float:
        return SHARE_OF_INTERVAL * self.settings.sensor_seconds

    def _look(
        self, folder: str, count: int, last: Mapping[str, Sights | PlatformError] | None
    ) -> Mapping[str, Sights | PlatformError]:
        """Look at a folder, of which so many sources have the files; or what is wrong with one, if others are sound.

        Of their files only names, sizes and times are looked at where those are as in the `last` look.
        """
        counts = {folder: count}
        # A listing that is replaced meanwhile is a reason to look again.
        looked_at = time.time()
        ages = {source: listing_ages(self.store, source) for source in sources_of(folder, counts)}
        seen: dict[str, Sights | PlatformError] = {}
        whole = entries_table(self.settings.media_url, folder)
        for source, own in shares(folder, whole, counts):
            before = (last or {}).get(source)
            try:
                sights = before if isinstance(before, Sights) else None
                seen[source] = self._look_at(source, own, whole, looked_at, ages[source], sights)
            except PlatformError as error:
                if count == 1:
                    raise
                seen[source] = error
        return seen

    def _look_at(
        self, source: str, listed: pa.Table, whole: pa.Table, looked_at: float, ages: str, last: Sights | None
    ) -> Sights:
        files = records.column_digest(listed["path"], listed["size"].cast(pa.string()), listed["modified"])
        if last is not None and (last.ages, last.files) == (ages, files):
            as_before = {modality: replace(sight, looked_at=looked_at) for modality, sight in last.of.items()}
            return replace(last, looked_at=looked_at, of=as_before)
        states = self._classified(source, listed)
        if not states:
            refuse_emptied(self.store, self.settings.media_url, source, self.settings.listing, whole)
        changed_at, other_at = newest_change(listed), None
        if last is not None:
            other_at = last.other_at if last.files == files else last.looked_at
        of = {}
        for modality in self.modalities:
            seen = states.get(modality, {})
            state = digest(*(part for item in sorted(seen.items()) for part in item))[:12]
            differs = not files_increment(self.store, modality, source, seen).is_empty
            of[modality] = Sight(state, bool(seen), differs, looked_at, changed_at, other_at)
        return Sights(ages, files, looked_at, other_at, of)

    def _classified(self, source: str, listed: pa.Table) -> dict[str, dict[str, str]]:
        settings = self.settings
        return classify_source(
            self.store, settings.media_url, source, settings.decoding, settings.decoding_notes, listed
        )

    def is_gone(self, modality: str, source: str, sources: int | None = None) -> bool:
        """Whether nothing of the source is left: no listing, and no partition in Milvus.

        `sources` is the number of listed ones, where it is known already: counting them opens the listings of all.
        """
        if not files_increment(self.store, modality, source, {}).is_empty:
            return False
        count = len(listed_sources(self.store, modality)) if sources is None else sources
        return not any(holds_source(self.milvus, target, source) for target in self._targets(modality, count))

    def sources(self, only: Sequence[str] = ()) -> dict[str, list[str]]:
        """The sources of each modality, all or `only` some: those on disk that hold it and those listed last.

        Raises:
            PlatformError: if the media root, or a folder of a source, cannot be read.
        """
        found: dict[str, set[str]] = {modality: set() for modality in self.modalities}
        media_url, guard = self.settings.media_url, self.settings.listing
        present = present_sources(self.store, media_url, guard)
        asked = set(among(present, only or present))
        for folder in sorted(set(map(folder_of, asked))):
            for source, listed in shares(folder, entries_table(media_url, folder), guard.buckets):
                if source not in asked:
                    continue
                for modality, entries in self._classified(source, listed).items():
                    if entries and modality in found:
                        found[modality].add(source)
        for modality, sources in found.items():
            listed_last = listed_sources(self.store, modality)
            sources.update(among(listed_last, only or listed_last))
        return {modality: sorted(sources) for modality, sources in found.items()}

    def rejects(self, modalities: Sequence[str] = (), sources: Sequence[str] = ()) -> list[Rejected]:
        """What the last runs rejected, in all stages, of all or some modalities and sources.

        Raises:
            PlatformError: if a modality or source that was asked for is not there.
        """
        listed = {modality: listed_sources(self.store, modality) for modality in self.modalities}
        known = sorted({source for names in listed.values() for source in names})
        for asked, there in ((modalities, list(listed)), (sources, known)):
            refuse_unknown(asked, there, "nothing: run first")
        rejects: list[Rejected] = []
        for modality in modalities or self.modalities:
            spaces = [(space, self.fingerprint(space)) for space in self.spaces if space.modality == modality]
            for source in among(listed[modality], sources or listed[modality]):
                rejects += rejected_of_source(self.store, modality, source, spaces, self.cutting)
        return rejects

    def pending(self) -> Iterator[Pending]:
        """The increment of each asset and source against what its upstream holds now; nothing is done."""
        for modality, sources in self.sources().items():
            targets = self._targets(modality, len(listed_sources(self.store, modality)))
            for source in sources:
                listed = entries_table(self.settings.media_url, source, self._guard(modality, source).buckets)
                seen = self._classified(source, listed).get(modality, {})
                yield from pending_of_source(self.milvus, self.store, modality, source, seen, targets, self.cutting)
            yield from (pending_publication(self.milvus, target) for target in targets)


def _ages(seen: Sights | PlatformError) -> str | None:
    return seen.ages if isinstance(seen, Sights) else None


def refuse_unknown(asked: Sequence[str], there: Sequence[str], nothing: str) -> None:
    """Refuse the first name that is not there, and say what is; `nothing` says what to do where nothing is.

    Raises:
        PlatformError: if a name is not there.
    """
    for name in asked:
        if not among(there, [name]):
            raise PlatformError(f"{name!r} is not there; choose from {', '.join(there) or nothing}")
