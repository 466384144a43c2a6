"""Named places at which a run may be made to end, by wrapping functions from outside.

The same table serves crashes inside a process, which raise `Crash` through whatever is
running, and real ones, where the process kills itself.
"""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest


class Crash(BaseException):
    """The end of a run in a place where no code expects it; nothing but a test catches it."""


@dataclass(frozen=True)
class CrashPoint:
    """A boundary: before or after a call of `target` ("module:attribute"), or in the middle of one.

    `concerns` decides by the call's arguments whether it counts. `half` does the first half of
    a call, for points in the middle; without it, the call runs on for some milliseconds. A point
    that is `violent` ends a call that runs elsewhere meanwhile, which only a kill can do.
    """

    name: str
    target: str
    when: Literal["before", "after", "middle"]
    concerns: Callable[..., bool] = lambda *args, **kwargs: True
    half: Callable[..., None] | None = None
    violent: bool = False


def compacting_from(fewest: int) -> Callable[..., int]:
    """`storage.compact_shards` as it joins shards once there are so few of them, whatever it is told."""
    from embedding_platform import storage

    compact = storage.compact_shards

    def compact_early(folder: str, schema: Any, keep: Any, rows_per_shard: int, usual: int = fewest) -> int:
        return compact(folder, schema, keep, rows_per_shard, fewest)

    return compact_early


def kill_this_process() -> None:
    """What a real crash does: no handler runs, no buffer is written."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """What a crash inside a process does."""
    raise Crash


@contextmanager
def armed(points: Sequence[CrashPoint], passage: int, strike: Callable[[], None] = crash) -> Iterator[list[str]]:
    """Strike at the `passage`-th time, counted from 1, that the run comes to any of the points; once.

    Threads of the run share the count. Yields a list that gets the name of the point that struck.
    """
    struck: list[str] = []
    counting = threading.Lock()
    passed = 0

    def strikes(point: CrashPoint) -> bool:
        nonlocal passed
        with counting:
            passed += 1
            if passed == passage:
                struck.append(point.name)
            return passed == passage

    with pytest.MonkeyPatch.context() as patch:
        for point in points:
            owner, name = _place_of(point.target)
            patch.setattr(owner, name, _wrapped(getattr(owner, name), point, strikes, strike))
        yield struck


def _wrapped(
    original: Callable[..., Any], point: CrashPoint, strikes: Callable[[CrashPoint], bool], strike: Callable[[], None]
) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not point.concerns(*args, **kwargs):
            return original(*args, **kwargs)
        if point.when == "after":
            answer = original(*args, **kwargs)
            if strikes(point):
                strike()
            return answer
        if strikes(point):
            if point.half is not None:
                point.half(*args, **kwargs)
            if point.when == "middle" and point.half is None:
                threading.Thread(target=_strike_soon, args=(strike,), daemon=True).start()
            else:
                strike()
        return original(*args, **kwargs)

    return wrapped


def _place_of(target: str) -> tuple[Any, str]:
    """What holds a target, and the target's name there."""
    module, _, attribute = target.partition(":")
    owner: Any = importlib.import_module(module)
    *holders, name = attribute.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    return owner, name


def _strike_soon(strike: Callable[[], None]) -> None:
    time.sleep(0.003)
    strike()


def _under(folder: str) -> Callable[..., bool]:
    """Calls whose first argument is a URL below a folder of the store's root."""

    def concerns(url: str, *args: Any, **kwargs: Any) -> bool:
        return f"/store/{folder}/" in url

    return concerns


def _leave_half_a_file(url: str, payload: bytes) -> None:
    """What a killed write leaves: half of the bytes, beside the target."""
    folder = os.path.dirname(url)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".writing-0123456789abcdef"), "wb") as file:
        file.write(payload[: len(payload) // 2])


def _leave_half_an_index(segment: Any, spec: Any, folder: str) -> None:
    """What Milvus Lite leaves when it is killed while it writes the index of one of its segments."""
    from milvus_lite.index.factory import build_index_from_spec

    vectors, _ = segment.vector_data(spec.field_name)
    path = segment.index_file_path(folder, spec.index_type, spec.field_name)
    os.makedirs(folder, exist_ok=True)
    build_index_from_spec(spec, vectors).save(path)
    os.truncate(path, os.path.getsize(path) // 2)


def _has_no_index_file(segment: Any, spec: Any, folder: str) -> bool:
    path = segment.index_file_path(folder, spec.index_type, spec.field_name)
    return segment.num_rows > 0 and not os.path.exists(path)


def _remove_one(folder: str, names: Sequence[str]) -> None:
    from embedding_platform import storage

    first, *_ = list(names)
    os.unlink(storage.join(folder, first))


def _has_names(folder: str, names: Sequence[str]) -> bool:
    return len(list(names)) > 0


def _write(name: str, folder: str) -> CrashPoint:
    return CrashPoint(name, "embedding_platform.storage:write_bytes", "middle", _under(folder), half=_leave_half_a_file)


def _around(what: str, target: str) -> tuple[CrashPoint, CrashPoint]:
    return CrashPoint(f"before {what}", target, "before"), CrashPoint(f"after {what}", target, "after")


_STAGES = "embedding_platform.defs.assets:reconcile_"
_SHARD = "embedding_platform.storage:append_shard"
_CLIENT = "pymilvus:MilvusClient."
_INDEXED = "milvus_lite.storage.segment:Segment.build_or_load_index"

POINTS: tuple[CrashPoint, ...] = (
    CrashPoint("after hashing a file", "embedding_platform.media.items:_examined", "after"),
    _write("mid write of what was examined", "examined"),
    _write("mid listing write", "files"),
    CrashPoint("after the listing", "embedding_platform.platform:reconcile_files", "after"),
    CrashPoint("after decode", "embedding_platform.reconcile.segments:_cut_one", "after"),
    _write("mid segment shard write", "segments"),
    CrashPoint("after a segment shard", _SHARD, "after", _under("segments")),
    CrashPoint("after segments", f"{_STAGES}segments", "after"),
    CrashPoint("after model", "embedding_platform.reconcile.embeddings:_judge", "before"),
    _write("mid vector shard write", "vectors"),
    CrashPoint("after a vector shard", _SHARD, "after", _under("vectors")),
    CrashPoint("between store and Milvus", f"{_STAGES}embeddings", "after"),
    _write("mid write of what is intended", "collections"),
    CrashPoint("before what is verified", "embedding_platform.reconcile.drift:WriteAhead.verify", "before"),
    *_around("note of the index", f"{_CLIENT}alter_collection_properties"),
    *_around("create_collection", f"{_CLIENT}create_collection"),
    *_around("create_partition", f"{_CLIENT}create_partition"),
    *_around("upsert", f"{_CLIENT}upsert"),
    *_around("delete", f"{_CLIENT}delete"),
    *_around("drop_partition", f"{_CLIENT}drop_partition"),
    *_around("drop_index", f"{_CLIENT}drop_index"),
    *_around("create_index", f"{_CLIENT}create_index"),
    CrashPoint("mid index build", f"{_CLIENT}create_index", "middle", violent=True),
    CrashPoint("mid index file", _INDEXED, "middle", _has_no_index_file, half=_leave_half_an_index, violent=True),
    CrashPoint("mid making of a collection", "milvus_lite.db:save_schema", "before", violent=True),
    CrashPoint("mid upsert", f"{_CLIENT}upsert", "middle", violent=True),
    CrashPoint("after the collection", f"{_STAGES}collection", "after"),
    *_around("create_alias", f"{_CLIENT}create_alias"),
    *_around("alter_alias", f"{_CLIENT}alter_alias"),
    CrashPoint("mid alias switch", f"{_CLIENT}alter_alias", "middle", violent=True),
    CrashPoint("during compaction", "embedding_platform.storage:remove_shards", "before", _has_names),
    CrashPoint("between removals", "embedding_platform.storage:remove_shards", "middle", _has_names, half=_remove_one),
    CrashPoint("before older segments go", "embedding_platform.storage:remove_sibling_folders", "before", _has_names),
)
"""Every boundary. A passage is one call that concerns the point; a run may come by none or many."""

BY_NAME = {point.name: point for point in POINTS}

IN_PROCESS = tuple(point for point in POINTS if not point.violent)
"""Those that an exception can imitate."""
