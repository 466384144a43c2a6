"""Pages of the documentation site that are made while it is built: reference from the code, and what lies elsewhere.

mkdocs calls the functions that begin with `on_`. Nothing of what is made here is committed, so
that it cannot fall behind the code.
"""

import os
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from embedding_platform.cli import main
from embedding_platform.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]

ELSEWHERE = {"deploy.md": "deploy/README.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site by the files of the repository that they are."""

_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds."""
    made = {"settings.md": settings_page(), "commands.md": commands_page()}
    for name, source in ELSEWHERE.items():
        made[name] = moved((ROOT / source).read_text("utf-8"), source)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of docs/: to the page that such a file is here, or for code to the words alone."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)", _inside, markdown)


def moved(text: str, source: str) -> str:
    """A page's text with its links as seen from docs/: to other pages, or to files of the repository."""
    folder = (ROOT / source).parent

    def seen(link: re.Match[str]) -> str:
        words, path, anchor = link[1], link[2], link[3] or ""
        target = Path(os.path.normpath(folder / path))
        if target.parent == ROOT / "docs":
            return f"[{words}]({target.name}{anchor})"
        return f"[{words}](../{target.relative_to(ROOT)})"

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", seen, text)


def settings_page() -> str:
    """Every setting: its name, type, default, environment variable, and what embedding_platform.yaml says of it."""
    explained = explanations((ROOT / "embedding_platform.yaml").read_text("utf-8"))
    plain = {name: field for name, field in Settings.model_fields.items() if name != "base" and not _section(field)}
    sections = {name: _section(field) for name, field in Settings.model_fields.items() if _section(field)}
    lines = [
        "# Settings",
        "",
        "Made from `embedding_platform/settings.py` and the comments of `embedding_platform.yaml`. An environment",
        "variable wins over the file; a list or a table in one is JSON. `embedding-platform config` prints what is in",
        "force, and where something is wrong, which setting.",
        "",
        *_table(plain, "", explained),
    ]
    for name, section in sections.items():
        assert section is not None
        lines += ["", f"## {name}", "", _paragraph(section.__doc__), "", *_table(section.model_fields, name, explained)]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of every command, as the command line prints it."""
    lines = [
        "# Commands",
        "",
        "Made from the command line itself. A user's mistake is one line and exit status 2; a run that failed is 1.",
    ]
    for name, command in _commands(main, "embedding-platform"):
        context = click.Context(command, info_name=name, max_content_width=100, help_option_names=["-h", "--help"])
        lines += ["", f"## {name}", "", "```text", command.get_help(context), "```"]
    return "\n".join(lines) + "\n"


def explanations(text: str) -> dict[str, str]:
    """What embedding_platform.yaml says of each setting: behind it, or else in the lines above it.

    A line such as `# spaces: [...]` is a setting that is left out; comments below it that are
    indented further go on with it.
    """
    found: dict[str, str] = {}
    section, name, above = "", "", list[str]()
    for line in text.splitlines():
        setting = re.match(r"( *)(?:# )?(\w+):(?:\s|$)(.*)", line)
        if setting and setting[2] in _settings_below(section if setting[1] else ""):
            if not setting[1]:
                section = setting[2] if _section(Settings.model_fields[setting[2]]) else ""
            name = f"{section}.{setting[2]}" if setting[1] else setting[2]
            behind = re.search(r"(?:^|\s)#\s+(.*)$", setting[3])
            said = behind[1] if behind else " ".join(above)
            if said:
                found[name] = said
            above = []
        elif line.startswith("#   ") and name:
            found[name] = " ".join([found.get(name, ""), line.lstrip("# ")]).strip()
        elif line.strip().startswith("#"):
            above.append(line.strip().lstrip("#").strip())
        else:
            above = []
    return found


def _settings_below(section: str) -> set[str]:
    model = _section(Settings.model_fields[section]) if section else Settings
    return set(model.model_fields) - {"base"} if model else set()


def _table(fields: dict[str, FieldInfo], section: str, explained: dict[str, str]) -> Iterator[str]:
    yield "| setting | type | default | environment variable | |"
    yield "|---|---|---|---|---|"
    for name, field in fields.items():
        key = f"{section}.{name}" if section else name
        variable = PREFIX + key.upper().replace(".", "__")
        words = explained.get(key, "").replace("|", "\\|")
        yield f"| `{key}` | {_type(field)} | {_default(field)} | `{variable}` | {words} |"


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(limit, bound)}"
        for limit in field.metadata
        for bound, words in _BOUNDS.items()
        if getattr(limit, bound, None) is not None
    ]
    return ", ".join([_named(field.annotation), *bounds]).replace("|", "\\|")


def _named(annotation: Any) -> str:
    """An annotation in words: `str | None` is "text or nothing"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_named, inner))
    if origin is list:
        return f"list of {_named(inner[0])}"
    if origin is dict:
        return f"table of {_named(inner[1])}"
    if hasattr(annotation, "__metadata__"):
        return _named(annotation.__origin__)
    words = {str: "text", SecretStr: "secret text", int: "whole number", float: "number", bool: "yes or no"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return " and ".join(f"`{name}`" for name in annotation.model_fields)
    return words.get(annotation, "nothing" if annotation is type(None) else str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "none: it has to be given"
    if value is None or value == "" or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return ""
    return f"`{value}`"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for inner in command.commands:
            yield from _commands(command.commands[inner], f"{name} {inner}")


def _paragraph(docstring: str | None) -> str:
    return re.sub(r"\n +", "\n", (docstring or "").strip())


def _inside(link: re.Match[str]) -> str:
    words, target, anchor = link[1], link[2], link[3] or ""
    for page, source in ELSEWHERE.items():
        if source == target:
            return f"[{words}]({page}{anchor})"
    # A link that leads nowhere stays, so that the build fails at it.
    return words if (ROOT / target).exists() else link[0]
