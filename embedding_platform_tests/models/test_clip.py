import shutil

import numpy as np
import pytest

from embedding_platform.models.loading import load
from embedding_platform_tests.models.small_models import TEXTS, cosines, describe, make_images


def model_of(folders):
    return describe("clip", folders("clip"), 24, "image", "text")


@pytest.fixture(scope="module")
def encoder(folders):
    return load(model_of(folders), device="cpu")


@pytest.fixture(scope="module")
def whole(folders):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folders("clip")).eval()


def test_image_tower_gives_get_image_features(encoder, whole, folders):
    import torch
    from transformers import AutoImageProcessor

    pixels = AutoImageProcessor.from_pretrained(folders("clip"))(images=make_images(), return_tensors="pt")
    with torch.no_grad():
        expected = whole.get_image_features(**pixels).pooler_output.numpy()
    vectors = encoder.embed("image", make_images())
    assert vectors.shape == (4, 24)
    assert vectors.dtype == np.float32
    assert cosines(vectors, expected).min() > 0.99999


def test_text_tower_gives_get_text_features_of_text_padded_to_77(encoder, whole, folders):
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folders("clip"))(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        expected = whole.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output.numpy()
    vectors = encoder.embed("text", TEXTS)
    assert vectors.shape == (len(TEXTS), 24)
    assert cosines(vectors, expected).min() > 0.99999


@pytest.mark.parametrize(("role", "batch"), [("image", make_images()), ("text", TEXTS)])
def test_a_vector_does_not_depend_on_its_batch(encoder, role, batch):
    together = encoder.embed(role, batch)
    alone = np.concatenate([encoder.embed(role, [content]) for content in batch])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed(role, batch))
    assert cosines(together[:1], together[2:3])[0] < 0.9999
    assert encoder.embed(role, []).shape == (0, 24)


def test_a_text_query_reads_the_text_tower_alone(folders, tmp_path):
    folder = shutil.copytree(folders("clip"), tmp_path / "clip")
    encoder = load(describe("clip", folder, 24, "image", "text"), device="cpu")
    encoder.embed("text", ["a red circle"])
    assert "text_tower" in vars(encoder)
    assert "image_tower" not in vars(encoder)


def test_width_is_the_models_where_a_tower_carries_the_default(encoder):
    assert encoder.image_tower.config.projection_dim == encoder.text_tower.config.projection_dim == 24


def test_cost_counts_tokens_up_to_the_longest_the_model_reads(encoder):
    assert [encoder.cost("text", text) for text in ("", "ab", "word " * 400)] == [2, 4, 77]
    assert encoder.cost("image", make_images()[0]) == 1


@pytest.mark.parametrize(("role", "batch"), [("image", make_images()), ("text", TEXTS)])
def test_reduced_precision_stays_close(encoder, folders, role, batch):
    reduced = load(model_of(folders), "cpu", "bfloat16").embed(role, batch)
    assert reduced.dtype == np.float32
    assert cosines(reduced, encoder.embed(role, batch)).min() > 0.995
