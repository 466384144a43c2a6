"""Which model made a published collection: the one that has to encode its queries."""

from collections.abc import Iterator
from dataclasses import replace

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.schema import Provenance
from embedding_platform.models.encoder import Precision
from embedding_platform.platform import Platform
from embedding_platform.spaces import MODEL_SETS, Space

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


def maker_of(platform: Platform, space: Space, provenance: Provenance) -> tuple[Space, Precision]:
    """Model and precision that made the collection; while a migration is under way those are the former ones.

    Raises:
        PlatformError: if that model is no longer there as it was.
    """
    own = platform.settings.precision
    for candidate in _candidates(space, provenance):
        for precision in (own, *(other for other in PRECISIONS if other != own)):
            try:
                fingerprint = platform.fingerprint(candidate, precision)
            except PlatformError:
                # A model that is not installed here did not make the collection, or cannot answer for it.
                break
            if fingerprint == provenance.fingerprint:
                return candidate, precision
    raise PlatformError(
        f"{space.key} is published with {provenance.model} (fingerprint {provenance.fingerprint[:12]}), which is no "
        "longer there as it was, and which the settings do not name; set that model back, or run "
        "`embedding-platform run` to migrate"
    )


def _candidates(space: Space, provenance: Provenance) -> Iterator[Space]:
    """Spaces that may have made the collection: as set, as in the catalogue, or as the collection says itself."""
    catalogue = [known for spaces in MODEL_SETS.values() for known in spaces if known.key == space.key]
    for known in (space, *catalogue):
        stored = replace(
            known.model,
            location=provenance.model,
            revision=provenance.revision or None,
            dimension=provenance.dimension,
            pooling=provenance.pooling,
        )
        for candidate in (known, replace(known, model=stored, normalised=provenance.normalised)):
            yield replace(candidate, generation=provenance.generation)
