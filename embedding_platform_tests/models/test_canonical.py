"""The vectors of the shipped models, pinned: whoever changes one of these values changes what is stored."""

import numpy as np
import pytest

from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.inference.precision import sample_contents
from embedding_platform.spaces import MODEL_SETS

MODELS = {space.key: space.model for space in MODEL_SETS["starter"]}

FIRST_VALUES = {
    ("text/minilm", "text"): [0.0058, -0.0159, -0.1266, 0.0736, 0.0313],
    ("image/resnet50", "image"): [0.0, 0.9625, 1.4097, 0.0, 1.2392],
    ("image/clip", "image"): [-1.8606, 1.5727, 0.3013, -0.9556, -4.2669],
    ("image/clip", "text"): [0.2769, 0.1986, 0.3212, -0.5245, -1.217],
    ("audio/whisper", "audio"): [1.3932, -0.4192, -1.3531, -0.822, 0.3693],
    ("video/perceiver", "video"): [0.4573, -0.6117, -4.728, 1.6699, -0.956],
}
"""Of the second sample of `inference.precision`, as the model gives it."""


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(("space", "role"), FIRST_VALUES)
def test_first_values_are_the_pinned_ones(space, role, runtime):
    encoder = load_encoder(MODELS[space], Execution("cpu", runtime))
    (vector,) = encoder.embed(role, sample_contents(role)[1:2])
    pinned = FIRST_VALUES[space, role]
    np.testing.assert_allclose(vector[: len(pinned)], pinned, rtol=1e-3, atol=2e-4)
