"""The documentation site: it builds without a network and a warning, and its reference is that of the code."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from pydantic import BaseModel

from embedding_platform.cli import main
from embedding_platform.settings import Settings

pytest.importorskip("mkdocs", reason="no mkdocs here (it is one of the dev extra)")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    """The module that makes pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import pages

        yield pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


def build(project: Path, into: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(into)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


class Resources(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "link":
            self.found.append(attributes.get("href") or "")
        elif tag != "a":
            self.found.append(attributes.get("src") or "")


def test_every_page_is_there_and_nothing_comes_from_elsewhere(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert built >= {path.stem for path in (ROOT / "docs").glob("*.md")} | {"settings", "commands", "deploy"}
    for path in site.rglob("*.html"):
        outside = [url for url in Resources(path.read_text()).found if re.match(r"(https?:)?//", url)]
        assert outside == [], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text()), path.name


def test_the_site_reads_from_first_steps_to_reference(site: Path) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    headings = [heading for entry in nav for heading in entry]
    assert headings == [
        "Overview",
        "Tour",
        "Your own media",
        "Your own model",
        "Your own Milvus",
        "Operating it",
        "How it works",
        "Reference",
    ]
    overview = re.findall(r"^(\d)\. \[?([\w ]+)", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    assert [(int(place), name) for place, name in overview] == list(enumerate(headings[1:], 1))
    assert '<h2 id="how-fast-it-searches">' in (site / "performance.html").read_text()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("See [there](nowhere.md).", "nowhere.md"),
        ("See [there](../nowhere.py).", "nowhere.py"),
        ("See [there](tour.md#nowhere).", "nowhere"),
        ("No page of the navigation.", "stray.md"),
    ],
    ids=["page", "file of the code", "heading", "not in the navigation"],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, complaint: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "docs", project / "docs")
    for name in ("deploy", "embedding_platform"):
        (project / name).symlink_to(ROOT / name)
    for name in ("mkdocs.yml", "embedding_platform.yaml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, project)
    name = "stray.md" if complaint == "stray.md" else "index.md"
    with (project / "docs" / name).open("a") as page:
        page.write(f"\n{text}\n")
    built = build(project, tmp_path / "site")
    assert built.returncode != 0
    assert complaint in built.stderr


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_reference_holds_every_setting_once(pages: ModuleType) -> None:
    text = pages.settings_page()
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| `(EMBEDDING_PLATFORM_\w+)` \|", text, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(set(leaves(Settings)) - {"base"})
    for name, variable in rows:
        assert variable == "EMBEDDING_PLATFORM_" + name.upper().replace(".", "__")
    assert "| `milvus.named_partitions` | whole number, at least 1, at most 1023 | `512` |" in text
    assert "| `model_set` | `starter` or `hub` | `starter` |" in text


def test_what_the_settings_file_says_of_a_setting_is_taken_over(pages: ModuleType) -> None:
    text = """
# Where media lie.
media_root: media
milvus:
  # A folder,
  # or a server.
  uri: here
  # token: user:password   # better kept out
  timeout_seconds: 30   # to reach it
  named_partitions: 5
# spaces: [a]
#   and more on request
nightly: 0 2 * * *
"""
    assert pages.explanations(text) == {
        "media_root": "Where media lie.",
        "milvus.uri": "A folder, or a server.",
        "milvus.token": "better kept out",
        "milvus.timeout_seconds": "to reach it",
        "spaces": "and more on request",
    }


def test_the_reference_holds_every_command_with_its_options(pages: ModuleType) -> None:
    text = pages.commands_page()
    for name, command in main.commands.items():
        section = text.partition(f"\n## embedding-platform {name}\n")[2].partition("\n## ")[0]
        assert f"Usage: embedding-platform {name}" in section
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in section


def test_links_of_files_elsewhere_are_turned_to_where_the_page_is(pages: ModuleType) -> None:
    text = "[a](../docs/operating.md#when) [b](compose.yaml) [c](https://x.org/y) [d](#here) [e](../CONTRIBUTING.md)"
    assert pages.moved(text, "deploy/README.md") == (
        "[a](operating.md#when) [b](../deploy/compose.yaml) [c](https://x.org/y) [d](#here) [e](../CONTRIBUTING.md)"
    )
