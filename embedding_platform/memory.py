"""How much memory this process may still take, and how much of it one holder of work may fill."""

from collections.abc import Iterator
from pathlib import Path

import psutil

SHARE = 64
"""What one holder may fill is the memory available over this. Some five hold work in one run: segments that are cut
ahead, those of a chunk, contents read ahead, vectors of a chunk, rows on their way to Milvus. Each has what it holds
up to four times over while it is handed on, as objects, as a table and as a file, so that a run takes a third."""

LEAST_BYTES = 2**20
"""What a holder may fill however little memory there is: less makes no run smaller, and every one slower."""

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""Where Linux shows control groups, and those of this process: see cgroups(7)."""

_UNIFIED = ("memory.max", "memory.current", "inactive_file")
_LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of limit and use, and the row of memory.stat with what goes first when memory is short, in version 2 and 1."""


def bytes_to_hold(most: int) -> int:
    """How many bytes of work may be held at once: `most`, or less where memory is short."""
    return min(most, max(LEAST_BYTES, available_bytes() // SHARE))


def available_bytes() -> int:
    """Bytes that this process may still take: what the machine has left or what its control groups have, if less.

    A container shows the memory of its host, and ends a process that goes beyond the limit of its own group.
    Files that are cached, and given up before anything fails, do not count as used.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield what is left in each control group of this process, and in those around it, that has a limit."""
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from _left_along(GROUPS, group, *_UNIFIED)
        elif "memory" in controllers.split(","):
            yield from _left_along(GROUPS / "memory", group, *_LEGACY)


def _left_along(root: Path, group: str, limit_file: str, use_file: str, cached: str) -> Iterator[int]:
    # In a container the name may be one of the host, of which nothing but the container's own group is shown, as root.
    names = [name for name in group.split("/") if name not in ("", "..")]
    for depth in range(len(names) + 1):
        folder = root.joinpath(*names[:depth])
        limit, used = _text(folder / limit_file).strip(), _text(folder / use_file).strip()
        if limit.isdecimal() and used.isdecimal():
            statistics = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
            yield int(limit) - int(used) + int(statistics.get(cached, 0))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
