"""A content's vector has the same bits whatever shares its stream, on every runtime, in every role."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.inference.precision import PrecisionRecord
from embedding_platform.inference.stream import Embedded, embed_stream
from embedding_platform.models.encoder import Encoder
from embedding_platform.records import Content, Segment
from embedding_platform.spaces import MODEL_SETS, Model, Role
from embedding_platform_tests import conftest
from embedding_platform_tests.models.small_models import (
    MINILM,
    TEXTS,
    describe,
    make_clips,
    make_images,
    make_sounds,
)

CONTENTS: dict[Role, list[Content]] = {
    "text": [*TEXTS, "harbour", *(" ".join(["tide"] * count) for count in (3, 13, 14, 253, 254))],
    "image": make_images(),
    "audio": make_sounds(),
    "video": make_clips(),
}
"""More than one batch of each; texts and sounds of several widths, and texts on both sides of their edges."""

BUDGETS: dict[Role, int] = {"text": 128, "image": 3, "audio": 2, "video": 2}

SMALL = [("resnet", 40, "image", ""), ("clip", 24, "image", ""), ("clip", 24, "text", "")]
SMALL += [("whisper", 48, "audio", ""), ("whisper", 48, "audio", "true_length"), ("perceiver", 32, "video", "")]

STARTER = [(space.key, role) for space in MODEL_SETS["starter"] for role in space.roles]

EXECUTIONS = [("torch", "float32"), ("openvino", "float32")]


@pytest.fixture
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("family", "dimension", "role", "pooling"), SMALL)
def test_small_models(one_thread, folders, execution, family, dimension, role, pooling):
    """On one thread: two share the rows of a matrix of odd width unevenly, and a row's bits follow its place."""
    model = replace(describe(family, folders(family), dimension, role), pooling=pooling)
    _check(model, execution, role)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("key", "role"), STARTER)
def test_starter_models(execution, key, role):
    (model,) = (space.model for space in MODEL_SETS["starter"] if space.key == key)
    _check(model, execution, role)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_reduced_precision(runtime):
    _check(describe("sentence_transformer", MINILM, 384, "text"), (runtime, "bfloat16"), "text")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("key", "role"), STARTER)
def test_on_a_gpu(key, role, precision):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    (model,) = (space.model for space in MODEL_SETS["starter"] if space.key == key)
    _check(model, ("torch", precision), role, "cuda:0")


def _check(model: Model, execution: tuple[str, str], role: Role, device: str = "cpu") -> None:
    """Whole, one by one, in other orders and in parts; lanes of one encoder and readers race as they do."""
    runtime, precision = execution
    encoder = load_encoder(
        model,
        Execution(device, runtime, precision, conftest.CACHE.name),  # type: ignore[arg-type]
        PrecisionRecord(conftest.CACHE.name + "/precision"),
    )
    places = range(len(CONTENTS[role]))
    whole = _embed(encoder, role, places)
    assert encoder.runtime == runtime
    assert sorted(whole) == [*places]
    for place in places:
        assert _embed(encoder, role, [place])[place] == whole[place], f"alone, {role} {place} has other bits"
    chance = random.Random(0)
    for count in (len(places), len(places) // 2):
        some = chance.sample(places, count)
        assert _embed(encoder, role, some) == {place: whole[place] for place in some}


def _embed(encoder: Encoder, role: Role, places: Sequence[int]) -> dict[int, bytes]:
    """The bytes of each content's vector, by its place in CONTENTS."""
    files = [[Segment(f"{place}", f"{place}", "", "", role, 0, 0, 1, "", f"{place}")] for place in places]
    outcomes = list(
        embed_stream(
            files, lambda group: (CONTENTS[role][int(one.path)] for one in group), encoder, {role: BUDGETS[role]}
        )
    )
    assert all(isinstance(one, Embedded) for one in outcomes), outcomes
    return {int(one.segment.path): one.vector.tobytes() for one in outcomes if isinstance(one, Embedded)}
