"""A small lake in five modalities, with names that mean harm among its files, and clients of its search page."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.runs import run_sources
from embedding_platform.serving.app import make_app
from embedding_platform.settings import Settings
from embedding_platform.starter.sample_media import make_sample_media, make_sample_queries
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.media.made import tone, write_sound

ADDRESS = "http://127.0.0.1:8000"
TOKEN = "open-sesame-0123456789"

KEPT = {
    "handbook": ("honeybees", "volcanoes", "hnsw-index"),
    "shapes": ("red-", "blue-circle"),
    "captioned-shapes": ("red-", "blue-"),
    "sounds": ("00",),
    "clips": ("00",),
}
"""Of the sample media, how the names of those begin or end that are kept."""

SCRIPT = "<script>document.title='owned'</script>"
HOSTILE_SOURCE = "a\"b'<b>&{{7*7}}"
HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>.txt",
    '"><script>alert(1)</script>.txt'.replace("/", "\u2215"),
    "a..%2f..%2f..%2fetc%2fpasswd.txt",
    "{{ 7*7 }}${7*7}.txt",
    "new\nline\r\nSet-Cookie: a=b.txt",
    "javascript:alert(1).txt",
)
HOSTILE_TEXT = f"Penguins {SCRIPT} swim <b onmouseover=alert(1)>well</b> & fly 'badly' \"indeed\"."
HOSTILE_CAPTION = f'a penguin "{SCRIPT}" {{{{7*7}}}}'


@dataclass(frozen=True)
class Lake:
    """A platform whose spaces are all published, its folder, and a file outside of its media root."""

    folder: Path
    platform: Platform
    dagster: dg.DagsterInstance

    @property
    def media(self) -> Path:
        return self.folder / "media"

    @property
    def queries(self) -> Path:
        return self.folder / "queries"

    def client(self, **serving: Any) -> TestClient:
        """A client of an app with other settings of `serving`, as a browser on this machine has it."""
        return TestClient(self.app(**serving), base_url=ADDRESS, follow_redirects=False)

    def app(self, **serving: Any) -> Any:
        """An app with other settings of `serving`."""
        platform = self.platform
        section = platform.settings.serving.model_validate(
            {**platform.settings.serving.model_dump(), "token": "", **serving}
        )
        changed: Settings = platform.settings.model_copy(update={"serving": section})
        return make_app(lambda: Platform(changed))


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    folder = tmp_path_factory.mktemp("lake")
    make_sample_media(str(folder / "media"))
    make_sample_queries(str(folder / "queries"))
    keep_some(folder / "media")
    add_hostile(folder / "media")
    add_recordings(folder / "media")
    (folder / "secret.txt").write_text("The harbour's password is swordfish.")
    platform = open_platform(folder, runtime="torch")
    with dg.instance_for_test() as dagster:
        runs = list(run_sources(platform, dagster))
        assert [failure for run in runs for failure in run.failures] == []
        yield Lake(folder, platform, dagster)
    close_directory(platform.settings.milvus_uri)


@pytest.fixture(scope="session")
def client(lake: Lake) -> TestClient:
    """A client without a token, of a server that asks for none."""
    return lake.client()


@pytest.fixture(scope="session")
def hit(client: TestClient, lake: Lake) -> Callable[[str, str], dict[str, Any]]:
    """A function from a space and the beginning of a path to the best hit of such a file, as the API gives it."""
    by_example = {
        "image/resnet50": "pictures/0.png",
        "audio/whisper": "sounds/0.wav",
        "video/perceiver": "clips/0.mp4",
    }

    def of(space: str, beginning: str) -> dict[str, Any]:
        if space in by_example:
            with (lake.queries / by_example[space]).open("rb") as file:
                fields = {"space": space, "limit": 100}
                answer = client.post("/api/search", params=fields, files={"file": file})
        else:
            words = "penguins" if space == "text/minilm" else "a red circle"
            answer = client.get("/api/search", params={"words": words, "space": space, "limit": 100})
        (found,) = answer.json()["spaces"]
        return next(one for one in found["hits"] if one["path"].startswith(beginning))

    return of


def keep_some(media: Path) -> None:
    """Take away what the tests do not need, so that it need not be embedded."""
    for source in [path for path in media.iterdir() if path.is_dir()]:
        if source.name not in KEPT:
            shutil.rmtree(source)
            continue
        for path in [path for path in source.rglob("*") if path.is_file()]:
            stem = path.stem
            if not (stem.startswith(KEPT[source.name]) or stem[-3:-1] in KEPT[source.name]):
                path.unlink()


def add_recordings(media: Path) -> None:
    """A sound of three windows, and one that no browser plays."""
    source = media / "recordings"
    source.mkdir()
    melody = np.concatenate([tone(10.0, 16_000, hertz=110.0 * step) for step in range(2, 9)])
    write_sound(source / "melody.wav", melody, rate=16_000)
    write_sound(source / "tone.aiff", tone(3.0, 22_050, hertz=500.0), rate=22_050, codec="pcm_s16be")


def add_hostile(media: Path) -> None:
    """Files whose names and contents would do harm on a page that trusts them."""
    source = media / HOSTILE_SOURCE
    source.mkdir()
    for name in HOSTILE_NAMES:
        (source / name).write_text(f"{HOSTILE_TEXT} This is {HOSTILE_NAMES.index(name)}.")
    (source / "page.html").write_text(f"<html><body>Penguins on a page.{SCRIPT}</body></html>")
    Image.new("RGB", (64, 48), "navy").save(source / 'x" onerror="alert(1)" y=".png')
    captioned = media / "hostile-captions"
    captioned.mkdir()
    Image.new("RGB", (64, 48), "green").save(captioned / "green.png")
    (captioned / "captions.jsonl").write_text(json.dumps({"file_name": "green.png", "text": HOSTILE_CAPTION}) + "\n")
