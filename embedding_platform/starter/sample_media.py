"""A sample media lake that the starter models understand, and questions with known answers.

Pictures, sounds and clips are drawn from held-out combinations of the procedural world and from
other seeds than training, so what the demo shows is not learned by heart. Files are named by
their class (`red-circle-007.png`), which no model sees; that makes answers checkable by eye and
in tests.
"""

import html
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from embedding_platform.starter import world
from embedding_platform.starter.pdf import pdf
from embedding_platform.storage import file_system, join, write_bytes

if TYPE_CHECKING:
    import av

MEDIA_SEED = 7001
QUERY_SEED = 7002

PICTURE_PIXELS = 256
CLIP_PIXELS = 128

TEXTS = (
    "handbook/what-embeddings-are.md",
    "handbook/cosine-similarity.md",
    "handbook/hnsw-index.pdf",
    "handbook/audio-windows.html",
    "handbook/lineage.txt",
    "handbook/incremental-processing.md",
    "handbook/backups.html",
    "handbook/kitchen/sourdough.txt",
    "handbook/garden/honeybees.md",
    "handbook/coast/lighthouses.html",
    "field-notes/volcanoes.md",
    "field-notes/tides.html",
    "field-notes/glaciers.txt",
)
"""Each is the article of that name in `prose/`, in the format that its suffix names."""

PICTURE_SUFFIXES = ("jpg", "png", "webp", "jpeg")
SOUND_SUFFIXES = ("wav", "flac", "mp3", "ogg", "m4a")
CLIP_SUFFIXES = ("mp4", "mkv", "webm", "mov")

_HIDDEN_PICTURES = world.split(world.pictures(), world.PICTURES_HELD_OUT)[1]
_HIDDEN_SOUNDS = world.split(world.sounds(), world.SOUNDS_HELD_OUT)[1]
_HIDDEN_CLIPS = world.split(world.clips(), world.CLIPS_HELD_OUT)[1]

PAIRS = tuple(
    (colour, world.SHAPES[(place + turn) % len(world.SHAPES)])
    for turn in (0, 2, 3)
    for place, colour in enumerate(world.COLOURS)
)[:20]
"""Colours and shapes of the sample pictures; the captioned ones hold each pair twice."""

TONES = tuple(sorted({(sound.kind, sound.band) for sound in _HIDDEN_SOUNDS}))[::2]
"""Kinds and pitch bands of the sample sounds."""

MOVES = tuple(sorted({(clip.motion, clip.colour) for clip in _HIDDEN_CLIPS}))[::4]
"""Movements and colours of the sample clips."""


@dataclass(frozen=True)
class Question:
    """A query with a known answer: `answer` is part of the best hit's file name.

    `query` is text, or for kind "file" a path below the folder of `make_sample_queries`.
    """

    modality: Literal["text", "image", "image_text", "audio", "video"]
    kind: Literal["text", "file"]
    query: str
    answer: str


def make_sample_media(root: str, seed: int = MEDIA_SEED) -> int:
    """Writes the sample media below a folder or fsspec URL and returns how many files it wrote.

    The same seed gives the same bytes. A file that already holds them is left alone, so a
    second call writes nothing, and a damaged or missing file is mended.

    Raises:
        PlatformError: if the root cannot be written.
    """
    written = _write(root, _texts())
    written += _write(root, _pictures(seed))
    written += _write(root, _captioned(seed))
    written += _write(root, _sounds(seed))
    return written + _write(root, _clips(seed))


def make_sample_queries(root: str, seed: int = QUERY_SEED) -> int:
    """Writes the query files of `SAMPLE_QUESTIONS`; see `make_sample_media`.

    The folder should lie outside the media root: what is asked should not be found by itself.
    """
    return _write(root, _query_files(seed))


def _texts() -> Iterator[tuple[str, bytes]]:
    for path in TEXTS:
        stem, suffix = path.rsplit("/", 1)[1].split(".")
        article = resources.files(__package__).joinpath("prose", f"{stem}.md").read_text(encoding="utf-8")
        yield path, _ARTICLE_FORMATS[suffix](article)


def _pictures(seed: int) -> Iterator[tuple[str, bytes]]:
    for number in range(60):
        colour, shape = PAIRS[number % len(PAIRS)]
        source = "shapes" if number < 52 else "field-notes"
        path = f"{source}/{colour}-{shape}-{number:03}.{_in_turn(PICTURE_SUFFIXES, number)}"
        yield path, _picture(colour, shape, path, seed)[1]


def _captioned(seed: int) -> Iterator[tuple[str, bytes]]:
    """Twenty-four pictures with a caption file each, and sixteen with one file of captions."""
    for number in range(24):
        colour, shape = PAIRS[number % len(PAIRS)]
        stem = f"captioned-shapes/{colour}-{shape}-{number:03}"
        path = f"{stem}.{_in_turn(PICTURE_SUFFIXES, number)}"
        caption, payload = _picture(colour, shape, path, seed)
        yield path, payload
        yield f"{stem}.txt", f"{caption}\n".encode()
    lines = []
    for number in range(24, 40):
        colour, shape = PAIRS[number % len(PAIRS)]
        name = f"{colour}-{shape}-{number:03}.{_in_turn(PICTURE_SUFFIXES, number)}"
        caption, payload = _picture(colour, shape, f"captioned-shapes/album/{name}", seed)
        yield f"captioned-shapes/album/{name}", payload
        lines.append(json.dumps({"file_name": name, "text": caption}))
    yield "captioned-shapes/album/captions.jsonl", ("\n".join(lines) + "\n").encode()


def _sounds(seed: int) -> Iterator[tuple[str, bytes]]:
    for number in range(40):
        kind, band = TONES[number % len(TONES)]
        source = "sounds" if number < 34 else "field-notes"
        path = f"{source}/{kind}-{band}-{number:03}.{_in_turn(SOUND_SUFFIXES, number)}"
        # Two recordings outlast the 30 s window of the model.
        seconds = {11: 45.0, 22: 70.0}.get(number)
        yield path, _sound(kind, band, path, seed, seconds)


def _clips(seed: int) -> Iterator[tuple[str, bytes]]:
    for number in range(24):
        motion, colour = MOVES[number % len(MOVES)]
        source = "clips" if number < 20 else "field-notes"
        yield _clip(source, motion, colour, number, seed)


def _query_files(seed: int) -> Iterator[tuple[str, bytes]]:
    for question in SAMPLE_QUESTIONS:
        if question.kind == "text":
            continue
        if question.modality == "image":
            colour, shape = question.answer.strip("-").split("-")
            yield question.query, _picture(colour, shape, question.query, seed)[1]
        elif question.modality == "audio":
            kind, band = question.answer.strip("-").rsplit("-", 1)
            yield question.query, _sound(kind, band, question.query, seed)
        else:
            motion, colour = question.answer.strip("-").rsplit("-", 1)
            yield question.query, _clip_payload(motion, colour, question.query, seed)[1]


def _write(root: str, files: Iterator[tuple[str, bytes]]) -> int:
    written = 0
    for path, payload in files:
        url = join(root, path)
        fs, place = file_system(url)
        if not fs.exists(place) or fs.cat_file(place) != payload:
            write_bytes(url, payload)
            written += 1
    return written


def _in_turn(values: Sequence[str], number: int) -> str:
    """One of the values; both instances of a class, `n` and `n + len(PAIRS)`, get different ones."""
    return values[(number + number // 10) % len(values)]


def _random(path: str, seed: int) -> np.random.Generator:
    """A generator of the file's own, so that no file depends on another."""
    return np.random.default_rng([seed, zlib.crc32(path.encode())])


def _picture(colour: str, shape: str, path: str, seed: int) -> tuple[str, bytes]:
    rng = _random(path, seed)
    fitting = [picture for picture in _HIDDEN_PICTURES if (picture.colour, picture.shape) == (colour, shape)]
    picture = world.on_any_background(fitting[rng.integers(len(fitting))], rng)
    caption = world.caption(picture, str(rng.choice(world.FULL_CAPTIONS)), rng)
    drawn = world.draw_picture(picture, PICTURE_PIXELS, rng)
    return caption, _encoded_picture(drawn, path.rsplit(".", 1)[1])


def _sound(kind: str, band: str, path: str, seed: int, seconds: float | None = None) -> bytes:
    rng = _random(path, seed)
    fitting = [sound for sound in _HIDDEN_SOUNDS if (sound.kind, sound.band) == (kind, band)]
    sound = fitting[rng.integers(len(fitting))]
    return _encoded_sound(world.make_sound(sound, seconds or rng.uniform(2, 7), rng), path.rsplit(".", 1)[1])


def _clip(source: str, motion: str, colour: str, number: int, seed: int) -> tuple[str, bytes]:
    suffix = _in_turn(CLIP_SUFFIXES, number)
    shape, payload = _clip_payload(motion, colour, f"{source}/{number}.{suffix}", seed, silent=number % 4 == 3)
    return f"{source}/{motion}-{colour}-{shape}-{number:03}.{suffix}", payload


def _clip_payload(motion: str, colour: str, path: str, seed: int, silent: bool = False) -> tuple[str, bytes]:
    """The shape that moves, and several turns of the motion as a file."""
    rng = _random(path, seed)
    fitting = [clip for clip in _HIDDEN_CLIPS if (clip.motion, clip.colour) == (motion, colour)]
    clip = fitting[rng.integers(len(fitting))]
    frames, sound = world.make_clip(clip, CLIP_PIXELS, rng)
    turns = int(rng.integers(4, 9))
    whole = None if silent else np.tile(sound, turns)
    return clip.shape, _encoded_clip(np.tile(frames, (turns, 1, 1, 1)), whole, path.rsplit(".", 1)[1])


def _encoded_picture(image: Image.Image, suffix: str) -> bytes:
    file = BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]
    image.save(file, kind, quality=90)
    return file.getvalue()


def _encoded_sound(wave: np.ndarray, suffix: str) -> bytes:
    import av

    container_format, codec, rate = {
        "wav": ("wav", "pcm_s16le", 16_000),
        "flac": ("flac", "flac", 16_000),
        "mp3": ("mp3", "libmp3lame", 16_000),
        "ogg": ("ogg", "libopus", 48_000),
        "m4a": ("ipod", "aac", 16_000),
    }[suffix]
    file = BytesIO()
    with av.open(file, "w", format=container_format, container_options={"fflags": "bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        container.mux(stream.encode(_audio_frame(wave, world.SOUND_SAMPLE_RATE)))
        container.mux(stream.encode(None))
    return file.getvalue()


def _encoded_clip(frames: np.ndarray, sound: np.ndarray | None, suffix: str) -> bytes:
    import av

    container_format, picture_codec, sound_codec = {
        "mp4": ("mp4", "libx264", "aac"),
        "mkv": ("matroska", "libx264", "libopus"),
        "webm": ("webm", "libvpx-vp9", "libopus"),
        "mov": ("mov", "libx264", "aac"),
    }[suffix]
    # One thread: with several, the bytes depend on the machine.
    options = {
        "libx264": {"crf": "18", "preset": "veryfast", "threads": "1"},
        "libvpx-vp9": {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "threads": "1"},
    }[picture_codec]
    file = BytesIO()
    with av.open(file, "w", format=container_format, container_options={"fflags": "bitexact"}) as container:
        pictures = container.add_stream(picture_codec, rate=world.FRAME_RATE, options=options)
        pictures.height, pictures.width = frames.shape[1:3]
        pictures.pix_fmt = "yuv420p"
        track = None
        if sound is not None:
            track = container.add_stream(sound_codec, rate=world.CLIP_SAMPLE_RATE)
            track.layout = "mono"
        for frame in frames:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode(None))
        if track is not None and sound is not None:
            container.mux(track.encode(_audio_frame(sound, world.CLIP_SAMPLE_RATE)))
            container.mux(track.encode(None))
    return file.getvalue()


def _audio_frame(wave: np.ndarray, rate: int) -> "av.AudioFrame":
    import av

    samples = np.round(wave * 32767).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate = rate
    return frame


def _as_text(article: str) -> bytes:
    return "\n".join(line.lstrip("# ") for line in article.splitlines()).encode() + b"\n"


def _as_html(article: str) -> bytes:
    title, *blocks = article.strip().split("\n\n")
    title = html.escape(title.lstrip("# "))
    body = "\n".join(
        f"<h2>{html.escape(block.lstrip('# '))}</h2>" if block.startswith("#") else f"<p>{html.escape(block)}</p>"
        for block in blocks
    )
    page = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body>\n<article>\n<h1>{title}</h1>\n{body}\n</article>\n</body>\n</html>\n"
    )
    return page.encode()


_ARTICLE_FORMATS: dict[str, Callable[[str], bytes]] = {"md": str.encode, "txt": _as_text, "html": _as_html, "pdf": pdf}

SAMPLE_QUESTIONS: tuple[Question, ...] = (
    Question("text", "text", "how do volcanoes erupt", "volcanoes"),
    Question("text", "text", "why is high water later every day", "tides"),
    Question("text", "text", "bread that rises without bought yeast", "sourdough"),
    Question("text", "text", "how do bees tell each other where the flowers are", "honeybees"),
    Question("text", "text", "the lens that sends a lamp's light out to sea", "lighthouses"),
    Question("text", "text", "what does a moraine show", "glaciers"),
    Question("text", "text", "searching a graph with several storeys for near vectors", "hnsw-index"),
    Question("text", "text", "how often should one practise restoring", "backups"),
    *(Question("image", "text", f"a {colour} {shape}", f"{colour}-{shape}-") for colour, shape in PAIRS),
    *(
        Question("image", "file", f"pictures/{number}.png", f"{colour}-{shape}-")
        for number, (colour, shape) in enumerate(PAIRS[5:9])
    ),
    *(
        Question("image_text", "text", f"a {colour} {shape}", f"{colour}-{shape}-")
        for colour, shape in (PAIRS[0], PAIRS[3], PAIRS[5], PAIRS[10])
    ),
    *(
        Question("audio", "file", f"sounds/{number}.wav", f"{kind}-{band}-")
        for number, (kind, band) in enumerate(TONES[1::4])
    ),
    *(
        Question("video", "file", f"clips/{number}.mp4", f"{motion}-{colour}-")
        for number, (motion, colour) in enumerate(MOVES[::4])
    ),
)
"""Questions that the demo asks and the end-to-end tests check."""
