"""Golden vectors: written once, compared ever after, with real models and with ones that go wrong in known ways."""

import dataclasses
import gc
import hashlib
import json
import weakref

import numpy as np
import pytest

from embedding_platform import layout, storage
from embedding_platform.errors import PlatformError, UnsoundError
from embedding_platform.inference import golden
from embedding_platform.inference.golden import GOLDEN, check_golden, golden_contents, golden_vectors
from embedding_platform.records import Sound
from embedding_platform.spaces import MODALITIES, MODEL_SETS, Model, Space
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.inference.small_encoder import DIMENSION, SmallEncoder

FINGERPRINT = "a" * 64
TEXTS = len(golden_contents("text"))


def space_of(modality: str = "text") -> Space:
    return Space(modality, "small", Model("small", "small", DIMENSION, MODALITIES[modality].roles, "", ""))


def kept(store) -> dict[str, list[float]]:
    table = storage.read_table(layout.golden_url(str(store), FINGERPRINT), GOLDEN)
    return dict(zip(table["input"].to_pylist(), table["vector"].to_pylist(), strict=True))


def check(encoder, store, space=None, **more):
    return check_golden(encoder, space or space_of(), str(store), FINGERPRINT, **more)


def moved_by(noise: float, only: str = "") -> SmallEncoder:
    """An encoder whose vectors lie `noise` away from those of SmallEncoder, for all texts or those that hold `only`."""
    away = np.random.default_rng(0).normal(size=DIMENSION).astype(np.float32)
    return SmallEncoder(spoil=lambda content, vector: vector + noise * away if only in content else vector)


@pytest.mark.parametrize("role", ["text", "image", "audio", "video"])
def test_the_inputs_are_the_same_every_time_and_unlike_each_other(role):
    first, second = golden_contents(role), golden_contents(role)
    names = [name for name, _ in first]
    assert names == [name for name, _ in second]
    assert len(set(names)) == len(names) >= 2


def test_the_inputs_are_those_that_stores_out_there_were_checked_with():
    # Another digest leaves every store's golden vectors without an input to compare: change it knowingly.
    names = [name for role in ("text", "image", "audio", "video") for name, _ in golden_contents(role)]
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "971567af3f4730f4"


def test_the_first_vectors_are_written_and_later_ones_compared(tmp_path):
    first = check(SmallEncoder(), tmp_path)
    assert (first.compared, first.worst_cosine, first.written) == (0, None, True)
    assert len(kept(tmp_path)) == TEXTS
    again = check(SmallEncoder(), tmp_path)
    assert (again.compared, again.written) == (TEXTS, False)
    assert again.worst_cosine == pytest.approx(1.0)


def test_a_process_asks_an_encoder_once(tmp_path):
    encoder = SmallEncoder()
    reports = {check(encoder, tmp_path) for _ in range(3)}
    assert len(reports) == 1
    assert encoder.embedded == TEXTS


def test_an_encoder_is_let_go_after_it_was_asked(tmp_path):
    encoder = SmallEncoder()
    check(encoder, tmp_path)
    remembered = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert remembered() is None


@pytest.mark.parametrize(
    ("runtime", "precision", "noise", "is_same"),
    [
        ("numpy", "float32", 0.0, True),
        ("numpy", "float32", 0.003, True),
        ("numpy", "float32", 0.02, False),
        ("numpy", "bfloat16", 0.02, True),
        ("numpy", "float16", 0.2, False),
        ("openai", "float32", 0.01, True),
        ("openai", "float32", 0.2, False),
    ],
)
def test_how_far_vectors_may_be_depends_on_what_computes_them(tmp_path, runtime, precision, noise, is_same):
    now = dataclasses.replace(moved_by(noise), runtime=runtime, precision=precision)
    check(dataclasses.replace(SmallEncoder(), runtime=runtime, precision=precision), tmp_path)
    before = kept(tmp_path)
    if is_same:
        assert check(now, tmp_path).compared == TEXTS
    else:
        with pytest.raises(UnsoundError, match=r"worst cosine 0\.\d{4}, of text ") as raised:
            check(now, tmp_path)
        numbers = raised.value.numbers
        assert (raised.value.check, numbers["compared"]) == ("golden", TEXTS)
        assert numbers["worst_cosine"] < numbers["floor"] < 1
        cosines = [float(one.rsplit(": ", 1)[1]) for one in raised.value.worst]
        assert cosines == sorted(cosines)
        assert cosines[0] == pytest.approx(numbers["worst_cosine"], abs=1e-5)
    assert kept(tmp_path) == before


def test_one_input_that_moved_is_named_with_the_version_that_changed_and_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "version", lambda name: "1.0" if name == "tokenizers" else "7.1")
    check(SmallEncoder(), tmp_path)
    monkeypatch.setattr(golden, "version", lambda name: "2.0" if name == "tokenizers" else "7.1")
    with pytest.raises(PlatformError) as caught:
        check(moved_by(0.5, only="Köln"), tmp_path)
    message = str(caught.value)
    assert message.startswith("text/small gives other vectors than on 20")
    assert 'of text "Grüße aus Köln, 数据 and n…"' in message
    assert message.endswith(
        "; tokenizers 1.0 then, 2.0 now; go back to what it was then, or set generations: {text/small: 1} to embed anew"
    )
    assert "\n" not in message


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (SmallEncoder(spoil=lambda content, vector: vector[:5], dimension=5), "dimension 5, before 8"),
        (SmallEncoder(spoil=lambda content, vector: vector * np.nan), "values that are not finite for text "),
        (SmallEncoder(spoil=lambda content, vector: vector * 0), "no vector any more of text "),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(tmp_path, now, said):
    check(SmallEncoder(), tmp_path)
    with pytest.raises(PlatformError, match=said):
        check(now, tmp_path)


def refuse_long(content) -> None:
    if len(content) > 200:
        raise ValueError("too long")


@pytest.mark.parametrize("where", ["refuse_early", "refuse"])
def test_what_a_model_refuses_is_left_out_but_not_what_it_took_before(tmp_path, where):
    picky = SmallEncoder(**{where: refuse_long})
    names, vectors = golden_vectors(picky, ["text"], normalised=True)
    assert len(names) == len(vectors) == TEXTS - 2
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)))

    check(picky, tmp_path)
    report = check(SmallEncoder(), tmp_path)
    assert (report.compared, report.written) == (TEXTS - 2, True)
    assert len(kept(tmp_path)) == TEXTS
    with pytest.raises(PlatformError, match="no vector any more of text "):
        check(SmallEncoder(**{where: refuse_long}), tmp_path)


def test_a_role_that_is_looked_at_later_gets_its_golden_vectors_then(tmp_path):
    space = space_of("image_text")
    assert check(SmallEncoder(), tmp_path, space, roles=["image"]).written
    images = len(kept(tmp_path))
    report = check(SmallEncoder(), tmp_path, space)
    assert (report.compared, report.written) == (images, True)
    assert len(kept(tmp_path)) == images + TEXTS


def test_other_inputs_than_those_before_are_not_compared(tmp_path, monkeypatch):
    space = space_of("audio")
    check(SmallEncoder(), tmp_path, space)
    before = len(kept(tmp_path))
    monkeypatch.setattr(golden, "_sounds", lambda: [Sound(np.ones(16_000, np.float32))])
    report = check(SmallEncoder(), tmp_path, space)
    assert (report.compared, report.written) == (before - 1, True)
    assert len(kept(tmp_path)) == before + 1


def test_golden_vectors_that_are_damaged_are_said_to_be(tmp_path):
    storage.write_bytes(layout.golden_url(str(tmp_path), FINGERPRINT), b"PAR1 nothing")
    with pytest.raises(PlatformError, match=r"cannot read .*golden"):
        check(SmallEncoder(), tmp_path)


class Coarse:
    """A network whose image library makes pictures smaller in another way."""

    def __init__(self, network) -> None:
        self._network = network

    def __getattr__(self, name: str):
        return getattr(self._network, name)

    def prepare(self, role, content, purpose):
        return self._network.prepare(role, content.resize((40, 40), 0), purpose)


def test_a_real_model_gives_its_golden_vectors_on_both_runtimes_and_a_broken_one_does_not(tmp_path):
    platform = open_platform(tmp_path)
    space = platform.space("image/clip")
    fingerprint = platform.fingerprint(space)
    platform.encoder(space, for_queries=True)
    url = layout.golden_url(platform.store, fingerprint)
    assert storage.read_bytes(url) is None, "a query leaves nothing behind"
    platform.encoder(space)
    assert storage.read_table(url, GOLDEN).num_rows == len(golden_contents("image"))
    on_torch = platform.encoder(space, for_queries=True)
    report = check_golden(on_torch, space, platform.store, fingerprint)
    assert (report.compared, report.written) == (len(golden_contents("image")), False)
    assert 0.9999 <= report.worst_cosine <= 1.0001

    with_words = check_golden(on_torch, space, platform.store, fingerprint, roles=space.model.roles)
    assert with_words.compared == report.compared
    table = storage.read_table(url, GOLDEN)
    assert table.num_rows == len(golden_contents("image")) + TEXTS
    assert {json.loads(made)["transformers"] for made in table["made_with"].to_pylist()}

    coarse = dataclasses.replace(on_torch, network=Coarse(on_torch.network))
    with pytest.raises(PlatformError, match=r"image/clip gives other vectors than on .*: worst cosine .* anew$"):
        check_golden(coarse, space, platform.store, fingerprint)


def test_a_generation_is_another_fingerprint():
    from embedding_platform.models import loading

    space = MODEL_SETS["starter"][0]
    assert len({loading.fingerprint(dataclasses.replace(space, generation=number)) for number in range(3)}) == 3
