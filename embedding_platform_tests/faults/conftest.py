"""A disk that can be filled, a lake of texts, and a Milvus that is empty before each test."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.reconcile.small_lake import Lake


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, of some megabytes."""

    path: Path

    def fill(self, left: int = 0) -> None:
        """Leave `left` bytes of room."""
        status = os.statvfs(self.path)
        with open(self._filler, "wb") as file:
            file.write(bytes(status.f_bavail * status.f_frsize - left))

    def free(self) -> None:
        """Give the room back."""
        os.unlink(self._filler)

    def remount(self, mode: str) -> None:
        """Let it be "ro" or "rw"."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)

    @property
    def _filler(self) -> Path:
        return self.path / "filler"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mounted for the test; skipped where this process may not mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this process may not mount a disk: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A source of five texts, none of it indexed."""
    lake = Lake(tmp_path)
    for number in range(5):
        lake.write(f"n{number}", number)
    return lake


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    directory = str(tmp_path_factory.mktemp("milvus") / "lite")
    yield connect(directory)
    close_directory(directory)


@pytest.fixture
def client(shared):
    """A client, and an empty Milvus after the test."""
    yield shared
    for name in shared.list_collections(timeout=60):
        for alias in shared.list_aliases(name, timeout=60)["aliases"]:
            shared.drop_alias(alias, timeout=60)
        shared.drop_collection(name, timeout=60)
