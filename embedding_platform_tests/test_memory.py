from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from embedding_platform import memory
from embedding_platform.inference.memory import free_bytes
from embedding_platform.memory import LEAST_BYTES, SHARE, available_bytes, bytes_to_hold

HOST_BYTES = 8 * 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the files of control groups, of a machine that has HOST_BYTES available."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=HOST_BYTES))
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path / "groups"


def limited(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    limit_file, use_file, row = names
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / use_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{row} {cached}\n")


def test_without_control_groups_the_machine_tells(groups: Path) -> None:
    assert available_bytes() == HOST_BYTES


@pytest.mark.parametrize(
    ("membership", "root", "names"),
    [
        ("0::{group}", "", memory._UNIFIED),
        ("2:cpu:/\n1:memory:{group}\n0::/", "memory", memory._LEGACY),
        ("1:cpu,memory:{group}", "memory", memory._LEGACY),
    ],
)
@pytest.mark.parametrize(
    ("group", "folder"),
    [("/pod/own", "pod/own"), ("/pod/own", "pod"), ("/", ""), ("/of/the/host", ""), ("/../own", "own")],
)
def test_what_a_control_group_or_one_around_it_leaves_is_the_bound(
    groups: Path, membership: str, root: str, names: tuple[str, str, str], group: str, folder: str
) -> None:
    memory.MEMBERSHIP.write_text(membership.format(group=group) + "\n")
    limited(groups / root / folder, names, str(2**30), used=2**29, cached=2**20)
    assert available_bytes() == free_bytes("cpu") == 2**29 + 2**20


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [("max", 2**29, HOST_BYTES), (str(2**63 - 4096), 2**29, HOST_BYTES), (str(2**20), 2**21, 0)],
)
def test_a_group_without_a_limit_is_no_bound_and_a_full_one_leaves_nothing(
    groups: Path, limit: str, used: int, available: int
) -> None:
    memory.MEMBERSHIP.write_text("0::/own\n")
    limited(groups / "own", memory._UNIFIED, limit, used, cached=0)
    assert available_bytes() == available


@pytest.mark.parametrize(
    ("most", "available", "held"),
    [
        (32 * 2**20, 32 * 2**20 * SHARE, 32 * 2**20),
        (32 * 2**20, 8 * 2**20 * SHARE, 8 * 2**20),
        (32 * 2**20, 0, LEAST_BYTES),
        (1000, 0, 1000),
    ],
)
def test_what_may_be_held_is_a_share_of_the_memory_between_two_bounds(
    monkeypatch: pytest.MonkeyPatch, most: int, available: int, held: int
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    assert bytes_to_hold(most) == held
