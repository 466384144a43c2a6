"""Pictures: small whatever they show, safe whatever things are called, and a word where nothing can be drawn."""

import base64
import re
import xml.etree.ElementTree as ET
from io import BytesIO

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from embedding_platform.defs import pictures
from embedding_platform.defs.pictures import MOST_BYTES, Decoder, Drawing, plain, printable
from embedding_platform.reconcile.samples import Near
from embedding_platform.records import Segment, Sound, VideoClip
from embedding_platform.settings import DecodingSettings

HOSTILE_NAMES = (
    "](javascript:alert(1)) ![x](http://evil.example/x.png).png",
    "<script>alert(1)</script>&amp;.wav",
    "a|b`c`*d*_e_\\",
    "line\nbreak\r\n\ttab\x00\x0b\x1b[31m\u202e\ufffe\ud800.png",
    "www.evil.example user@evil.example https://evil.example",
    "x" * 4000,
    "\u0130\U0001f600" * 500,
    "",
)
NOISE = np.random.default_rng(0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def images_in(picture: dg.MetadataValue | str) -> list[tuple[str, bytes]]:
    """Kind and bytes of each image in some Markdown."""
    text = picture if isinstance(picture, str) else str(picture.value)
    found = re.findall(r"!\[[^\[\]]*\]\(data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)\)", text)
    return [(kind, base64.b64decode(payload)) for kind, payload in found]


def size_of(picture: dg.MetadataValue) -> int:
    return len(str(picture.value).encode())


def segment(role: str = "image", path: str = "a.png", **changes: object) -> Segment:
    usual = {"uri": f"/nowhere/{path}", "item_version": "v", "position": 0, "start": 0.0, "end": 0.0, "text": None}
    return Segment(segment_id="0" * 32, path=path, role=role, content_hash="c", **{**usual, **changes})


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(1, 1, "RGB"), (1, 30_000, "RGB"), (30_000, 1, "L"), (4000, 3000, "RGB"), (500, 500, "RGBA"), (64, 64, "P")],
)
def test_a_contact_sheet_is_small_whatever_it_shows(width: int, height: int, mode: str) -> None:
    image = noise(width, height, mode)
    drawings = [Drawing(f"{number}.png", image) for number in range(24)]
    sheet = pictures.new_segments(drawings)["contact_sheet"]
    assert size_of(sheet) < MOST_BYTES
    ((kind, payload),) = images_in(sheet)
    assert kind == "jpeg"
    shown = Image.open(BytesIO(payload))
    assert shown.width > 300, "still to be recognised"
    assert np.asarray(shown).std() > 0.1, "something is shown"


def test_a_contact_sheet_holds_all_images_in_their_order() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    drawings = [Drawing(f"{place}.png", Image.new("RGB", (50, 50), colour)) for place, colour in enumerate(colours)]
    sheet = pictures.new_segments(drawings)["contact_sheet"]
    ((_, payload),) = images_in(sheet)
    pixels = np.asarray(Image.open(BytesIO(payload))).astype(int)
    for place, colour in enumerate(colours):
        centre = pixels[48, place * 96 + 48]
        assert np.abs(centre - colour).max() < 12
    assert str(sheet.value).endswith(r"0\.png, 1\.png, 2\.png")


def test_key_frames_are_those_in_the_middle_of_clips() -> None:
    frames = np.zeros((16, 40, 60, 3), np.uint8)
    frames[8] = 255
    shown = pictures.new_segments([Drawing("a.mp4", VideoClip(frames, None))])
    assert set(shown) == {"key_frames"}
    ((_, payload),) = images_in(shown["key_frames"])
    assert np.asarray(Image.open(BytesIO(payload)))[48, 48].min() > 240


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        np.zeros(1, np.float32),
        np.full(16_000 * 30, np.nan, np.float32),
        np.array([np.inf, -np.inf, 3e38], np.float32),
        NOISE.uniform(-1, 1, 16_000 * 30).astype(np.float32),
    ],
    ids=["none", "one", "nan", "infinite", "noise"],
)
def test_waveforms_are_small_and_well_formed_whatever_they_show(samples: np.ndarray) -> None:
    drawings = [Drawing(name, Sound(samples)) for name in [*HOSTILE_NAMES] * 3]
    shown = pictures.new_segments(drawings)["waveforms"]
    assert size_of(shown) < MOST_BYTES
    ((kind, payload),) = images_in(shown)
    assert kind == "svg+xml"
    root = ET.fromstring(payload)
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert len(paths) == len(drawings)
    numbers = [float(number) for path in paths for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
    assert np.isfinite(numbers).all()
    assert max(numbers) <= 40 * len(drawings)


def test_a_loud_window_is_drawn_higher_than_a_quiet_one() -> None:
    wave = np.sin(np.linspace(0, 400, 16_000)).astype(np.float32)
    shown = pictures.new_segments([Drawing("loud", Sound(wave)), Drawing("quiet", Sound(wave / 10))])
    ((_, payload),) = images_in(shown["waveforms"])
    loud, quiet = (
        np.ptp([float(point.split()[1]) for point in re.split("[MLZ]", path.attrib["d"]) if point])
        for path in ET.fromstring(payload).findall("{http://www.w3.org/2000/svg}path")
    )
    assert loud > 25 > 5 > quiet


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: f"{len(name)}")
def test_names_are_shown_as_they_are_and_mean_nothing_to_markdown(name: str) -> None:
    shown = plain(name)
    assert "\n" not in shown
    assert len(re.sub(r"\\(?=[!-/:-@\[-`{-~])", "", shown)) <= pictures.MOST_CHARACTERS
    unescaped = re.sub(r"\\[!-/:-@\[-`{-~]", "", shown)
    assert not re.search(r"[!-/:-@\[-`{-~]", unescaped), "all punctuation is escaped"
    printable(name).encode()
    sheet = pictures.new_segments([Drawing(name, noise(9, 9)), Drawing(name, name), Drawing(name, None, name)])
    for picture in sheet.values():
        assert size_of(picture) < MOST_BYTES
        assert len(re.findall(r"(?<!\\)!\[", str(picture.value))) == len(images_in(picture)) <= 1


@pytest.mark.parametrize(
    "content",
    [
        noise(4000, 10),
        noise(3000, 3000),
        "words " * 9000,
        "\U0001f600|" * 5000,
        Sound(NOISE.uniform(-1, 1, 16_000 * 30).astype(np.float32)),
        VideoClip(NOISE.integers(0, 256, (3, 720, 1280, 3), dtype=np.uint8), None),
    ],
    ids=["thin image", "image", "words", "signs", "sound", "clip"],
)
def test_neighbours_are_a_small_table_whatever_they_show(content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "drawing", lambda self, one: Drawing(one.path, content))
    near = [Near("\u0130|<b>" * 300, segment(path="|" * 300), 0.5)] * 3
    rows = [(Near("one", segment(), 1.0), near)] * 3
    shown = pictures.neighbours(rows, Decoder("image", DecodingSettings()), "COSINE")["neighbours"]
    assert size_of(shown) < MOST_BYTES
    lines = str(shown.value).splitlines()
    assert len(lines) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    if not isinstance(content, str):
        assert len(images_in(shown)) == 12
    assert "nearest 3 (COSINE)" in lines[0]
    assert lines[2].count("**0.500**") == 3


def test_a_row_without_neighbours_keeps_its_place() -> None:
    one = Near("one", segment("text", "a.txt", text="alone"), 1.0)
    shown = pictures.neighbours([(one, [])], Decoder("text", DecodingSettings()), "IP")
    lines = str(shown["neighbours"].value).splitlines()
    assert lines[0].startswith("| row |")
    assert "alone" in lines[2]


def test_without_rows_there_is_no_table() -> None:
    assert pictures.neighbours([], Decoder("text", DecodingSettings()), "IP") == {}


@pytest.mark.parametrize(
    ("drawn", "word"),
    [
        (segment("image", "gone.png"), "cannot be drawn"),
        (segment("audio", "long.wav", start=121.0, end=150.0), "too far into its file"),
        (segment("video", "gone.mp4", end=2.0), "cannot be drawn"),
    ],
    ids=["image", "audio", "video"],
)
def test_what_cannot_be_decoded_shows_as_a_word(drawn: Segment, word: str) -> None:
    drawing = Decoder(drawn.role, DecodingSettings()).drawing(drawn)
    assert drawing.content is None
    shown = pictures.new_segments([drawing])
    assert set(shown) == {"not_drawn"}
    assert word in str(shown["not_drawn"].value)


@pytest.mark.parametrize("error", [MemoryError("much"), RuntimeError(""), OSError(5, "Input/output error"), KeyError()])
def test_no_failure_of_a_decoder_leaves_the_picture(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pictures, "read", fail)
    assert Decoder("image", DecodingSettings()).drawing(segment()).word.startswith("cannot be drawn")


def test_nothing_is_decoded_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "read", lambda *_: pytest.fail("decoded"))
    decoder = Decoder("image", DecodingSettings(), seconds=-1.0)
    assert "at most" in decoder.drawing(segment()).word


def test_a_map_has_a_dot_for_each_vector_in_the_colour_of_its_source() -> None:
    near, far = NOISE.normal(0, 0.01, (200, 64)), NOISE.normal(5, 0.01, (50, 64))
    shown = pictures.space_map({HOSTILE_NAMES[1]: near, "far": far})
    assert size_of(shown) < MOST_BYTES
    ((_, payload),) = images_in(shown)
    own, other = ET.fromstring(payload).findall("{http://www.w3.org/2000/svg}path")
    assert own.attrib["stroke"] != other.attrib["stroke"]
    across = [[float(point.split()[0]) for point in path.attrib["d"].split("M") if point] for path in (own, other)]
    assert [len(points) for points in across] == [200, 50]
    assert max(across[0]) + 100 < min(across[1]) or max(across[1]) + 100 < min(across[0])
    assert "<script>" not in payload.decode()


@pytest.mark.parametrize("vectors", [np.zeros((3, 4)), np.ones((500, 1)), np.full((3, 2048), 1e30)])
def test_a_map_of_vectors_that_are_all_alike_is_a_map(vectors: np.ndarray) -> None:
    padded = np.pad(vectors, ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    assert images_in(pictures.space_map({"one": padded}))


def test_the_same_vectors_give_the_same_map() -> None:
    vectors = NOISE.normal(size=(100, 32))
    assert pictures.space_map({"one": vectors}) == pictures.space_map({"one": vectors.copy()})


@pytest.mark.parametrize("values", [np.ones(1), np.ones(9), np.linspace(0, 1e6, 99), np.array([1e-12, 1.0])])
def test_a_histogram_counts_every_value(values: np.ndarray) -> None:
    shown = pictures.histogram(values, (0.999, 1.001), "norms")
    assert size_of(shown) < MOST_BYTES
    ((_, payload),) = images_in(shown)
    bars = [bar for bar in ET.fromstring(payload).iter() if bar.attrib.get("fill") == "#4f6bed"]
    assert len(bars) == pictures.BINS
    assert max(float(bar.attrib["height"]) for bar in bars) == 80
