import hashlib
from collections import Counter
from pathlib import Path

import av
import pytest
from PIL import Image

from embedding_platform.starter import sample_media
from embedding_platform.starter.sample_media import SAMPLE_QUESTIONS, make_sample_media


def files_of(root: Path) -> dict[str, str]:
    """Relative path and hash of every file below the root."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_second_call_writes_nothing_and_damage_is_mended(sample: Path) -> None:
    before = files_of(sample / "media")
    (sample / "media/sounds").glob("*.flac").__next__().write_bytes(b"cut short")
    (sample / "media/handbook/lineage.txt").unlink()
    assert make_sample_media(str(sample / "media")) == 2
    assert files_of(sample / "media") == before


def test_another_seed_draws_other_media(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("_clips", "_captioned"):
        monkeypatch.setattr(sample_media, slow, lambda seed: iter(()))
    make_sample_media(str(tmp_path), seed=1)
    first, other = files_of(sample / "media"), files_of(tmp_path)
    assert other["handbook/lineage.txt"] == first["handbook/lineage.txt"]
    drawn = [path for path in other if path.endswith((".png", ".wav"))]
    assert drawn
    assert all(other[path] != first[path] for path in drawn)


def test_lake_holds_every_format_and_stays_small(sample: Path) -> None:
    paths = [path for path in (sample / "media").rglob("*") if path.is_file()]
    suffixes = Counter(path.suffix for path in paths)
    formats = (*sample_media.PICTURE_SUFFIXES, *sample_media.SOUND_SUFFIXES, *sample_media.CLIP_SUFFIXES)
    assert set(suffixes) == {f".{suffix}" for suffix in (*formats, "txt", "md", "html", "pdf", "jsonl")}
    assert sum(path.stat().st_size for path in paths) < 30_000_000
    sources = {path.relative_to(sample / "media").parts[0] for path in paths}
    assert sources == {"handbook", "shapes", "captioned-shapes", "sounds", "clips", "field-notes"}


def test_pictures_and_recordings_open(sample: Path) -> None:
    lengths = []
    silent = 0
    for path in sorted((sample / "media").rglob("*")):
        if path.suffix in (".jpg", ".jpeg", ".png", ".webp"):
            with Image.open(path) as image:
                image.load()
                assert image.size == (256, 256)
        elif path.suffix[1:] in sample_media.SOUND_SUFFIXES:
            with av.open(str(path)) as container:
                lengths.append(container.duration / 1e6)
        elif path.suffix[1:] in sample_media.CLIP_SUFFIXES:
            with av.open(str(path)) as container:
                assert sum(1 for _ in container.decode(video=0)) % 16 == 0
                silent += not container.streams.audio
    assert len(lengths) == 40
    assert sum(length > 30 for length in lengths) == 2
    assert silent == 6


def test_every_question_has_its_query_and_its_answer(sample: Path) -> None:
    names = [path.name for path in (sample / "media").rglob("*")]
    for question in SAMPLE_QUESTIONS:
        assert any(name.startswith(question.answer) for name in names), question
        if question.kind == "file":
            assert (sample / "queries" / question.query).is_file()


def test_no_query_file_is_among_the_media(sample: Path) -> None:
    assert not set(files_of(sample / "queries").values()) & set(files_of(sample / "media").values())
