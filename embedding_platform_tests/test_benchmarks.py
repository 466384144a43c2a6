"""The benchmark of runs that grow: what it counts, on a small source in Milvus Lite."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

INCREMENTS = Path(__file__).parents[1] / "benchmarks" / "increments.py"
SEGMENTS = 200


@pytest.fixture
def increments(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("increments_benchmark", INCREMENTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("buckets", "passages"), [(1, 1), (1, 20), (2, 1)])
def test_a_run_embeds_and_writes_what_changed_and_nothing_else(
    tmp_path: Path, increments: ModuleType, buckets: int, passages: int
) -> None:
    place = increments.Place(
        str(tmp_path / "own"), SEGMENTS, ["one", "two"], buckets, passages, 8, "FLAT", str(tmp_path / "milvus"), ""
    )

    def counted() -> tuple[int, int, int]:
        """Contents embedded, rows written, and calls that write."""
        outcome = increments.run(place)
        return outcome["embedded"], outcome["written"], sum(outcome["calls"].get(name, 0) for name in increments.WRITES)

    files = SEGMENTS // passages
    increments.write(place, range(files), edition=0)
    assert counted() == (SEGMENTS, SEGMENTS, len(place.sources))
    assert counted() == (0, 0, 0)
    increments.write(place, range(1, 4), edition=1, changed=1)
    embedded, written, _ = counted()
    assert (embedded, written) == (3, 3 * passages)
    assert counted() == (0, 0, 0)
