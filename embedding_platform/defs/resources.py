"""What runs share, and how a user's mistake shows: one line, no stack trace."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from embedding_platform.errors import PlatformError
from embedding_platform.platform import Platform

SECONDS_BETWEEN_LOG_LINES = 5.0

PlatformResource = dg.ResourceParam[Platform]
"""Annotation of the asset argument that receives the platform."""


@contextmanager
def clear_failures() -> Iterator[None]:
    """Turn a PlatformError into a failure that shows its one line and is not retried."""
    try:
        yield
    except PlatformError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def progress_of(context: dg.AssetExecutionContext, platform: Platform, what: str) -> Callable[[int, int], None]:
    """A callback that logs items done, rate and seconds left, at most every few seconds."""
    started = time.monotonic()
    last = started

    def progress(done: int, total: int) -> None:
        nonlocal last
        platform.watch("/".join(context.asset_key.path), context.partition_key, done, total)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LOG_LINES:
            last = now
            rate = done / (now - started)
            context.log.info(f"{done} of {total} {what}, {rate:.1f} a second, {(total - done) / rate:.0f} s left")

    return progress
