"""A platform without weights, and the driver that runs its stages as the Dagster assets do."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dagster as dg
import numpy as np

from embedding_platform import runs
from embedding_platform.defs import assets, check_specs, checks
from embedding_platform.defs.freshness import Listings
from embedding_platform.defs.partitions import set_name
from embedding_platform.inference.golden import GoldenReport, check_golden
from embedding_platform.media.cutting import Cutting
from embedding_platform.models.encoder import Encoder, Precision
from embedding_platform.platform import Platform
from embedding_platform.records import Content, digest
from embedding_platform.spaces import MODALITIES, Model, Space, usual_index
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder

CHUNK = 2
"""Contents that become durable together; small, so that a lake of some files has several chunks."""

LITTLE_AT_ONCE = {"chunk": CHUNK, "text": 1, "image": 1}
"""Settings under which a batch has one content."""

IN_FLIGHT = 4
"""Contents that the model may have embedded under these beyond the chunk that is being stored, where the stream waits
for one batch: two batches wait, one more is on its way to them, and one is in the hands of who takes them."""

STAGES = ("files", "segments", "embeddings", "collection", "published")


@dataclass(frozen=True)
class Choice:
    """The settings that decide what is published: a model by its seed, an index, a cutting, and where rows lie."""

    seed: int = 0
    index: str = "FLAT"
    overlap: int = 0
    most_named: int = 512


@dataclass(frozen=True)
class SmallPlatform(Platform):
    """A platform over some modalities, one small space each.

    `embedded` counts how often each content was embedded, by space, seed and content; golden
    vectors, which are contents of no file, are not counted.
    """

    client: Any = None
    choice: Choice = Choice()
    run_id: str = "run"
    kept: tuple[str, ...] = ("text", "image", "image_text")
    embedded: Counter[tuple[str, int, str]] = field(default_factory=Counter)

    @property
    def spaces(self) -> tuple[Space, ...]:
        return tuple(self._space(modality) for modality in self.kept)

    @property
    def cutting(self) -> Cutting:  # type: ignore[override]
        return Cutting(tokenizer_file=None, max_tokens=16, overlap_tokens=self.choice.overlap)

    @property
    def milvus(self) -> Any:  # type: ignore[override]
        return self.client

    def fingerprint(self, space: Space, precision: Precision | None = None) -> str:
        return digest(space.key, str(self.choice.seed))

    def encoder(self, space: Space, precision: Precision | None = None, for_queries: bool = False) -> Encoder:
        seed = self.choice.seed

        def spoil(content: Content, vector: np.ndarray) -> np.ndarray:
            self.embedded[space.key, seed, name_of(content)] += 1
            return np.roll(vector, seed)

        return SmallEncoder(spoil=spoil)

    def golden(self, space: Space) -> GoldenReport:
        encoder = SmallEncoder(spoil=lambda content, vector: np.roll(vector, self.choice.seed))
        return check_golden(encoder, space, self.store, self.fingerprint(space), space.model.roles)

    def compared(self, space: Space) -> GoldenReport:
        return GoldenReport(compared=0, worst_cosine=None, written=False, floor=0.0)

    def _space(self, modality: str) -> Space:
        model = Model("small", "small", DIMENSION, MODALITIES[modality].roles, "none", "drawn")
        return dataclasses.replace(Space(modality, "small", model, index=usual_index(self.choice.index, {}, {})))


@dataclass
class Partitions:
    """The Dagster partitions that an instance keeps, and that outlive a crash."""

    names: dict[str, set[str]] = field(default_factory=dict)

    def get_dynamic_partitions(self, partitions: str) -> Sequence[str]:
        return sorted(self.names.get(partitions, ()))

    def add_dynamic_partitions(self, partitions: str, names: Sequence[str]) -> None:
        self.names.setdefault(partitions, set()).update(names)

    def delete_dynamic_partition(self, partitions: str, name: str) -> None:
        self.names.get(partitions, set()).discard(name)


class BlockedError(Exception):
    """A blocking check of a stage failed, so that its job stopped there."""


Witness = Callable[[str, str, str, Any], None]
"""Hears modality, source and stage before a stage, with None, and after it, with its report."""


def nobody(modality: str, source: str, stage: str, report: Any) -> None:
    """A witness that looks away."""


def name_of(content: Content) -> str:
    """A content's name in the count of those embedded."""
    payload = content if isinstance(content, str) else np.asarray(content).tobytes().hex()
    return digest(type(content).__name__, payload)


def run_everything(platform: SmallPlatform, partitions: Partitions, witness: Witness = nobody) -> None:
    """Every modality's job on every source, as `runs.run_sources` does it."""
    found = runs.expected_sources(platform, partitions)  # type: ignore[arg-type]
    for modality in platform.modalities:
        for source in runs.twice_where_needed(platform, modality, found[modality], set(found[modality])):
            run_source(platform, partitions, modality, source, witness)


def run_source(
    platform: SmallPlatform, partitions: Partitions, modality: str, source: str, witness: Witness = nobody
) -> None:
    """One modality's job on one source.

    Raises:
        BlockedError: naming a check that would have stopped the job.
    """
    partitions.add_dynamic_partitions(set_name(modality), [source])
    (space,) = (space for space in platform.spaces if space.modality == modality)
    quality, fingerprint = platform.settings.quality, platform.fingerprint(space)
    for stage in STAGES:
        witness(modality, source, stage, None)
        verdicts: Sequence[dg.AssetCheckResult]
        if stage == "files":
            report: Any = platform.listed(modality, source)
            total = len(report.items) + len(report.rejected)
            verdicts = [checks.of_rejects(report.rejected, total, quality)]
        elif stage == "segments":
            report = assets.reconcile_segments(platform.store, modality, source, platform.cutting)
            verdicts = [checks.of_rejects(report.rejected, report.items, quality, "segments")]
        elif stage == "embeddings":
            report = assets.reconcile_embeddings(
                platform.store,
                space,
                source,
                fingerprint,
                platform.cutting,
                lambda: platform.encoder(space),
                platform.settings.batch,
                run_id=platform.run_id,
            )
            verdicts = assets.judged_embeddings(report, platform, space, source)
        elif stage == "collection":
            live = platform.live(space, source)
            report = assets.reconcile_collection(
                platform.milvus,
                platform.target(space),
                live,
                platform.settings.milvus,
                quality,
                held_out=lambda: platform.held_out(space),
            )
            verdicts = assets.judged_collection(report, platform, live)
        else:
            report = platform.published(space, partial(partitions.get_dynamic_partitions, set_name(modality)))
            verdicts = checks.of_published(report, Listings(0, {}), quality)
        witness(modality, source, stage, report)
        _stop_if_blocked(stage, verdicts)
    if platform.is_gone(modality, source):
        partitions.delete_dynamic_partition(set_name(modality), source)


def _stop_if_blocked(stage: str, verdicts: Sequence[dg.AssetCheckResult]) -> None:
    blocking = {spec.name: spec.blocking for spec in check_specs.specs(dg.AssetKey([stage]), None)}
    for verdict in verdicts:
        error = verdict.severity == dg.AssetCheckSeverity.ERROR
        if error and not verdict.passed and blocking[verdict.check_name or ""]:
            raise BlockedError(f"{stage}: {verdict.check_name}: {verdict.description}")
