"""Pictures for the web UI: what is new, how vectors lie, and what lies near what.

A picture is Markdown with an image inside. It lies in Dagster's event log for good, so each takes
less than MOST_BYTES, whatever it shows. Names and texts are those of other people's files:
everything is escaped, and what cannot be drawn shows as a word.
"""

import base64
import html
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from embedding_platform.errors import PlatformError, first_line
from embedding_platform.media.cutting import read
from embedding_platform.reconcile.samples import Near
from embedding_platform.records import Content, Segment, Sound, VideoClip
from embedding_platform.settings import DecodingSettings
from embedding_platform.spaces import Metric

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 50_000
"""Of one picture, its Markdown and all."""

SECONDS = 3.0
"""No content is decoded for a picture once pictures have taken so long."""

MOST_SECONDS_INTO = 120.0
"""A window or clip that begins later is not decoded for a picture: all before it would have to be as well."""

CELL_PIXELS = 96
SMALL_CELL_PIXELS = 72
COLUMNS = 6
MOST_CHARACTERS = 160
"""Of a text that is shown."""

MOST_NAME_CHARACTERS = 40
MOST_LABEL_CHARACTERS = 64
"""Of a file's name, and of that with the seconds of a segment."""

BINS = 24
"""Of a histogram."""

WAVE_POINTS = 120
MOST_WAVE_POINTS = 1440
SMALL_WAVE_POINTS = 50
"""Of one sound, of all in one picture, and of one in a table."""

_QUALITIES = (80, 65, 50, 35, 20)
_SHRINK = 0.7
_ASCII_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_BLUE, _PALE = "#4f6bed", "#e8ebfd"


@dataclass(frozen=True)
class Drawing:
    """What is to be shown of a segment: its content, or the word that stands for it where there is none."""

    name: str
    content: "Content | None"
    word: str = ""


class Decoder:
    """Decodes segments to be shown, for SECONDS at most; one that cannot be decoded stops nothing."""

    def __init__(self, modality: str, limits: DecodingSettings, seconds: float = SECONDS) -> None:
        self._modality = modality
        self._limits = limits.model_copy(update={"max_seconds": min(limits.max_seconds, SECONDS)})
        self._until = time.monotonic() + seconds

    def drawing(self, segment: Segment) -> Drawing:
        """The segment decoded, or the word that stands for it."""
        name = label(segment)
        if segment.role == "text":
            return Drawing(name, segment.text or "")
        if segment.start > MOST_SECONDS_INTO:
            return Drawing(name, None, "too far into its file to be drawn")
        if time.monotonic() > self._until:
            return Drawing(name, None, f"not drawn: pictures take at most {SECONDS:g} s")
        try:
            return Drawing(name, next(iter(read(self._modality, [segment], self._limits))))
        except Exception as error:  # noqa: BLE001 - whatever a decoder does, a picture is not worth a run
            return Drawing(name, None, f"cannot be drawn: {first_line(error)}")


def label(segment: Segment) -> str:
    """The file's name, and the seconds that the segment has of it."""
    name = segment.path.rsplit("/", 1)[-1]
    if len(name) > MOST_NAME_CHARACTERS:
        name = f"{name[: MOST_NAME_CHARACTERS // 2]}…{name[-MOST_NAME_CHARACTERS // 2 :]}"
    return f"{name} {segment.start:.1f}-{segment.end:.1f} s" if segment.role in ("audio", "video") else name


def new_segments(drawings: Sequence[Drawing]) -> dict[str, dg.MetadataValue]:
    """Pictures of segments just cut, of each kind there is: images, key frames of clips, waveforms, texts."""
    pictures = {
        "contact_sheet": _sheet(drawings, lambda content: not isinstance(content, VideoClip), "new images"),
        "key_frames": _sheet(drawings, lambda content: isinstance(content, VideoClip), "key frames of new clips"),
        "waveforms": _waveforms([one for one in drawings if isinstance(one.content, Sound)]),
        "excerpts": _excerpts([one for one in drawings if isinstance(one.content, str)]),
        "not_drawn": _words([one for one in drawings if one.content is None]),
    }
    return {name: dg.MetadataValue.md(picture) for name, picture in pictures.items() if picture}


def neighbours(
    rows: Sequence[tuple[Near, Sequence[Near]]], decoder: Decoder, metric: Metric
) -> dict[str, dg.MetadataValue]:
    """A table: some rows, and beside each what search finds nearest to it, with its score under the metric.

    There is none without rows: the source may have been listed anew meanwhile.
    """
    if not rows:
        return {}
    columns = max(len(near) for _, near in rows)
    cells = len(rows) * (1 + columns)
    # What is left for one picture when all names and texts are as long as they may be.
    most = MOST_BYTES // cells - 6 * MOST_CHARACTERS
    lines = [
        "| row | " + " | ".join(f"nearest {place} ({metric})" for place in range(1, columns + 1)) + " |",
        "|---" * (1 + columns) + "|",
    ]
    for own, near in rows:
        shown = [_cell(decoder.drawing(own.segment), "", most)]
        for found in near:
            source = "" if found.source == own.source else f"{plain(found.source, MOST_NAME_CHARACTERS)}/"
            shown.append(_cell(decoder.drawing(found.segment), f"**{found.score:.3f}** {source}", most))
        lines.append("| " + " | ".join([*shown, *[""] * (1 + columns - len(shown))]) + " |")
    return {"neighbours": dg.MetadataValue.md("\n".join(lines))}


def histogram(values: np.ndarray, band: tuple[float, float], what: str) -> dg.MetadataValue:
    """How often values occur, with the band in which they are expected."""
    low, high = float(values.min()), float(values.max())
    margin = max((high - low) * 0.05, 1e-4)
    low, high = low - margin, high + margin
    counts, _ = np.histogram(values, bins=BINS, range=(low, high))

    def across(value: float) -> float:
        return 8 + 288 * min(max((value - low) / (high - low), 0.0), 1.0)

    begin, end = across(band[0]), across(band[1])
    body = [f'<rect x="{begin:.0f}" y="6" width="{end - begin:.0f}" height="84" fill="{_PALE}"/>']
    for place, count in enumerate(counts):
        height = 80 * count / counts.max()
        body.append(
            f'<rect x="{8 + 12 * place}" y="{90 - height:.1f}" width="11" height="{height:.1f}" fill="{_BLUE}"/>'
        )
    body.append(f'<text x="8" y="106">{low:.4f}</text><text x="240" y="106">{high:.4f}</text>')
    return dg.MetadataValue.md(_svg(304, 110, "".join(body), f"histogram of {what}"))


def space_map(sources: Mapping[str, np.ndarray]) -> dg.MetadataValue:
    """The first two principal components of vectors, float32 [n, d] by source: a dot each, coloured by source."""
    vectors = np.concatenate(list(sources.values())).astype(np.float64)
    points = _principal(vectors)
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    ends = np.cumsum([len(part) for part in sources.values()])
    body = []
    for place, (source, own) in enumerate(zip(sources, np.split(points, ends[:-1]), strict=True)):
        colour = f"hsl({360 * place // len(sources)},65%,45%)"
        dots = "".join(f"M{10 + 300 * x:.0f} {10 + 200 * y:.0f}h0" for x, y in own)
        body.append(f'<path d="{dots}" stroke="{colour}" stroke-width="6" stroke-linecap="round" opacity="0.7"/>')
        top = 16 + 16 * place
        name = html.escape(printable(source, MOST_NAME_CHARACTERS // 2))
        body.append(f'<circle cx="328" cy="{top - 4}" r="4" fill="{colour}"/><text x="338" y="{top}">{name}</text>')
    return dg.MetadataValue.md(_svg(480, 220, "".join(body), "map of a sample of the space"))


def undrawn(error: PlatformError) -> dg.MetadataValue:
    """The word in the place of a picture whose facts could not be had."""
    return dg.MetadataValue.md(f"cannot be drawn: {plain(str(error), 4 * MOST_CHARACTERS)}")


def plain(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text of other people as Markdown that shows it as it is, on one line, cut to so many characters."""
    return _ASCII_PUNCTUATION.sub(r"\\\1", printable(text, most))


def printable(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text on one line, cut to so many characters, each without a shape of its own as U+FFFD."""
    short = " ".join(text[: 4 * most].split())
    short = short if len(short) <= most else f"{short[: most - 1]}…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in short)


def _sheet(drawings: Sequence[Drawing], is_shown: Callable[[Content], bool], what: str) -> str:
    """One image of many, row by row, and below it their names in that order."""
    from PIL import Image

    shown = [
        (one.name, picture)
        for one in drawings
        if one.content is not None and is_shown(one.content) and (picture := _picture(one.content)) is not None
    ]
    if not shown:
        return ""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * CELL_PIXELS, rows * CELL_PIXELS), "white")
    for place, (_, picture) in enumerate(shown):
        small = _thumbnail(picture, CELL_PIXELS - 4)
        left = place % columns * CELL_PIXELS + (CELL_PIXELS - small.width) // 2
        sheet.paste(small, (left, place // columns * CELL_PIXELS + (CELL_PIXELS - small.height) // 2))
    names = ", ".join(plain(name, MOST_LABEL_CHARACTERS) for name, _ in shown)
    alt = f"contact sheet of {len(shown)} {what}"
    return f"{_image(sheet, alt, MOST_BYTES - len(names.encode()) - 2)}\n\n{names}"


def _picture(content: Content) -> "Image | None":
    """An image, or the frame in the middle of a clip."""
    from PIL import Image

    if isinstance(content, VideoClip):
        return Image.fromarray(np.ascontiguousarray(content.frames[len(content.frames) // 2]))
    return content if isinstance(content, Image.Image) else None


def _thumbnail(image: "Image", pixels: int) -> "Image":
    """At most so many pixels wide and high; a thin one keeps a pixel."""
    from PIL import Image

    scale = min(1.0, pixels / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BOX if scale < 0.1 else Image.Resampling.LANCZOS)


def _waveforms(drawings: Sequence[Drawing]) -> str:
    """A line for each sound, and its name."""
    if not drawings:
        return ""
    body = []
    points = min(WAVE_POINTS, MOST_WAVE_POINTS // len(drawings))
    for place, one in enumerate(drawings):
        top = 40 * place
        path = _wave(one.content, 240, 32, top + 4, points) if isinstance(one.content, Sound) else ""
        name = html.escape(printable(one.name, MOST_LABEL_CHARACTERS))
        body.append(f'{path}<text x="252" y="{top + 24}">{name}</text>')
    return _svg(520, 40 * len(drawings), "".join(body), f"waveforms of {len(drawings)} new windows")


def _wave(sound: Sound, width: int, height: int, top: int, points: int) -> str:
    """The highest and the lowest sample of each part of a sound, as an outline."""
    samples = np.clip(np.nan_to_num(sound.samples.astype(np.float64)), -1.0, 1.0)
    parts = np.array_split(samples, min(points, max(len(samples), 1)))
    peaks = np.array([[part.max(), part.min()] if len(part) else [0.0, 0.0] for part in parts])
    across = np.linspace(0, width, len(parts))
    down = top + height / 2 * (1 - peaks)
    there = [f"{x:.0f} {y:.0f}" for x, y in zip(across, down[:, 0], strict=True)]
    back = [f"{x:.0f} {y:.0f}" for x, y in zip(across[::-1], down[::-1, 1], strict=True)]
    return f'<path d="M{"L".join([*there, *back])}Z" fill="{_BLUE}" stroke="{_BLUE}"/>'


def _excerpts(drawings: Sequence[Drawing]) -> str:
    lines = [
        f"- **{plain(one.name, MOST_LABEL_CHARACTERS)}** {plain(one.content)}"
        for one in drawings
        if isinstance(one.content, str)
    ]
    return "\n".join(lines)


def _words(drawings: Sequence[Drawing]) -> str:
    return "\n".join(f"- **{plain(one.name, MOST_LABEL_CHARACTERS)}** {plain(one.word)}" for one in drawings)


def _cell(drawing: Drawing, score: str, most: int) -> str:
    """A segment in a table: picture, waveform, excerpt or word, and below it score and name."""
    name = f"{score}{plain(drawing.name, MOST_LABEL_CHARACTERS)}"
    if drawing.content is None:
        return f"{plain(drawing.word)} {name}"
    if isinstance(drawing.content, str):
        return f"“{plain(drawing.content)}” {name}"
    if isinstance(drawing.content, Sound):
        return f"{_svg(100, 40, _wave(drawing.content, 100, 36, 2, SMALL_WAVE_POINTS), 'waveform')} {name}"
    picture = _picture(drawing.content)
    if picture is None:
        return name
    return f"{_image(_thumbnail(picture, SMALL_CELL_PIXELS), 'picture', most)} {name}"


def _image(image: "Image", alt: str, most: int) -> str:
    """An image as Markdown of less than `most` bytes: of less quality, and then smaller, until it fits."""
    while True:
        for quality in _QUALITIES:
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=quality, optimize=True)
            markdown = f"![{alt}](data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()})"
            if len(markdown) < most:
                return markdown
        if max(image.size) == 1:
            return f"{alt}: too large to be shown"
        image = image.resize((max(1, int(image.width * _SHRINK)), max(1, int(image.height * _SHRINK))))


def _principal(vectors: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of vectors [n, d], always with the same signs."""
    centred = vectors - vectors.mean(axis=0)
    # Of the n by n products, which are fewer than the d by d ones of a small sample.
    values, components = np.linalg.eigh(centred @ centred.T)
    points = components[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0.0))
    largest = points[np.abs(points).argmax(axis=0), [0, 1]]
    return points * np.where(largest < 0, -1.0, 1.0)


def _svg(width: int, height: int, body: str, alt: str) -> str:
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>'
    )
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()})"
