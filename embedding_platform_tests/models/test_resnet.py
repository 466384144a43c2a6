import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.models import loading
from embedding_platform.reference import resnet50
from embedding_platform_tests.models.small_models import (
    centred,
    cosines,
    describe,
    make_images,
    read_images,
    save_photographs,
)

PLAIN = Execution("cpu", "torch", "float32")
RUNTIMES = ["torch", "openvino"]


@pytest.fixture(scope="module")
def encoder(folders):
    return load_encoder(describe("resnet", folders("resnet"), 40, "image"), PLAIN)


def by_hand(folder, images):
    """The classifier's own input: the hidden states of the last stage, averaged over the map."""
    import torch
    from transformers import AutoImageProcessor, ResNetForImageClassification

    network = ResNetForImageClassification.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        output = network(**pixels, output_hidden_states=True)
        pooled = output.hidden_states[-1].mean(dim=(2, 3))
        torch.testing.assert_close(network.classifier[1](pooled), output.logits)
    return pooled.numpy()


def test_embeds_what_the_classifier_sees(encoder, folders):
    vectors = encoder.embed("image", make_images())
    assert vectors.shape == (4, 40)
    assert vectors.dtype == np.float32
    assert cosines(vectors, by_hand(folders("resnet"), make_images())).min() > 0.9999


def test_reads_a_bare_model_as_well_as_a_classifier(encoder, folders, tmp_path):
    from transformers import AutoImageProcessor, ResNetModel

    ResNetModel.from_pretrained(folders("resnet")).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(folders("resnet"), backend="pil").save_pretrained(tmp_path)
    bare = load_encoder(describe("resnet", tmp_path, 40, "image"), PLAIN)
    np.testing.assert_array_equal(bare.embed("image", make_images()), encoder.embed("image", make_images()))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_vector_does_not_depend_on_its_batch(folders, runtime):
    pytest.importorskip(runtime)
    model = describe("resnet", folders("resnet"), 40, "image")
    encoder, images = load_encoder(model, Execution("cpu", runtime, "float32")), make_images()
    together = encoder.embed("image", images)
    alone = np.concatenate([encoder.embed("image", [image]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed("image", images))
    np.testing.assert_allclose(encoder.embed("image", images[::-1]), together[::-1], rtol=1e-4, atol=1e-5)


def test_what_travels_to_the_network_is_bytes(encoder):
    image = make_images()[1]
    prepared = encoder.prepare("image", image)
    assert list(prepared) == list(encoder.network.inputs("image")) == ["pixels"]
    assert prepared["pixels"].dtype == np.uint8
    assert prepared["pixels"].shape == encoder.network.inputs("image")["pixels"].shape == (64, 64, 3)
    assert encoder.cost("image", prepared) == 1
    assert encoder.embed("image", []).shape == (0, 40)
    assert encoder.maximum("image") == "any image, seen at 64 x 64 pixels"


def test_reduced_precision_stays_close(encoder, folders):
    reduced = load_encoder(
        describe("resnet", folders("resnet"), 40, "image"), Execution("cpu", "torch", "bfloat16")
    ).embed("image", make_images())
    assert reduced.dtype == np.float32
    assert cosines(reduced, encoder.embed("image", make_images())).min() > 0.99


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (b"\xff\xd8\xff", TypeError, "image contents are Image, not bytes"),
        (Image.new("RGB", (0, 4)), ValueError, "holds nothing; leave it out"),
        (Image.new("L", (9, 9)), ValueError, "convert it to RGB"),
    ],
    ids=["bytes", "no pixels", "grey"],
)
def test_what_is_no_rgb_image_is_refused(encoder, content, error, reason):
    with pytest.raises(error, match=reason):
        encoder.embed("image", [content])


def test_text_is_refused(encoder):
    with pytest.raises(PlatformError, match="does not embed text; it embeds image"):
        encoder.embed("text", ["a red circle"])


def test_weights_are_read_no_sooner_than_they_are_needed(folders, tmp_path):
    import shutil

    folder = shutil.copytree(folders("resnet"), tmp_path / "resnet")
    network = loading.read_network(describe("resnet", folder, 40, "image"))
    (folder / "model.safetensors").unlink()
    assert network.dimension == 40
    with pytest.raises(PlatformError, match="does not load"):
        network.module("image")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("photographs"), ((640, 480), (333, 500), (1024, 300), (224, 224)))


@pytest.fixture(scope="module")
def expected(full_size, photographs):
    embed = resnet50.article(str(full_size("resnet50")))
    return np.stack([embed(str(path)) for path in photographs])


@pytest.mark.proof
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_resnet_50_at_full_size_gives_the_articles_vectors(full_size, photographs, expected, runtime):
    pytest.importorskip(runtime)
    model = describe("resnet", full_size("resnet50"), 2048, "image")
    vectors = load_encoder(model, Execution("cpu", runtime, "float32")).embed("image", read_images(photographs))
    assert vectors.shape == (4, 2048)
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(centred(vectors), centred(expected)).min() > 0.999
    assert cosines(vectors, np.roll(expected, 1, axis=0)).max() < 0.99
