"""The rows that a source should have."""

import numpy as np

from embedding_platform_tests.inference.small_encoder import vector_of


def test_a_sample_names_the_path_of_each_vector(lake):
    vectors, paths = lake.live().sample(3)
    assert len(paths) == len(set(paths)) == 3
    for vector, path in zip(vectors, paths, strict=True):
        np.testing.assert_array_equal(vector, vector_of((lake.media / "one" / path).read_text()))
