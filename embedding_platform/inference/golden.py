"""Golden vectors: what a model first gave for fixed inputs, compared with what it gives now.

A fingerprint covers the weights and our own code. It does not cover the libraries that run
them, nor the device: another version of transformers, tokenizers or Pillow, another default of
theirs, or a broken GPU gives other vectors under the same fingerprint. So does a model behind
a server, of which nothing can be seen but its vectors.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import pyarrow as pa

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.inference.precision import FLOORS, cosines, machine, sample_contents
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import SAMPLE_RATE, Content, Sound, VideoClip
from embedding_platform.spaces import Role, Space
from embedding_platform.vectors.judgement import normalise

SAME_MODEL = 0.999
"""Least cosine between two vectors of one text from one model behind a server: servers may batch and round."""

LIBRARIES = (
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "torch",
    "openvino",
    "numpy",
    "pillow",
    "openai",
)
"""Packages that stand between a content and its vector."""

GOLDEN = pa.schema(
    [
        ("input", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("made_at", pa.timestamp("us", tz="UTC")),
        ("made_with", pa.string()),
    ]
)
"""One row per fixed input; `made_with` is JSON: runtime, device and versions of LIBRARIES."""

_SHOWN_CHARACTERS = 24
_MOST_NAMED = 5

_compared: "WeakKeyDictionary[Encoder, dict[tuple[str, tuple[Role, ...]], GoldenReport]]" = WeakKeyDictionary()
"""What this process has found already; a model does not change while it is loaded."""


@dataclass(frozen=True)
class GoldenReport:
    """How many golden vectors were compared, and their worst cosine, None if there were none.

    `written` tells whether inputs without a golden vector got theirs, `floor` is the least cosine allowed.
    """

    compared: int
    worst_cosine: float | None
    written: bool
    floor: float


def check_golden(
    encoder: Encoder, space: Space, store: str, fingerprint: str, roles: Sequence[Role] | None = None
) -> GoldenReport:
    """Compare the encoder's vectors of fixed inputs with the first that this fingerprint gave, kept in the store.

    `roles` are those to look at: those that the space embeds, if none are named; a role that
    is only searched by is `space.model.roles` besides. Inputs that have no golden vector get
    theirs now, whole or not at all. A process asks an encoder once.

    The least cosine is that of `precision.FLOORS`, and SAME_MODEL for a model behind a server.

    Raises:
        PlatformError: if a vector is another, if the model refuses what it took before, or if
            it gives values that are not finite.
    """
    chosen = tuple(space.roles if roles is None else roles)
    url = layout.golden_url(store, fingerprint)
    reports = _compared.setdefault(encoder, {})
    if (url, chosen) not in reports:
        reports[url, chosen] = _compare(encoder, space, url, chosen)
    return reports[url, chosen]


def golden_vectors(encoder: Encoder, roles: Sequence[Role], normalised: bool) -> tuple[list[str], np.ndarray]:
    """Names of the fixed inputs of some roles, and their vectors, float32 [n, d].

    A content that the model refuses with ValueError is left out, and so is one whose vector is
    zero, since it has no direction. A name tells an input to people and ends in a digest of its
    content, so that vectors are compared only where the input is still the same.

    Raises:
        PlatformError: if the model gives values that are not finite.
    """
    names: list[str] = []
    vectors: list[np.ndarray] = [np.empty((0, encoder.dimension), np.float32)]
    for role in roles:
        taken = list(_taken(encoder, role))
        if not taken:
            continue
        found = np.concatenate([vector for _, vector in taken])
        for (name, _), vector in zip(taken, found, strict=True):
            if not np.isfinite(vector).all():
                raise PlatformError(
                    f"the model on {encoder.device} gives values that are not finite for {name}; "
                    "try another device, runtime or precision, or fetch the model again"
                )
        pointing = found.any(axis=1)
        names += [taken[place][0] for place in np.flatnonzero(pointing)]
        vectors.append(normalise(found[pointing]) if normalised else found[pointing])
    return names, np.concatenate(vectors).astype(np.float32)


def golden_contents(role: Role) -> list[tuple[str, Content]]:
    """The fixed inputs of a role by name: those that precision is measured with, and a few that libraries differ in."""
    contents = [*sample_contents(role), *{"text": _texts, "image": _images, "audio": _sounds, "video": list}[role]()]
    return [(_name(content), content) for content in contents]


def _taken(encoder: Encoder, role: Role) -> Iterator[tuple[str, np.ndarray]]:
    """Names and vectors [1, d] of the inputs that the model takes."""
    embed = partial(encoder.embed, role)
    named = []
    for name, content in golden_contents(role):
        with contextlib.suppress(ValueError):
            encoder.prepare(role, content)
            named.append((name, content))
    if not named:
        return
    try:
        vectors = embed([content for _, content in named])
    except ValueError:
        # A server tells only of a whole request that it does not take it.
        for name, content in named:
            with contextlib.suppress(ValueError):
                yield name, embed([content])
    else:
        yield from ((name, vector[None]) for (name, _), vector in zip(named, vectors, strict=True))


def _compare(encoder: Encoder, space: Space, url: str, roles: tuple[Role, ...]) -> GoldenReport:
    names, vectors = golden_vectors(encoder, roles, space.normalised)
    kept = storage.read_table(url, GOLDEN).to_pandas().set_index("input")
    if not kept.index.isin(names).all():
        _refuse_without(kept, names, encoder, space, roles)
    worst = None
    least = SAME_MODEL if encoder.runtime == "openai" else FLOORS[encoder.precision].worst
    shared = [name for name in names if name in kept.index]
    if shared:
        before = np.stack(kept.loc[shared, "vector"].to_list())
        now = vectors[[names.index(name) for name in shared]]
        if before.shape != now.shape:
            fault = f"dimension {now.shape[1]}, before {before.shape[1]}"
            raise UnsoundError(_difference(encoder, space, kept.loc[shared[0]], fault), check="golden")
        measured = cosines(before, now)
        place = int(measured.argmin())
        worst = float(measured[place])
        # Written so that a NaN fails.
        if not worst >= least:
            fault = f"worst cosine {worst:.4f}, of {shared[place]}, below {least}"
            raise UnsoundError(
                _difference(encoder, space, kept.loc[shared[place]], fault),
                check="golden",
                numbers={"compared": len(shared), "worst_cosine": worst, "floor": least},
                worst=[f"{shared[one]}: {measured[one]:.6f}" for one in measured.argsort()[:_MOST_NAMED]],
            )
    is_new = [name not in kept.index for name in names]
    if any(is_new):
        added = pd.DataFrame(
            {
                "vector": list(vectors[is_new]),
                "made_at": pd.Timestamp(datetime.now(UTC)),
                "made_with": json.dumps(_made_with(encoder)),
            },
            index=pd.Index([name for name, new in zip(names, is_new, strict=True) if new], name="input"),
        )
        whole = (pd.concat([kept, added]) if len(kept) else added).reset_index()
        storage.write_table(url, pa.Table.from_pandas(whole, GOLDEN, preserve_index=False))
    return GoldenReport(len(shared), worst, any(is_new), least)


def _refuse_without(
    kept: pd.DataFrame, names: Sequence[str], encoder: Encoder, space: Space, roles: Sequence[Role]
) -> None:
    """Refuse a model that gives no vector any more of an input that it had one of; other roles' inputs do not count."""
    inputs = [name for role in roles for name, _ in golden_contents(role)]
    lost = [name for name in inputs if name in kept.index and name not in names]
    if lost:
        fault = f"no vector any more of {lost[0]}"
        raise UnsoundError(_difference(encoder, space, kept.loc[lost].iloc[0], fault), check="golden", worst=lost)


def _difference(encoder: Encoder, space: Space, kept: pd.Series, fault: str) -> str:
    then, now = json.loads(kept["made_with"]), _made_with(encoder)
    changed = [
        f"{name} {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    anew = f"set generations: {{{space.key}: {space.generation + 1}}} to embed anew"
    if encoder.runtime == "openai":
        mend = f"the server has changed its model; name the one that made the vectors, or {anew}"
    elif changed:
        mend = f"{', '.join(changed)}; go back to what it was then, or {anew}"
    else:
        mend = f"runtime, device and versions are as they were; suspect the device, or {anew}"
    return f"{space.key} gives other vectors than on {kept['made_at']:%Y-%m-%d %H:%M} UTC: {fault}; {mend}"


def _made_with(encoder: Encoder) -> dict[str, str]:
    found = {"runtime": encoder.runtime.partition(" ")[0], "device": encoder.device}
    if encoder.runtime != "openai":
        found["machine"] = machine(encoder.device.partition(",")[0])
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _name(content: Content) -> str:
    if isinstance(content, str):
        shown = content if len(content) <= _SHOWN_CHARACTERS else f"{content[:_SHOWN_CHARACTERS]}…"
        name, payload = f'text "{shown}"', content.encode()
    elif isinstance(content, Sound):
        name, payload = f"sound of {len(content.samples) / content.rate:.1f} s", _rounded(content.samples)
    elif isinstance(content, VideoClip):
        height, width = content.frames.shape[1:3]
        sound = b"" if content.sound is None else _rounded(content.sound)
        name, payload = f"clip of {width}x{height}", content.frames.tobytes() + sound
    else:
        name, payload = f"image of {content.width}x{content.height}", content.tobytes()
    return f"{name} ({hashlib.sha256(payload).hexdigest()[:8]})"


def _rounded(samples: np.ndarray) -> bytes:
    """Samples in 16 bits: machines differ in the last bits of a sine."""
    return np.round(samples * 32_767).astype(np.int16).tobytes()


def _texts() -> list[Content]:
    return [
        "\ufb01ne \uff37\uff29\uff24\uff25 letters, e\u0301 in two parts, a\u00a0hard space and a soft\u00adhyphen",
        "東京は日本の首都です。 القاهرة عاصمة مصر. Москва, Αθήνα, ירושלים, दिल्ली",
        "🙂 👩\u200d👩\u200d👧 UPPER lower 1,234.50 https://example.org/a?b=c#d",
    ]


def _images() -> list[Content]:
    from PIL import Image

    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    wide = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 640), 90, np.uint8)], axis=-1)
    board = (np.indices((96, 64)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)
    return [Image.fromarray(wide), Image.fromarray(np.stack([board] * 3, axis=-1))]


def _sounds() -> list[Content]:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chirp = 0.5 * np.sin(2 * np.pi * (100 * time + 900 * time**2))
    return [Sound(chirp.astype(np.float32))]
