import dataclasses

import numpy as np
import pytest

from embedding_platform.starter import world

EVERYTHING = {
    "pictures": (world.pictures(), 5184),
    "sounds": (world.sounds(), 256),
    "clips": (world.clips(), 288),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_split_is_disjoint_whole_and_the_same_every_time(name: str) -> None:
    things, count = EVERYTHING[name]
    known, hidden = world.split(things, world.HeldOut(0.25, 1))
    assert len(set(things)) == count
    assert not set(known) & set(hidden)
    assert set(known) | set(hidden) == set(things)
    assert len(hidden) == count // 4
    assert world.split(things, world.HeldOut(0.25, 1)) == (known, hidden)


def test_one_seed_gives_one_picture_sound_and_clip() -> None:
    picture = world.Picture("red", "star", "large", "striped", "top left", "white")
    drawings = [np.asarray(world.draw_picture(picture, 64, np.random.default_rng(seed))) for seed in (1, 1, 2)]
    sounds = [world.make_sound(world.Sound("saw", "low", 3), 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    clips = [
        world.make_clip(world.Clip("sideways", "red", "star"), 32, np.random.default_rng(seed)) for seed in (1, 1, 2)
    ]
    for first, same, other in (drawings, sounds, [frames for frames, _ in clips], [sound for _, sound in clips]):
        assert np.array_equal(first, same)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("colour", world.COLOURS)
@pytest.mark.parametrize("position", ["top left", "centre", "bottom right"])
def test_picture_shows_its_colour_at_its_position(colour: str, position: str) -> None:
    picture = world.Picture(colour, "circle", "large", "plain", position, "black")
    pixels = np.asarray(world.draw_picture(picture, 64, np.random.default_rng(5))).astype(int)
    x, y = (round(64 * place) for place in world.POSITIONS[position])
    assert np.abs(pixels[y, x] - world.COLOURS[colour]).max() <= 8
    rows, columns = np.nonzero(pixels.max(-1) > 40)
    assert abs(rows.mean() - y) < 4
    assert abs(columns.mean() - x) < 4


@pytest.mark.parametrize("kind", world.KINDS)
@pytest.mark.parametrize("band", world.PITCH_BANDS)
def test_sound_is_finite_and_of_the_asked_length(kind: str, band: str) -> None:
    wave = world.make_sound(world.Sound(kind, band, 7), 0.7, np.random.default_rng(3))
    assert wave.dtype == np.float32
    assert wave.shape == (11_200,)
    assert np.isfinite(wave).all()
    assert 0.05 < np.abs(wave).max() <= 1


def test_sine_has_its_pitch() -> None:
    wave = world.make_sound(world.Sound("sine", "high", 5), 1.0, np.random.default_rng(3))
    heard = np.argmax(np.abs(np.fft.rfft(wave)))
    assert heard == pytest.approx(620 * 2 ** (5 / 12), rel=0.02)


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_clip_repeats_without_a_seam(motion: str) -> None:
    frames, sound = world.make_clip(world.Clip(motion, "yellow", "square"), 64, np.random.default_rng(8))
    assert frames.shape == (16, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert sound.shape == (30_720,)
    assert sound.dtype == np.float32
    moved = [np.abs(frames[index].astype(int) - frames[index - 1]).mean() for index in range(16)]
    assert max(moved) > 0.5


@pytest.mark.parametrize(
    ("motion", "across", "upwards"), [("sideways", True, False), ("up-and-down", False, True), ("circling", True, True)]
)
def test_shape_moves_as_its_motion_says(motion: str, across: bool, upwards: bool) -> None:
    frames, _ = world.make_clip(world.Clip(motion, "yellow", "square"), 64, np.random.default_rng(1))
    shown = np.abs(frames.astype(int) - np.median(frames, axis=(0, 1, 2))).max(-1) > 60
    centres = np.array([np.argwhere(frame).mean(axis=0) for frame in shown])
    up, right = np.ptp(centres, axis=0)
    assert (right > 20, up > 20) == (across, upwards)


def test_caption_tells_exactly_what_its_template_mentions() -> None:
    picture = world.Picture("orange", "cross", "small", "hollow", "bottom left", "grey")
    rng = np.random.default_rng(0)
    assert world.caption(picture, "a {colour} {shape}", rng) == "an orange cross"
    assert world.caption(picture, "{colour} {shapes}", rng) == "orange crosses"
    assert world.mentioned("{colour} {shapes}") == ("colour", "shape")
    assert set(world.mentioned(world.FULL_CAPTIONS[0])) == {field.name for field in dataclasses.fields(picture)}


def test_every_caption_is_within_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    words = set(world.caption_words())
    for picture in world.pictures()[::97]:
        for template in world.FULL_CAPTIONS + world.SHORT_CAPTIONS:
            assert set(world.caption(picture, template, rng).replace(",", " , ").split()) <= words
