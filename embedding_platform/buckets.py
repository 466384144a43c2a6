"""Buckets: a folder of more files than one run should hold, shared out to several sources by a hash of each path.

A bucket is a source like any other, with runs, a listing, vectors and a Milvus partition of its own. Its name tells
which files it has: `photos~07of16` those of `photos` whose hash leaves 7 when it is divided by 16.
"""

import posixpath
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_NAMED = re.compile(r"(.+)~(\d+)of([1-9]\d*)", re.DOTALL)


@dataclass(frozen=True)
class Bucket:
    """The share `number`, counted from 0, of the files of a folder that has `count` of them."""

    folder: str
    number: int
    count: int

    @property
    def name(self) -> str:
        """The name of the source; as text, names come in the order of their numbers."""
        return f"{self.folder}~{self.number:0{len(str(self.count - 1))}}of{self.count}"

    def has(self, path: str) -> bool:
        """Whether a file is in this bucket. An image and the text of the same name beside it are in one."""
        return number_of(path, self.count) == self.number


def bucket_of(source: str) -> Bucket | None:
    """The bucket that a source is; None for a whole folder."""
    named = _NAMED.fullmatch(source)
    if named is None:
        return None
    bucket = Bucket(named[1], int(named[2]), int(named[3]))
    return bucket if bucket.number < bucket.count > 1 and bucket.name == source else None


def folder_of(source: str) -> str:
    """The folder under the media root that holds a source's files."""
    bucket = bucket_of(source)
    return bucket.folder if bucket else source


def count_of(source: str) -> int:
    """How many sources share a folder's files where this is one of them."""
    bucket = bucket_of(source)
    return bucket.count if bucket else 1


def own_paths(source: str) -> Callable[[str], bool]:
    """Whether a path in the source's folder is that of a file of the source; of a whole folder each is."""
    bucket = bucket_of(source)
    return bucket.has if bucket else lambda path: True


def counts_with(source: str, counts: Mapping[str, int]) -> dict[str, int]:
    """The counts as they are, but for the source's folder: that has as many as let the source not be superseded."""
    return {**counts, folder_of(source): count_of(source)}


def sources_of(folder: str, counts: Mapping[str, int]) -> list[str]:
    """The sources that share a folder's files: the folder itself, or as many buckets as `counts` says."""
    count = counts.get(folder, 1)
    return [folder] if count == 1 else [Bucket(folder, number, count).name for number in range(count)]


def is_superseded(source: str, counts: Mapping[str, int]) -> bool:
    """Whether a source's files are meant to be in other sources, since its folder is shared out otherwise now."""
    return count_of(source) != counts.get(folder_of(source), 1)


def among(sources: Iterable[str], asked: Iterable[str]) -> list[str]:
    """Those of the sources that are asked for, by their own name or by that of their folder."""
    wanted = set(asked)
    return [source for source in sources if source in wanted or folder_of(source) in wanted]


def number_of(path: str, count: int) -> int:
    """The bucket that a file is in where its folder has `count`: the CRC-32 of its path without extension, modulo."""
    stem, _ = posixpath.splitext(path)
    return zlib.crc32(stem.encode("utf-8", "surrogatepass")) % count
