"""Held-out queries: read, encoded once, kept, sampled, and refused where they make no sense."""

import numpy as np
import pytest

from embedding_platform import layout
from embedding_platform.errors import PlatformError
from embedding_platform.reconcile import queries
from embedding_platform.reconcile.queries import MOST_QUERIES, held_out_queries
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder, vector_of
from embedding_platform_tests.media.made import tone, write_sound
from embedding_platform_tests.reconcile.small_lake import CUTTING, FINGERPRINT, space_of, write_image, write_wav

LINES = ["where do penguins live", "how tall is the lighthouse", "bread without yeast"]


class Encoders:
    """Loads an encoder on request, and counts."""

    def __init__(self, **encoder) -> None:
        self.encoder = SmallEncoder(**encoder)
        self.loads = 0

    def __call__(self) -> SmallEncoder:
        self.loads += 1
        return self.encoder


def encode(tmp_path, url, modality="text", encoders=None, fingerprint=FINGERPRINT):
    load = encoders or Encoders()
    return held_out_queries(str(tmp_path / "store"), space_of(modality), fingerprint, url, CUTTING, load)


def write_lines(path, lines) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def as_set(vectors: np.ndarray) -> set[bytes]:
    return {np.round(vector, 5).astype(np.float32).tobytes() for vector in vectors}


def expected(*contents) -> set[bytes]:
    return as_set(np.stack([vector_of(content) for content in contents]))


def test_no_setting_is_no_queries_and_no_model(tmp_path):
    encoders = Encoders()
    assert encode(tmp_path, None, encoders=encoders) is None
    assert encoders.loads == 0
    assert not (tmp_path / "store").exists()


def test_each_line_is_a_query_and_empty_and_repeated_ones_are_not(tmp_path):
    url = write_lines(tmp_path / "queries.txt", ["\ufeff" + LINES[0], "", "  ", *LINES, f" {LINES[1]} "])
    vectors = encode(tmp_path, url)
    assert (vectors.shape, vectors.dtype) == ((3, DIMENSION), np.float32)
    assert as_set(vectors) == expected(*LINES)


def test_the_model_is_asked_for_what_is_new_alone(tmp_path):
    url = write_lines(tmp_path / "queries.txt", LINES)
    encoders = Encoders()
    first = encode(tmp_path, url, encoders=encoders)
    np.testing.assert_array_equal(encode(tmp_path, url, encoders=encoders), first)
    assert (encoders.loads, encoders.encoder.embedded) == (1, 3)
    write_lines(tmp_path / "queries.txt", [*reversed(LINES[1:]), "one more"])
    again = encode(tmp_path, url, encoders=encoders)
    assert as_set(again) == expected(*LINES[1:], "one more")
    assert (encoders.loads, encoders.encoder.embedded) == (2, 4)


def test_another_fingerprint_is_encoded_by_itself(tmp_path):
    url = write_lines(tmp_path / "queries.txt", LINES)
    encoders = Encoders()
    for fingerprint in ("a" * 64, "b" * 64, "a" * 64):
        encode(tmp_path, url, encoders=encoders, fingerprint=fingerprint)
    assert encoders.loads == 2


def test_with_nothing_to_do_the_store_is_left_alone(tmp_path):
    url = write_lines(tmp_path / "queries.txt", LINES)
    encode(tmp_path, url)
    (kept,) = (path for path in (tmp_path / "store").rglob("*.parquet"))
    assert str(kept) == layout.held_out_url(str(tmp_path / "store"), "text/small", FINGERPRINT)
    before = kept.stat()
    encode(tmp_path, url)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_more_than_can_be_used_are_sampled_and_the_sample_hardly_moves(tmp_path):
    lines = [f"question number {number}" for number in range(MOST_QUERIES + 300)]
    encoders = Encoders()
    first = encode(tmp_path, write_lines(tmp_path / "queries.txt", lines), encoders=encoders)
    assert first.shape == (MOST_QUERIES, DIMENSION)
    second = encode(tmp_path, write_lines(tmp_path / "queries.txt", [*lines[1:], "a new one"]), encoders=encoders)
    assert second.shape == (MOST_QUERIES, DIMENSION)
    assert len(as_set(first) & as_set(second)) >= MOST_QUERIES - 2
    assert encoders.encoder.embedded <= MOST_QUERIES + 2


def test_a_folder_holds_media_of_the_models_roles_and_files_of_words(tmp_path):
    folder = tmp_path / "queries"
    write_image(folder / "a.png", 1)
    write_image(folder / "deep" / "b.png", 2)
    (folder / ".hidden").write_text("no query")
    write_lines(folder / "words.txt", LINES[:2])
    encoders = Encoders()
    vectors = encode(tmp_path, str(folder), "image_text", encoders)
    assert vectors.shape == (4, DIMENSION)
    assert as_set(vectors) >= expected(*LINES[:2])
    assert max(len(batch) for batch in encoders.encoder.batches) == 2
    encode(tmp_path, f"{folder}/", "image_text", encoders)
    assert encoders.loads == 1


def test_a_sound_is_decoded_as_it_would_be_indexed_and_its_windows_are_averaged(tmp_path, monkeypatch):
    path = tmp_path / "queries" / "long.wav"
    path.parent.mkdir()
    write_sound(path, tone(31.0, 16_000), rate=16_000)
    encoders = Encoders()
    (vector,) = encode(tmp_path, str(path), "audio", encoders)
    ((first, second),) = encoders.encoder.batches
    mean = vector_of(first) + vector_of(second)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "make", "said"),
    [
        ("text", lambda folder: folder / "queries.txt", "queries.txt is not there; correct the path"),
        ("text", lambda folder: write_lines(folder / "empty.txt", ["", " "]), "empty.txt holds no query; write one"),
        ("text", lambda folder: write_image(folder / "q" / "a.png", 1).parent, "a.png is image, but the space's model"),
        (
            "audio",
            lambda folder: write_lines(folder / "a.txt", LINES),
            "a.txt is text, but the space's model embeds",
        ),
        ("image", lambda folder: write_wav(folder / "a.wav", 1), "a.wav is audio, but the space's model embeds image"),
    ],
)
def test_queries_that_cannot_be_are_refused_in_one_line(tmp_path, modality, make, said):
    with pytest.raises(PlatformError) as caught:
        encode(tmp_path, str(make(tmp_path)), modality)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"quality.queries.{modality}/small: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("latin.txt", "Grüße".encode("latin-1"), "is not UTF-8; save it as UTF-8"),
        ("a.xyz", b"\x00\x01\x02", "is neither .txt nor media; take it away"),
        ("a.png", b"no picture", "mend it, or take it away"),
        ("b.md", b"", "mend it, or take it away"),
    ],
)
def test_a_file_that_is_no_query_is_named(tmp_path, name, payload, said):
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / name).write_bytes(payload)
    with pytest.raises(PlatformError) as caught:
        encode(tmp_path, str(tmp_path / "queries"), "image_text")
    assert f"{tmp_path / 'queries' / name} " in str(caught.value)
    assert said in str(caught.value)


def test_a_query_that_the_model_refuses_is_named(tmp_path):
    def refuse(content) -> None:
        if "tall" in content:
            raise ValueError("9 tokens, the model takes 4")

    encoders = Encoders(refuse_early=refuse, refuse=refuse)
    with pytest.raises(PlatformError, match=r'^text/small does not take the query "how tall .*": 9 tokens'):
        encode(tmp_path, write_lines(tmp_path / "queries.txt", LINES), encoders=encoders)


def test_texts_go_to_the_model_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "_TEXTS_PER_CALL", 2)
    encoders = Encoders()
    encode(tmp_path, write_lines(tmp_path / "queries.txt", [*LINES, "four", "five"]), encoders=encoders)
    assert [len(batch) for batch in encoders.encoder.batches] == [2, 2, 1]
