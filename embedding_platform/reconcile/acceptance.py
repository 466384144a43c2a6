"""What a person accepts of a source's vectors after its checks warned of them."""

from embedding_platform.errors import PlatformError
from embedding_platform.reconcile.distribution import accept_waiting_distribution
from embedding_platform.reconcile.duplicates import accept_waiting_duplicates


def accept_waiting(store: str, space_key: str, fingerprint: str, source: str) -> str:
    """Accept all changes that the checks `distribution` and `duplicates` warned of; returns when the first was met.

    Raises:
        PlatformError: if no change waits to be accepted, or a history cannot be read or written.
    """
    place = (store, space_key, fingerprint, source)
    times = [at for at in (accept_waiting_distribution(*place), accept_waiting_duplicates(*place)) if at is not None]
    if not times:
        raise PlatformError(
            f"no change of {space_key}, source {source}, waits to be accepted; "
            "see the checks distribution and duplicates in the web UI"
        )
    return min(times)
