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
    ("image/resnet50", "image"): [0.0, 1.6329, 0.5821, 0.0, 1.0233],
    ("image/clip", "image"): [-0.4377, 1.1373, 0.9605, -1.2868, -3.0716],
    ("image/clip", "text"): [0.2769, 0.1986, 0.3212, -0.5245, -1.217],
    ("audio/whisper", "audio"): [1.3831, -0.421, -1.321, -0.811, 0.3569],
    ("video/perceiver", "video"): [0.4573, -0.6125, -4.7308, 1.6719, -0.9561],
}
"""Of the second sample of `inference.precision`, as the model gives it."""


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(("space", "role"), FIRST_VALUES)
def test_first_values_are_the_pinned_ones(space, role, runtime):
    encoder = load_encoder(MODELS[space], Execution("cpu", runtime))
    (vector,) = encoder.embed(role, sample_contents(role)[1:2])
    pinned = FIRST_VALUES[space, role]
    np.testing.assert_allclose(vector[: len(pinned)], pinned, rtol=1e-3, atol=2e-4)
