"""What the package imports is declared, since what else brings it may stop to, and what it hands on is there."""

import ast
import re
import sys
import tomllib
from importlib import resources
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

OF_DAGSTER = {"dagster_shared"}
"""Released with dagster, one version for each of its own."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def names(requirements: list[str]) -> set[str]:
    """Names of distributions as one writes them: small letters, and hyphens."""
    return {re.sub("[-_.]+", "-", re.match(r"[\w.-]+", one)[0]).lower() for one in requirements}  # type: ignore[index]


def imported(folder: Path) -> set[str]:
    """Packages, ours and Python's own left out, that modules of a folder import."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {folder.name}


def test_what_the_package_imports_is_declared(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    wanted = [extras[name] for name in ("starter", "openvino", "openai", "postgres")]
    declared = names([*project["dependencies"], *(one for extra in wanted for one in extra)])
    brought_by = packages_distributions()
    undeclared = {
        package
        for package in imported(ROOT / "embedding_platform") - OF_DAGSTER
        if declared.isdisjoint(names(brought_by.get(package, [package])))
    }
    assert undeclared == set()


def test_what_the_tests_cannot_do_without_is_declared(project: dict[str, Any]) -> None:
    declared = names([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    assert {"httpx2", "hypothesis", "playwright", "pytest", "schemathesis", "starlette", "uvicorn"} <= declared


def test_every_dependency_is_pinned(project: dict[str, Any]) -> None:
    pinned = names([line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line])
    extras = project["optional-dependencies"]
    wanted = names([*project["dependencies"], *extras["dev"], *extras["postgres"]]) - {"embedding-platform"}
    assert wanted - pinned == set()


def test_the_package_hands_on_its_types() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["embedding_platform"]
    assert (resources.files("embedding_platform") / "py.typed").is_file()
