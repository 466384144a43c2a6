import numpy as np
import torch

from embedding_platform.starter.recipes.run import CosineHead, fit, same_class_recall

VECTORS = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2]], np.float32)


def test_recall_counts_rows_whose_nearest_other_row_is_of_their_class() -> None:
    assert same_class_recall(VECTORS, ["a", "a", "b", "b", "a"]) == 1
    assert same_class_recall(VECTORS, ["a", "a", "b", "c", "a"]) == 1.0
    assert same_class_recall(VECTORS, ["a", "b", "a", "a", "a"]) == 0.5


def test_rows_of_one_combination_are_no_neighbours() -> None:
    classes, combinations = ["a", "a", "b", "b", "a"], [1, 1, 2, 2, 3]
    assert same_class_recall(VECTORS, classes, combinations) == 1
    assert same_class_recall(VECTORS, ["a", "b", "a", "b", "a"], [1, 1, 2, 2, 3]) == 0.4


def test_cosine_head_ignores_length() -> None:
    head = CosineHead(4, 3)
    vectors = torch.randn(5, 4)
    assert torch.allclose(head(vectors), head(7 * vectors), atol=1e-5)


def test_fit_finds_a_minimum() -> None:
    value = torch.nn.Parameter(torch.tensor([4.0]))
    fit("parabola", [value], lambda step: (value - 1).square().sum(), steps=300, rate=0.1)
    assert abs(value.item() - 1) < 0.1
