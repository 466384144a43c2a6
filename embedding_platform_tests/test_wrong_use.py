"""Contents and models in the wrong place are refused in one line that says the mend."""

import dagster as dg
import numpy as np
import pytest

from embedding_platform import runs
from embedding_platform.errors import PlatformError
from embedding_platform.records import Sound
from embedding_platform.search import Searcher
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.media.made import tone, write_sound


def refusal(error, call):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_long_complaint_of_dagster_is_cut_where_no_password_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    url = "postgresql://dagster:not-to-be-shown@127.0.0.1/dagster"
    error = ValueError(f"{'x' * 370} {url}")
    monkeypatch.setattr(dg.DagsterInstance, "from_config", lambda folder: (_ for _ in ()).throw(error))
    message = refusal(PlatformError, lambda: runs.instance().__enter__())
    assert "not-to" not in message
    assert "x postgresql://*****@" in message


def test_words_do_not_search_a_space_of_pictures_alone(platform):
    message = refusal(PlatformError, lambda: Searcher(platform).search("a red circle", "image/resnet50"))
    assert message.startswith("image/resnet50 cannot encode text; spaces that can: text/minilm, image/clip")


def test_sound_under_the_name_of_a_picture_is_sound(platform, tmp_path):
    path = write_sound(tmp_path / "a.mp3", tone(0.5, 44_100), codec="libmp3lame").rename(tmp_path / "a.jpg")
    query = Searcher(platform).file_query(str(path))
    assert query.role == "audio"
    message = refusal(PlatformError, lambda: Searcher(platform).search(query, "image/resnet50"))
    assert message == "image/resnet50 cannot encode audio; spaces that can: audio/whisper"


@pytest.mark.parametrize(
    ("key", "role", "content", "error", "parts"),
    [
        ("text/minilm", "text", b"\xff\xd8\xff\xe0\x00\x10JFIF", TypeError, ["text contents are str, not bytes"]),
        ("text/minilm", "image", "a.jpg", PlatformError, ["does not embed image; it embeds text", "choose a space"]),
        ("audio/whisper", "audio", np.zeros(9, np.float32), TypeError, ["audio contents are Sound, not ndarray"]),
        (
            "audio/whisper",
            "audio",
            Sound(np.zeros(44_100, np.float32), 44_100),
            ValueError,
            ["44100", "16000", "resample it to 16000 Hz"],
        ),
        (
            "audio/whisper",
            "audio",
            Sound(np.zeros(31 * 16_000, np.float32)),
            ValueError,
            ["31.00 s", "cut it into windows"],
        ),
    ],
)
def test_contents_of_another_kind_are_refused_by_the_encoder(platform, key, role, content, error, parts):
    encoder = platform.encoder(platform.space(key), for_queries=True)
    message = refusal(error, lambda: encoder.embed(role, [content]))
    for part in parts:
        assert part in message


def test_a_model_of_another_dimension_is_refused(tmp_path, folders):
    wrong = open_platform(tmp_path, models={"image/resnet50": str(folders("resnet"))})
    message = refusal(PlatformError, lambda: wrong.encoder(wrong.space("image/resnet50")))
    assert (
        "gives vectors of dimension 40, but the space is described with 256; name a model of dimension 256" in message
    )
