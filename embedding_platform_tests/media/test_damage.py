"""Whatever is done to a file, it is read, rejected or skipped; nothing else ever happens."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_platform.errors import RejectedError
from embedding_platform.media import cutting
from embedding_platform.media.recognition import recognise

from .made import CUTTING, item, picture, tone, write_sound, write_video
from .test_text import pdf

MAKERS: dict[str, Callable[[Path], object]] = {
    "a.jpg": lambda path: path.write_bytes(picture(format="JPEG")),
    "a.png": lambda path: path.write_bytes(picture()),
    "a.gif": lambda path: path.write_bytes(picture("P", format="GIF")),
    "a.webp": lambda path: path.write_bytes(picture(format="WEBP")),
    "a.avif": lambda path: path.write_bytes(picture(format="AVIF")),
    "a.tiff": lambda path: path.write_bytes(picture(format="TIFF")),
    "a.wav": lambda path: write_sound(path, tone(0.3, 16_000), rate=16_000),
    "a.mp3": lambda path: write_sound(path, tone(0.3, 16_000), rate=16_000, codec="libmp3lame"),
    "a.flac": lambda path: write_sound(path, tone(0.3, 16_000), rate=16_000, codec="flac"),
    "a.ogg": lambda path: write_sound(path, tone(0.3, 48_000), rate=48_000, codec="libopus"),
    "a.m4a": lambda path: write_sound(path, tone(0.3, 16_000), rate=16_000, codec="aac"),
    "a.mp4": lambda path: write_video(path, [10] * 8, sound=tone(0.3, 48_000)),
    "a.mkv": lambda path: write_video(path, [10] * 8, sound=tone(0.3, 48_000), sound_codec="libopus"),
    "a.avi": lambda path: write_video(path, [10] * 8, codec="mpeg4"),
    "a.pdf": lambda path: path.write_bytes(pdf("some words", "more words")),
    "a.html": lambda path: path.write_text("<p>some <b>words</b><table><tr><td>1</table>" * 3),
    "a.txt": lambda path: path.write_text("Grüße an alle. " * 9),
}


def damaged(payload: bytes, chance: random.Random) -> bytes:
    damage = bytearray(payload)
    place = chance.randrange(len(damage))
    match chance.randrange(4):
        case 0:
            del damage[place:]
        case 1:
            damage[place:place] = chance.randbytes(20)
        case 2:
            damage[place : place + 20] = bytes(20)
        case _:
            for _ in range(5):
                damage[chance.randrange(min(len(damage), 400))] = chance.randrange(256)
    return bytes(damage)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAKERS)
def test_damage_never_raises_anything_but_a_rejection(tmp_path: Path, name: str) -> None:
    MAKERS[name](tmp_path / name)
    payload = (tmp_path / name).read_bytes()
    chance = random.Random(name)
    path = tmp_path / f"damaged-{name}"
    for _ in range(25):
        path.write_bytes(damaged(payload, chance))
        try:
            recognised = recognise(path.name, str(path))
            if recognised is None:
                continue
            modality, media_type = recognised
            cutting.modality_module(modality).probe(str(path))
            segments = cutting.cut(modality, "s", item(path, media_type), CUTTING)
            assert len(list(cutting.read(modality, segments))) == len(segments) > 0
        except RejectedError as rejection:
            if not str(rejection):
                pytest.fail("a rejection gives no reason")
