"""docs/metadata.md explains every name that the code can show."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedding_platform
from embedding_platform.defs.check_specs import CHECKS

PACKAGE = Path(embedding_platform.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "metadata.md").read_text()
SECTIONS = {section.splitlines()[0]: section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def shown_by(tree: ast.AST) -> Iterator[str]:
    """Names under which a module shows something: keys of dictionaries, written out or set one by one."""
    for node in ast.walk(tree):
        keys = node.keys if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys = [node.slice]
        yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def functions_of(module: str) -> Iterator[ast.FunctionDef]:
    tree = ast.parse((PACKAGE / "defs" / f"{module}.py").read_text())
    yield from (node for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("function", list(functions_of("metadata")), ids=lambda function: function.name)
def test_metadata_are_explained(function: ast.FunctionDef) -> None:
    stage = next((stage for stage in CHECKS if stage in function.name), None)
    sections = ["Every asset", stage] if stage else ["Every asset", *(set(CHECKS) & set(SECTIONS))]
    explained = set().union(*(named(SECTIONS[section]) for section in sections))
    assert set(shown_by(function)) - explained == set()


def test_pictures_are_explained() -> None:
    (new_segments,) = (function for function in functions_of("pictures") if function.name == "new_segments")
    assert set(shown_by(new_segments)) <= named(SECTIONS["segments"])


@pytest.mark.parametrize("function", list(functions_of("checks")), ids=lambda function: function.name)
def test_numbers_of_checks_are_explained(function: ast.FunctionDef) -> None:
    assert set(shown_by(function)) - named(SECTIONS["Checks"]) == set()


@pytest.mark.parametrize("name", ["_compacted", "_prunable"])
def test_upkeep_is_explained(name: str) -> None:
    (function,) = (function for function in functions_of("upkeep") if function.name == name)
    shown = set(shown_by(function)) - {"stage"}
    assert "explained" in shown
    assert shown - named(SECTIONS["Every asset"]) - named(SECTIONS["upkeep"]) == set(), "a stage is a tag"


def failures_with_numbers() -> Iterator[tuple[str, ast.Call]]:
    """Calls that make an UnsoundError, with the module that they stand in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UnsoundError":
                yield path.stem, node


@pytest.mark.parametrize(("module", "call"), list(failures_with_numbers()), ids=lambda part: str(part)[:9])
def test_a_failure_that_a_check_stands_for_names_one_and_explained_numbers(module: str, call: ast.Call) -> None:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    assert isinstance(given["check"], ast.Constant)
    assert given["check"].value in {check.name for checks in CHECKS.values() for check in checks}
    if "numbers" in given:
        assert set(shown_by(given["numbers"])) - named(SECTIONS["Checks"]) == set()


@pytest.mark.parametrize(("stage", "check"), [(stage, check) for stage, checks in CHECKS.items() for check in checks])
def test_checks_are_explained_with_what_to_do(stage: str, check) -> None:
    (row,) = (
        line for line in SECTIONS["Checks"].splitlines() if line.startswith("| `") and check.name in named(line[:60])
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert stage in cells[1]
    assert ("blocks" in cells[2]) == check.blocking
    assert all(cells[3:])
    assert len(cells) == 6


@pytest.mark.parametrize("section", ["files", "segments", "embeddings", "collection", "published", "upkeep"])
def test_every_link_of_a_materialization_leads_to_a_section(section: str) -> None:
    assert section in SECTIONS


def test_settings_that_are_named_exist() -> None:
    from embedding_platform.settings import Settings

    for name in {name for name in named(PAGE) if re.fullmatch(r"(quality|milvus|batch|alerts)\.\w+", name)}:
        group, _, field = name.partition(".")
        assert field in type(Settings.model_fields[group].default).model_fields, name
