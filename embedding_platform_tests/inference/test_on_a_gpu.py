"""What only a CUDA device can show. Run with `pytest -m gpu`; skipped where there is none."""

import numpy as np
import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import LANES_PER_CUDA_DEVICE, load_encoder
from embedding_platform.inference.memory import is_out_of_memory
from embedding_platform.inference.precision import FLOORS, sample_contents
from embedding_platform.inference.stream import Embedded, embed_stream
from embedding_platform.records import Segment
from embedding_platform_tests.models.small_models import MINILM, cosines, describe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODELS = {
    "sentence_transformer": (384, "text"),
    "resnet": (40, "image"),
    "clip": (24, "image", "text"),
    "whisper": (48, "audio"),
    "perceiver": (32, "video"),
}


@pytest.fixture
def model_of(folders):
    def described(family):
        dimension, *roles = MODELS[family]
        return describe(family, MINILM if family == "sentence_transformer" else folders(family), dimension, *roles)

    return described


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", MODELS)
def test_the_vectors_are_those_of_the_cpu(model_of, family, precision):
    model = model_of(family)
    there = load_encoder(model, Execution("cuda", precision=precision))
    here = load_encoder(model, Execution("cpu", "torch"))
    assert (there.runtime, there.precision) == ("torch", precision)
    for role in model.roles:
        contents = sample_contents(role)
        found = cosines(there.embed(role, contents), here.embed(role, contents))
        assert found.min() >= FLOORS[precision].worst
        assert found.mean() >= FLOORS[precision].mean


def test_every_lane_of_every_device_gives_the_same_vectors(model_of):
    encoder = load_encoder(model_of("sentence_transformer"), Execution("cuda"))
    prepared = [encoder.prepare("text", content) for content in sample_contents("text")]
    vectors = [lane("text", prepared) for lane in encoder.lanes]
    assert len(vectors) == LANES_PER_CUDA_DEVICE * torch.cuda.device_count()
    for other in vectors[1:]:
        np.testing.assert_allclose(other, vectors[0], atol=1e-6)


def _stream(encoder, texts, budget):
    segments = [Segment(f"{n}", f"{n}", "", "", "text", 0, 0, 1, text, f"{n}") for n, text in enumerate(texts)]
    return list(embed_stream([segments], lambda group: (s.text for s in group), encoder, {"text": budget}))


def test_a_batch_that_does_not_fit_goes_on_in_smaller_ones(model_of):
    encoder = load_encoder(model_of("sentence_transformer"), Execution("cuda:0"))
    texts = [f"{n} harbour and moon " * 60 for n in range(600)]
    expected = _stream(encoder, texts, 4096)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info("cuda:0")
    blocked = torch.empty(free - 600 * 2**20, dtype=torch.uint8, device="cuda:0")
    try:
        found = _stream(encoder, texts, 600 * 256)
    finally:
        del blocked
        torch.cuda.empty_cache()
    assert [outcome.segment.path for outcome in found] == [f"{n}" for n in range(600)]
    assert all(isinstance(outcome, Embedded) for outcome in found)
    vectors, others = (np.stack([outcome.vector for outcome in outcomes]) for outcomes in (found, expected))
    assert cosines(vectors, others).min() > 0.9999


def test_what_cuda_says_when_memory_runs_out_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda:0")
    assert is_out_of_memory(caught.value)


def test_a_device_that_is_not_there_is_refused(model_of):
    with pytest.raises(PlatformError, match="device cuda:99 is not there"):
        load_encoder(model_of("resnet"), Execution("cuda:99"))
