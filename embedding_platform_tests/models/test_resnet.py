import numpy as np
import pytest

from embedding_platform.models.loading import load
from embedding_platform_tests.models.small_models import cosines, describe, make_images


@pytest.fixture(scope="module")
def encoder(folders):
    return load(describe("resnet", folders("resnet"), 40, "image"), device="cpu")


def by_hand(folder, images):
    """The classifier's own input: the hidden states of the last stage, averaged over the map."""
    import torch
    from transformers import AutoImageProcessor, ResNetForImageClassification

    network = ResNetForImageClassification.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        output = network(**pixels, output_hidden_states=True)
        pooled = output.hidden_states[-1].mean(dim=(2, 3))
        torch.testing.assert_close(network.classifier[1](pooled), output.logits)
    return pooled.numpy()


def test_embeds_what_the_classifier_sees(encoder, folders):
    vectors = encoder.embed("image", make_images())
    assert vectors.shape == (4, 40)
    assert vectors.dtype == np.float32
    assert cosines(vectors, by_hand(folders("resnet"), make_images())).min() > 0.99999


def test_reads_a_bare_model_as_well_as_a_classifier(encoder, folders, tmp_path):
    from transformers import AutoImageProcessor, ResNetModel

    ResNetModel.from_pretrained(folders("resnet")).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(folders("resnet")).save_pretrained(tmp_path)
    bare = load(describe("resnet", tmp_path, 40, "image"), device="cpu")
    np.testing.assert_array_equal(bare.embed("image", make_images()), encoder.embed("image", make_images()))


def test_a_vector_does_not_depend_on_its_batch(encoder):
    images = make_images()
    together = encoder.embed("image", images)
    alone = np.concatenate([encoder.embed("image", [image]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed("image", images))
    np.testing.assert_allclose(encoder.embed("image", images[::-1]), together[::-1], rtol=1e-4, atol=1e-5)


def test_empty_batch_and_cost(encoder):
    assert encoder.embed("image", []).shape == (0, 40)
    assert encoder.cost("image", make_images()[0]) == 1


def test_reduced_precision_stays_close(encoder, folders):
    reduced = load(describe("resnet", folders("resnet"), 40, "image"), "cpu", "bfloat16")
    vectors = reduced.embed("image", make_images())
    assert vectors.dtype == np.float32
    assert cosines(vectors, encoder.embed("image", make_images())).min() > 0.99


def test_resnet_50_at_full_size_gives_2048_values(tmp_path):
    import torch
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(7)
    ResNetForImageClassification(ResNetConfig()).save_pretrained(tmp_path)
    ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(tmp_path)
    vectors = load(describe("resnet", tmp_path, 2048, "image"), device="cpu").embed("image", make_images()[:2])
    assert vectors.shape == (2, 2048)
    assert cosines(vectors, by_hand(tmp_path, make_images()[:2])).min() > 0.99999
