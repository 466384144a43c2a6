"""A media root that a history changes at random, and what is in it by the test's own reading."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from embedding_platform.records import digest

SOURCES = ("one", "zwei & drei", "日本%41")
STEMS = ("a", "b 100%", "c'\"d", "deep/er/ü", "deep/a")
SUFFIXES = ("txt", "png")
CONTENTS = 6
CAPTIONS = "captions.jsonl"

Items = dict[tuple[str, str], dict[str, str]]
"""Version by path of what each (modality, source) holds."""


class Media:
    """A media root. Every write has an mtime of its own, as if a second had passed."""

    def __init__(self, root: Path) -> None:
        self.root, self.attic = root, root.with_name("attic")
        # A root without any folder is taken for a disk that is not mounted.
        (root / "always-empty").mkdir(parents=True)
        self.attic.mkdir()
        self._seconds = itertools.count(1_700_000_000)

    def files(self) -> list[Path]:
        """All files, sorted, captions files apart."""
        return sorted(path for path in self.root.rglob("*") if path.is_file() and path.name != CAPTIONS)

    def state(self) -> str:
        """A hash of all paths and contents."""
        found = sorted(path for path in self.root.rglob("*") if path.is_file())
        return digest(*(part for path in found for part in (str(path), path.read_bytes().hex())))

    def write(self, source: str, stem: str, suffix: str, content: int) -> None:
        path = self.root / source / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "txt":
            path.write_text(text(content), encoding="utf-8")
        else:
            pixels = np.random.default_rng(content).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        self.touch(path)

    def caption(self, source: str, lines: Sequence[tuple[str, int]]) -> None:
        """Captions for images of a source, one line each; without lines the file goes."""
        path = self.root / source / CAPTIONS
        if not lines:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"file_name": f"{stem}.png", "text": f"line {text(content)}"} for stem, content in lines]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.touch(path)

    def touch(self, path: Path) -> None:
        seconds = next(self._seconds)
        os.utime(path, (seconds, seconds))

    def move(self, path: Path, source: str, stem: str) -> None:
        """Rename a file, which keeps its mtime; one of that name goes."""
        target = self.root / source / f"{stem}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    def swap(self, one: Path, other: Path) -> None:
        left, right = one.read_bytes(), other.read_bytes()
        one.write_bytes(right)
        other.write_bytes(left)
        self.touch(one)
        self.touch(other)

    def remove_source(self, source: str) -> None:
        """Take a source away, whole; the attic keeps its last state."""
        if (self.root / source).is_dir():
            shutil.rmtree(self.attic / source, ignore_errors=True)
            (self.root / source).rename(self.attic / source)

    def restore_source(self, source: str) -> None:
        """Bring a source back as it was, with its mtimes; nothing if it is there or never was."""
        if (self.attic / source).is_dir() and not (self.root / source).is_dir():
            (self.attic / source).rename(self.root / source)

    def items(self) -> Items:
        """What a listing should find."""
        found: Items = {}
        for folder in self.root.iterdir():
            paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            captions = _captions(folder, paths)
            beside = {f"{path[:-4]}.txt" for path in paths if path.endswith(".png")}
            for path in paths:
                if path.endswith(".png"):
                    modality = "image_text" if captions.get(path) else "image"
                elif path.endswith(".txt") and path not in beside:
                    modality = "text"
                else:
                    continue
                content = hashlib.sha256((folder / path).read_bytes()).hexdigest()
                version = digest(content, *captions.get(path, ()))
                found.setdefault((modality, folder.name), {})[path] = version
        return found


def text(content: int) -> str:
    """One to three paragraphs, each a passage of its own, the first shared by two contents."""
    shared = f"a beginning of both {content // 2} with some more words to fill a passage to its end"
    own = (f"the own passage {number} of {content} and more words that fill it to the end" for number in range(3))
    return "\n\n".join([shared, *itertools.islice(own, content % 3)])


def _captions(folder: Path, paths: Sequence[str]) -> Mapping[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for path in paths:
        if path.endswith(".png") and (folder / path).with_suffix(".txt").is_file():
            captions[path] = [(folder / path).with_suffix(".txt").read_text("utf-8").strip()]
    for path in paths:
        if path.rsplit("/", 1)[-1] == CAPTIONS:
            for line in (folder / path).read_text("utf-8").splitlines():
                row = json.loads(line)
                name = os.path.join(os.path.dirname(path), row["file_name"])
                if name in paths:
                    captions.setdefault(name, []).append(row["text"].strip())
    return {path: list(dict.fromkeys(texts)) for path, texts in captions.items()}
