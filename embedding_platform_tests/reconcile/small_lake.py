"""A small lake of real media, and the stages of one source run over it."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from embedding_platform.media.cutting import Cutting
from embedding_platform.milvus.schema import Layout
from embedding_platform.milvus.sync import read_rows
from embedding_platform.models.encoder import Encoder
from embedding_platform.reconcile.collection import CollectionReport, reconcile_collection
from embedding_platform.reconcile.embeddings import EmbeddingsReport, reconcile_embeddings
from embedding_platform.reconcile.files import FilesReport, reconcile_files
from embedding_platform.reconcile.publication import PublicationReport, publish
from embedding_platform.reconcile.rows import LiveRows
from embedding_platform.reconcile.segments import SegmentsReport, reconcile_segments
from embedding_platform.reconcile.target import Target
from embedding_platform.records import segment_id
from embedding_platform.settings import BatchSettings, MilvusSettings, QualitySettings
from embedding_platform.spaces import MODALITIES, Index, Model, Space
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder
from embedding_platform_tests.media.made import tone, write_sound

FINGERPRINT = "f" * 64
CUTTING = Cutting(tokenizer_file=None, max_tokens=16, overlap_tokens=0)
FLAT = Index("FLAT", {}, {})
WORDS = ("amber", "birch", "cedar", "delta", "ember", "frost", "grove", "heath", "inlet", "juniper")


def space_of(modality: str, **changes: object) -> Space:
    model = Model("small", "small", DIMENSION, MODALITIES[modality].roles, "none", "drawn")
    return dataclasses.replace(Space(modality, "small", model, index=FLAT), **changes)


def write_text(path: Path, seed: int, paragraphs: int = 1) -> Path:
    """Paragraphs that fill one passage each, different for each seed."""
    generator = np.random.default_rng(seed)
    texts = [f"{seed} {number} " + " ".join(generator.choice(WORDS, 8)) for number in range(paragraphs)]
    return _write(path, "\n\n".join(texts).encode())


def write_image(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_wav(path: Path, seed: int, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_sound(path, tone(seconds, 16_000, hertz=200.0 + seed), rate=16_000)


WRITERS: dict[str, tuple[str, Callable[[Path, int], Path]]] = {
    "text": ("txt", write_text),
    "image": ("png", write_image),
    "audio": ("wav", write_wav),
}


@dataclass
class Lake:
    """A media root and a store under one folder, and an encoder for them."""

    root: Path
    modality: str = "text"
    cutting: Cutting = CUTTING
    encoder: SmallEncoder = field(default_factory=SmallEncoder)
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(chunk=4, text=64))
    fingerprint: str = FINGERPRINT
    layout: Layout = "named"
    index: Index = FLAT
    loads: int = 0
    media_name: str = "media"
    notes: str | None = None

    @property
    def store(self) -> str:
        return str(self.root / "store")

    @property
    def media(self) -> Path:
        return self.root / self.media_name

    @property
    def space(self) -> Space:
        return dataclasses.replace(space_of(self.modality), index=self.index)

    @property
    def target(self) -> Target:
        return Target(self.space, self.fingerprint, self.layout)

    def live(self, source: str = "one") -> LiveRows:
        return LiveRows(self.store, self.space, source, self.fingerprint, self.cutting)

    def path(self, name: str, source: str = "one") -> Path:
        return self.media / source / f"{name}.{WRITERS[self.modality][0]}"

    def write(self, name: str, seed: int, source: str = "one") -> Path:
        return WRITERS[self.modality][1](self.path(name, source), seed)

    def files(self, source: str = "one") -> FilesReport:
        return reconcile_files(self.store, str(self.media), self.modality, source, notes=self.notes)

    def segments(self, source: str = "one") -> SegmentsReport:
        return reconcile_segments(self.store, self.modality, source, self.cutting, notes=self.notes)

    def embeddings(self, source: str = "one") -> EmbeddingsReport:
        return reconcile_embeddings(
            self.store,
            self.space,
            source,
            self.fingerprint,
            self.cutting,
            self._load,
            self.batch,
            run_id="run",
            notes=self.notes,
        )

    def run(self, source: str = "one") -> tuple[FilesReport, SegmentsReport, EmbeddingsReport]:
        return self.files(source), self.segments(source), self.embeddings(source)

    def stored_files(self) -> dict[str, tuple[int, int]]:
        """Inode and mtime of every file of the store."""
        return {
            os.path.join(folder, name): (status.st_ino, status.st_mtime_ns)
            for folder, _, names in os.walk(self.store)
            for name in names
            for status in [os.stat(os.path.join(folder, name))]
        }

    def _load(self) -> Encoder:
        self.loads += 1
        return self.encoder


def counts(report: FilesReport | SegmentsReport | EmbeddingsReport) -> tuple[int, int, int, int]:
    """New, stale, orphaned and unchanged."""
    found = report.increment.counts()
    return found["new"], found["stale"], found["orphaned"], found["unchanged"]


def _write(path: Path, payload: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path


def collect(client, lake: Lake, source: str = "one", **settings: object) -> CollectionReport:
    """Sync one source into the lake's collection; `settings` are of quality."""
    quality = QualitySettings(**settings)
    return reconcile_collection(client, lake.target, lake.live(source), MilvusSettings(), quality)


def publish_to(client, lake: Lake, *sources: str, **settings: object) -> PublicationReport:
    """Publish the lake's collection over its sources, or over "one"; `settings` are of quality."""
    known = sources or ("one",)
    return publish(client, lake.target, known, lake.live, QualitySettings(**settings), lambda: known)


def ids_in(client, lake: Lake, source: str = "one") -> set[str]:
    """Ids of the rows that Milvus holds of a source."""
    return set(read_rows(client, lake.target.partition(source)).index)


def ids_of_all(client, name: str) -> set[str]:
    """Ids of all rows that readers find under the name of a collection or an alias."""
    return {row["id"] for row in client.query(name, filter='id != ""', output_fields=["id"], limit=1000)}


def id_of(name: str, source: str = "one") -> str:
    """The id of the first segment of a text that `Lake.write` wrote."""
    return segment_id(source, f"{name}.txt", "text", 0)
