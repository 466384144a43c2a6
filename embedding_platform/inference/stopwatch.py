"""Where the time of work on many threads goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stopwatch:
    """Seconds by kind of work, summed over all threads: two that work side by side for a second make two."""

    _seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by kind of work so far."""
        with self._lock:
            return dict(self._seconds)

    @contextmanager
    def running(self, work: str) -> Iterator[None]:
        """Count the time of the block as `work`, however the block ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            with self._lock:
                self._seconds[work] = self._seconds.get(work, 0.0) + elapsed
