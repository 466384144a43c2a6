"""A small world drawn from seeds: pictures of shapes, sounds by kind and pitch, moving clips.

The starter models are trained on it and the sample media come from it. A thing (`Picture`,
`Sound`, `Clip`) is a frozen description; drawing one takes a random generator for all that the
description leaves open (exact place, loudness, onset, noise), so one description has endless
instances. `split` parts the descriptions, never the instances: what is held out was never seen
in training in any instance.
"""

import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

Thing = TypeVar("Thing", "Picture", "Sound", "Clip")

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (215, 35, 35),
        "orange": (245, 140, 20),
        "yellow": (245, 225, 50),
        "green": (40, 165, 60),
        "cyan": (60, 205, 220),
        "blue": (40, 70, 215),
        "purple": (140, 50, 180),
        "pink": (250, 150, 200),
    }
)
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"grey": (128, 128, 128), "black": (15, 15, 15), "white": (245, 245, 245), "brown": (95, 65, 40)}
)
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES: Mapping[str, float] = MappingProxyType({"small": 0.095, "medium": 0.14, "large": 0.185})
"""Radius as a part of the picture's side."""

TEXTURES = ("plain", "striped", "dotted", "hollow")
POSITIONS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "top left": (0.23, 0.23),
        "top": (0.5, 0.23),
        "top right": (0.77, 0.23),
        "left": (0.23, 0.5),
        "centre": (0.5, 0.5),
        "right": (0.77, 0.5),
        "bottom left": (0.23, 0.77),
        "bottom": (0.5, 0.77),
        "bottom right": (0.77, 0.77),
    }
)
"""Centre of the shape as parts of the picture's width and height."""

FULL_CAPTIONS = (
    "a {size} {texture} {colour} {shape} at the {position} on a {background} background",
    "on a {background} background, a {size} {texture} {colour} {shape} at the {position}",
    "{colour} {shape}, {texture}, {size}, {position}, {background} background",
    "a picture of a {size} {texture} {colour} {shape} in the {position} on {background}",
    "at the {position} there is a {size} {colour} {shape}, {texture}, on {background}",
    "{size} {texture} {shape} in {colour} at the {position}, {background} background",
)
SHORT_CAPTIONS = (
    "a {colour} {shape}",
    "{colour} {shape}",
    "{colour} {shapes}",
    "a picture of a {colour} {shape}",
    "a {texture} {shape}",
    "a {colour} {texture} {shape}",
    "a {texture} {colour} {shape}",
    "a {size} {colour} {shape}",
    "a {size} {shape}",
    "a {shape}",
    "{shapes}",
    "something {colour}",
    "something {texture}",
    "a {shape} at the {position}",
    "a {colour} {shape} at the {position}",
    "a {colour} {shape} on a {background} background",
    "a {size} {texture} {colour} {shape}",
)
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "small": ("small", "small", "little", "tiny"),
        "medium": ("medium", "medium", "middling"),
        "large": ("large", "large", "big"),
        "plain": ("plain", "plain", "solid"),
        "striped": ("striped", "striped", "stripy"),
        "dotted": ("dotted", "dotted", "spotted"),
        "hollow": ("hollow", "hollow", "outlined"),
        "centre": ("centre", "centre", "middle", "center"),
        "grey": ("grey", "grey", "gray"),
    }
)

KINDS = ("sine", "square", "saw", "noise", "chirp-up", "chirp-down", "pulses", "plucked")
PITCH_BANDS: Mapping[str, float] = MappingProxyType({"deep": 110.0, "low": 260.0, "high": 620.0, "shrill": 1480.0})
"""Lowest pitch of a band in Hz. A band is `PITCH_STEPS` semitones wide, and a gap of as much follows."""

PITCH_STEPS = 8

MOTIONS = ("sideways", "up-and-down", "circling", "pulsing", "spinning", "blinking")
MOTION_FRAMES = 16
FRAME_RATE = 25
CLIP_SAMPLE_RATE = 48_000
CLIP_SAMPLES = MOTION_FRAMES * CLIP_SAMPLE_RATE // FRAME_RATE
"""A motion repeats after 16 frames at 25 fps, and its sound after 30,720 samples at 48 kHz: 0.64 s."""

SOUND_SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class HeldOut:
    """The part of the combinations that no model is trained on, between 0 and 1, and how it is drawn."""

    part: float
    seed: int


PICTURES_HELD_OUT = HeldOut(0.1, 20_261_121)
SOUNDS_HELD_OUT = HeldOut(0.25, 20_240_601)
CLIPS_HELD_OUT = HeldOut(0.25, 20_261_121)


@dataclass(frozen=True)
class Picture:
    """One coloured shape on a plain background."""

    colour: str
    shape: str
    size: str
    texture: str
    position: str
    background: str = "grey"


@dataclass(frozen=True)
class Sound:
    """One tone: its kind, its pitch band, and the semitone above the band's lowest pitch."""

    kind: str
    band: str
    step: int


@dataclass(frozen=True)
class Clip:
    """One coloured shape that moves, with a sound that follows the motion."""

    motion: str
    colour: str
    shape: str


def pictures() -> list[Picture]:
    """Every combination of colour, shape, size, texture and position, on grey: 5,184 of them."""
    return list(itertools.starmap(Picture, itertools.product(COLOURS, SHAPES, SIZES, TEXTURES, POSITIONS)))


def sounds() -> list[Sound]:
    """Every combination of kind, band and step: 256 of them."""
    return list(itertools.starmap(Sound, itertools.product(KINDS, PITCH_BANDS, range(PITCH_STEPS))))


def clips() -> list[Clip]:
    """Every combination of motion, colour and shape: 288 of them."""
    return list(itertools.starmap(Clip, itertools.product(MOTIONS, COLOURS, SHAPES)))


def split(things: Sequence[Thing], held_out: HeldOut) -> tuple[list[Thing], list[Thing]]:
    """Parts things into those trained on and the held-out ones; the same at every call.

    Args:
        things: all descriptions of one sort, in the order that `pictures`, `sounds` or `clips` gives.
        held_out: which part to hold out.
    """
    chosen = np.random.default_rng(held_out.seed).permutation(len(things))[: round(len(things) * held_out.part)]
    hidden = set(chosen.tolist())
    return (
        [thing for index, thing in enumerate(things) if index not in hidden],
        [thing for index, thing in enumerate(things) if index in hidden],
    )


def on_any_background(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture on a background drawn at random."""
    return replace(picture, background=str(rng.choice(list(BACKGROUNDS))))


def caption(picture: Picture, template: str, rng: np.random.Generator) -> str:
    """The template filled for the picture, with synonyms drawn at random."""
    words = {}
    for name in mentioned(template):
        value = getattr(picture, name)
        words[name] = str(rng.choice(SYNONYMS[value])) if value in SYNONYMS else value
    shapes = picture.shape + ("es" if picture.shape.endswith("s") else "s")
    text = template.format(**words, **({"shapes": shapes} if "{shapes}" in template else {}))
    return text.replace("a orange", "an orange").replace("a outlined", "an outlined")


def mentioned(template: str) -> tuple[str, ...]:
    """The attributes of a picture that a caption template tells."""
    names = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return tuple(name for name in Picture.__dataclass_fields__ if name in names or name + "s" in names)


def caption_words() -> list[str]:
    """Every word that a caption can hold, sorted, punctuation included."""
    words = {",", ".", "an", "the", "with", "and"}
    for template in FULL_CAPTIONS + SHORT_CAPTIONS:
        literal = "".join(text + " " for text, _, _, _ in string.Formatter().parse(template))
        words.update(literal.replace(",", " ").split())
    for values in (COLOURS, SHAPES, SIZES, TEXTURES, BACKGROUNDS, POSITIONS, *SYNONYMS.values()):
        words.update(word for value in values for word in value.split())
    words.update(shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES)
    return sorted(words)


def draw_picture(picture: Picture, pixels: int, rng: np.random.Generator) -> Image.Image:
    """One instance of the picture as an RGB image of `pixels` by `pixels`, antialiased."""
    side = 2 * pixels
    x, y = (place + rng.uniform(-0.02, 0.02) for place in POSITIONS[picture.position])
    radius = SIZES[picture.size] * rng.uniform(0.93, 1.07)
    background = _shade(BACKGROUNDS[picture.background], rng)
    colour = _shade(COLOURS[picture.colour], rng)
    outline = _outline(picture.shape, x, y, radius)
    mask = Image.new("L", (side, side))
    _fill(mask, picture.shape, outline, 255)
    if picture.texture == "hollow":
        _fill(mask, picture.shape, _outline(picture.shape, x, y, radius * 0.55), 0)
    surface = Image.new("RGB", (side, side), colour)
    if picture.texture in ("striped", "dotted"):
        _pattern(surface, picture.texture, (x, y), radius, _darker(colour))
    image = Image.new("RGB", (side, side), background)
    image.paste(surface, (0, 0), mask)
    return image.reduce(2)


def make_sound(sound: Sound, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One instance of the sound: float32 [seconds * 16,000] in [-1, 1], mono.

    Loudness, onset, background noise and a detuning of a fifth of a semitone are drawn at random.
    """
    samples = int(seconds * SOUND_SAMPLE_RATE)
    pitch = PITCH_BANDS[sound.band] * 2 ** ((sound.step + rng.uniform(-0.2, 0.2)) / 12)
    onset = int(rng.uniform(0, 0.1) * samples)
    tone = _tone(sound.kind, pitch, samples - onset, SOUND_SAMPLE_RATE, rng)
    fade = min(160, len(tone) // 4)
    tone[:fade] *= np.linspace(0, 1, fade)
    tone[-fade:] *= np.linspace(1, 0, fade)
    wave = rng.normal(0, 10 ** rng.uniform(-4, -2.3), samples)
    wave[onset:] += tone * rng.uniform(0.1, 0.7)
    return np.clip(wave, -1, 1).astype(np.float32)


def make_clip(clip: Clip, pixels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One instance of the clip: one turn of its motion, from a random phase.

    Returns:
        Frames uint8 [16, pixels, pixels, 3] RGB at 25 fps and the sound float32 [30,720] in
        [-1, 1] at 48 kHz, mono. Frames and sound repeat without a seam.
    """
    phase = rng.uniform()
    frames = _clip_frames(clip, pixels, phase, rng)
    return frames, _clip_sound(clip, phase, rng)


def _shade(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-7, 8, 3), 0, 255).tolist()
    return red, green, blue


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(0.3 * channel) for channel in colour)
    return red, green, blue


def _outline(shape: str, x: float, y: float, radius: float, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners of the shape as parts of the side; for a circle, the corners of its bounding box."""
    if shape == "circle":
        return [(x - radius, y - radius), (x + radius, y + radius)]
    corners = _CORNERS[shape]
    c, s = cos(turn) * radius, sin(turn) * radius
    return [(x + c * dx - s * dy, y + s * dx + c * dy) for dx, dy in corners]


def _regular(count: int, first: float, radii: Sequence[float]) -> list[tuple[float, float]]:
    """`count` corners around the origin from angle `first`, their radii taken in turn."""
    angles = [first + 2 * pi * index / count for index in range(count)]
    return [(radii[i % len(radii)] * cos(angle), radii[i % len(radii)] * sin(angle)) for i, angle in enumerate(angles)]


_ARM = 0.36
_CORNERS: Mapping[str, list[tuple[float, float]]] = MappingProxyType(
    {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": _regular(3, -pi / 2, (1.15,)),
        "diamond": [(0, -1.2), (0.8, 0), (0, 1.2), (-0.8, 0)],
        "star": _regular(10, -pi / 2, (1.2, 0.48)),
        "cross": [
            *((-_ARM, -1.05), (_ARM, -1.05), (_ARM, -_ARM), (1.05, -_ARM), (1.05, _ARM), (_ARM, _ARM)),
            *((_ARM, 1.05), (-_ARM, 1.05), (-_ARM, _ARM), (-1.05, _ARM), (-1.05, -_ARM), (-_ARM, -_ARM)),
        ],
    }
)


def _fill(mask: Image.Image, shape: str, outline: list[tuple[float, float]], value: int) -> None:
    side = mask.width
    points = [(a * side, b * side) for a, b in outline]
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse(points, fill=value)
    else:
        draw.polygon(points, fill=value)


def _pattern(
    surface: Image.Image, texture: str, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]
) -> None:
    """Draws the dark marks of a striped or dotted surface around the shape's centre."""
    side = surface.width
    x, y = centre[0] * side, centre[1] * side
    reach = 1.3 * radius * side
    draw = ImageDraw.Draw(surface)
    gap = max(0.075 * side, 0.45 * radius * side)
    steps = np.arange(-np.ceil(reach / gap), np.ceil(reach / gap) + 1) * gap
    if texture == "striped":
        for step in steps:
            draw.rectangle((x - reach, y + step - gap / 4, x + reach, y + step + gap / 4), fill=colour)
        return
    dot = 0.27 * gap
    for across, down in itertools.product(steps, steps):
        draw.ellipse((x + across - dot, y + down - dot, x + across + dot, y + down + dot), fill=colour)


def _harmonics(pitch: float, times: np.ndarray, rate: int, weights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A sum of sines at multiples of the pitch, below half the sample rate so that none aliases."""
    numbers = np.arange(1, min(24, max(1, int(0.45 * rate / pitch))) + 1)
    amplitudes = weights(numbers)
    wave = np.zeros_like(times)
    for number, amplitude in zip(numbers[amplitudes != 0], amplitudes[amplitudes != 0], strict=True):
        wave += amplitude * np.sin(2 * pi * pitch * number * times)
    return wave


def _tone(kind: str, pitch: float, samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A steady instance of the kind at about unit loudness: float64 [samples]."""
    times = np.arange(samples) / rate + rng.uniform(0, 1)
    if kind == "sine":
        return np.sin(2 * pi * pitch * times)
    if kind == "square":
        return _harmonics(pitch, times, rate, lambda n: np.where(n % 2 == 1, 1 / n, 0))
    if kind == "saw":
        return _harmonics(pitch, times, rate, lambda n: 0.6 / n)
    if kind == "noise":
        spectrum = np.fft.rfft(rng.normal(size=samples))
        frequencies = np.fft.rfftfreq(samples, 1 / rate)
        spectrum[np.abs(np.log2(np.maximum(frequencies, 1) / pitch)) > 0.25] = 0
        band = np.fft.irfft(spectrum, samples)
        return 0.7 * band / max(float(np.abs(band).max()), 1e-9)
    if kind in ("chirp-up", "chirp-down"):
        # One sweep of half an octave every 0.4 s around the pitch.
        place = (times / 0.4) % 1 if kind == "chirp-up" else 1 - (times / 0.4) % 1
        return np.sin(2 * pi * np.cumsum(pitch * 2 ** (0.6 * (place - 0.5))) / rate)
    if kind == "pulses":
        return np.sin(2 * pi * pitch * times) * ((times * 9) % 1 < 0.4)
    decay = np.exp(-6 * ((times / 0.5) % 1))
    return decay * _harmonics(pitch, times, rate, lambda n: 0.7 / n**1.3)


def _clip_frames(clip: Clip, pixels: int, phase: float, rng: np.random.Generator) -> np.ndarray:
    side = 2 * pixels
    background = _shade(BACKGROUNDS[str(rng.choice(("grey", "black", "white")))], rng)
    colour = _shade(COLOURS[clip.colour], rng)
    radius = rng.uniform(0.15, 0.22)
    x, y = rng.uniform(0.32, 0.68, 2)
    frames = np.empty((MOTION_FRAMES, pixels, pixels, 3), np.uint8)
    for index in range(MOTION_FRAMES):
        time = (phase + index / MOTION_FRAMES) % 1
        swing, turn = sin(2 * pi * time), cos(2 * pi * time)
        place_x = {"sideways": 0.5 + 0.3 * swing, "circling": 0.5 + 0.28 * turn}.get(clip.motion, x)
        place_y = {"up-and-down": 0.5 + 0.3 * swing, "circling": 0.5 + 0.28 * swing}.get(clip.motion, y)
        scale = 1 + 0.6 * swing if clip.motion == "pulsing" else 1.0
        angle = 2 * pi * time if clip.motion == "spinning" else 0.0
        image = Image.new("RGB", (side, side), background)
        if clip.motion != "blinking" or time % 0.5 < 0.25:
            mask = Image.new("L", (side, side))
            _fill(mask, clip.shape, _outline(clip.shape, place_x, place_y, radius * scale, angle), 255)
            surface = Image.new("RGB", (side, side), colour)
            # A dark bar from the centre outwards shows the turning even of a circle.
            reach = 1.3 * radius * scale
            bar = ((place_x, place_y), (place_x + reach * cos(angle), place_y + reach * sin(angle)))
            width = round(0.4 * radius * scale * side)
            ImageDraw.Draw(surface).line([(a * side, b * side) for a, b in bar], fill=_darker(colour), width=width)
            image.paste(surface, (0, 0), mask)
        frames[index] = np.asarray(image.reduce(2))
    return frames


def _clip_sound(clip: Clip, phase: float, rng: np.random.Generator) -> np.ndarray:
    """The sound of a clip: its colour decides the pitch, its motion how pitch and loudness move.

    Every pitch is a multiple of 25/16 Hz, the motion's own rate, so that the sound repeats
    without a seam.
    """
    times = (phase + np.arange(CLIP_SAMPLES) / CLIP_SAMPLES) % 1
    cycle = CLIP_SAMPLES / CLIP_SAMPLE_RATE
    cycles = round(220 * 2 ** (list(COLOURS).index(clip.colour) / 3) * cycle)
    swing = np.sin(2 * pi * times)
    bend = 0.06 if clip.motion == "up-and-down" else 0.0
    angle = 2 * pi * cycles * (np.arange(CLIP_SAMPLES) / CLIP_SAMPLES + bend * swing / (2 * pi))
    wave = np.sin(angle)
    if clip.motion in ("sideways", "circling"):
        wave = wave + np.sin(3 * angle) / 3
    loudness = {
        "sideways": 0.55 + 0.45 * swing,
        "circling": 0.55 + 0.45 * np.sin(2 * pi * 2 * times),
        "pulsing": (0.5 + 0.5 * swing) ** 2,
        "spinning": 0.55 + 0.45 * np.sin(2 * pi * 4 * times),
        "blinking": (times % 0.5 < 0.25).astype(float),
    }.get(clip.motion, np.ones(CLIP_SAMPLES))
    noise = rng.normal(0, 0.005, CLIP_SAMPLES)
    return np.clip(rng.uniform(0.2, 0.7) * wave * loudness + noise, -1, 1).astype(np.float32)
