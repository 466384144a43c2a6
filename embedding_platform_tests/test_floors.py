"""The walls of the house: who may import whom, read from the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedding_platform

ROOT = Path(embedding_platform.__file__).parent

FLOORS = (
    ("errors", "memory", "buckets", "spaces", "records", "storage", "increments", "layout", "settings"),
    ("media", "models", "vectors", "milvus", "alerts", "starter", "reference"),
    ("inference", "reconcile", "sights", "platform", "watching", "search", "lineage", "serving"),
    ("defs",),
    ("definitions", "supervision", "launcher", "runs", "terminal", "demo", "part", "code_server", "up", "cli"),
)
"""Rooms by floor. Rooms of floor 1 do not know each other; on the others a room may import
those named before it."""

APART = 1
FIRST_WITH_DAGSTER = 3

AT_HOME = {
    "torch": ("models", "starter", "reference"),
    "transformers": ("models", "starter", "reference"),
    "sentence_transformers": ("models", "starter", "reference"),
    "openai": ("models",),
    "openvino": (),
    "av": ("media", "starter", "reference"),
    "PIL": ("media", "starter", "reference"),
    "pymilvus": ("milvus",),
    "milvus_lite": ("milvus",),
    "fastapi": ("serving",),
    "uvicorn": ("serving",),
}
"""Packages that take long to import, and the rooms whose modules may import them when they load."""

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported below a node; of `from a import b` it is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_on_loading(tree: ast.Module) -> Iterator[str]:
    """What a module imports when it is loaded: not inside functions, not for type checkers."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)
        else:
            waiting += ast.iter_child_nodes(node)


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(ast.parse(path.read_text())))
    return {name[1] for name in names if name[0] == "embedding_platform" and len(name) > 1}


def may_import(room: str, other: str) -> bool:
    (floor,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    (other_floor,) = (number for number, rooms in enumerate(FLOORS) if other in rooms)
    if room == other or other_floor < floor:
        return True
    return other_floor == floor != APART and FLOORS[floor].index(other) < FLOORS[floor].index(room)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_below(path):
    room = room_of(path)
    assert {other for other in rooms_imported(path) if not may_import(room, other)} == set()


@pytest.mark.parametrize(
    ("room", "other", "allowed"),
    [
        ("reconcile", "media", True),
        ("reconcile", "inference", True),
        ("inference", "reconcile", False),
        ("media", "vectors", False),
        ("media", "media", True),
        ("storage", "settings", False),
        ("milvus", "defs", False),
    ],
)
def test_the_rule_itself(room, other, allowed):
    assert may_import(room, other) == allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_upper_floors_know_dagster(path):
    below = {room for rooms in FLOORS[:FIRST_WITH_DAGSTER] for room in rooms}
    packages = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert room_of(path) not in below or not {name for name in packages if name.startswith("dagster")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_loads_slowly_is_imported_at_home_or_inside_functions(path):
    packages = {name.split(".")[0] for name in imported_on_loading(ast.parse(path.read_text()))}
    away = {package for package, rooms in AT_HOME.items() if room_of(path) not in rooms}
    assert packages & away == set()


def test_dagster_loads_the_definitions_without_what_loads_slowly(tmp_path):
    script = "import sys, embedding_platform.definitions; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True
    )
    modules = set(loaded.stdout.split())
    assert "dagster" in modules
    assert modules & set(AT_HOME) == set()


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT.parent), "PATH": "/usr/bin:/bin"}
