from pathlib import Path

import numpy as np
import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.models import loading
from embedding_platform.models.torchvision_resnet import to_transformers
from embedding_platform.reference import torchvision_resnet50
from embedding_platform_tests.models.small_models import (
    centred,
    cosines,
    describe,
    make_images,
    read_images,
    save_photographs,
)

PLAIN = Execution("cpu", "torch", "float32")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("photographs"), ((640, 480), (333, 500), (1024, 300), (224, 224)))


@pytest.fixture(scope="module")
def expected(full_size, photographs):
    embed = torchvision_resnet50.article(str(full_size("torchvision_resnet50")))
    return np.stack([embed(str(path)) for path in photographs])


def small_state(blocks=(2, 1, 3, 1)):
    torch.manual_seed(5)
    return torchvision_resnet50.ResNet(blocks, width=8).state_dict()


def save_state(folder: Path, state) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "resnet.pth")
    return folder


def published_by_hugging_face(folder, full_size, processor):
    """The full-size weights, saved as transformers' ResNetModel."""
    weights = full_size("torchvision_resnet50") / "resnet50.pth"
    to_transformers(torch.load(weights, weights_only=True), str(weights)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_encoder(describe("resnet", folder, 2048, "image"), PLAIN)


@pytest.mark.proof
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_resnet_50_at_full_size_gives_the_articles_vectors(full_size, photographs, expected, runtime):
    pytest.importorskip(runtime)
    model = describe("torchvision_resnet", full_size("torchvision_resnet50"), 2048, "image")
    vectors = load_encoder(model, Execution("cpu", runtime, "float32")).embed("image", read_images(photographs))
    assert vectors.shape == (4, 2048)
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(centred(vectors), centred(expected)).min() > 0.999
    assert cosines(vectors, np.roll(expected, 1, axis=0)).max() < 0.99


def test_both_publishers_give_one_vector_for_equal_weights_and_pixels(full_size, photographs, expected, tmp_path):
    from transformers import BitImageProcessorPil

    as_torchvision = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size=224, resample=2, image_mean=MEAN, image_std=STD
    )
    vectors = published_by_hugging_face(tmp_path, full_size, as_torchvision).embed("image", read_images(photographs))
    assert cosines(vectors, expected).min() > 0.9999


def test_the_publishers_own_preparations_differ_by_what_the_docstring_tells(full_size, photographs, expected, tmp_path):
    from transformers import ConvNextImageProcessorPil

    as_hugging_face = ConvNextImageProcessorPil(
        size={"shortest_edge": 224}, crop_pct=0.875, resample=3, image_mean=MEAN, image_std=STD
    )
    vectors = published_by_hugging_face(tmp_path, full_size, as_hugging_face).embed("image", read_images(photographs))
    assert 0.995 < cosines(vectors, expected).min() < 0.998


def test_depths_and_widths_come_from_the_weights(tmp_path):
    model = describe("torchvision_resnet", save_state(tmp_path, small_state()), 256, "image")
    images = make_images()
    vectors = load_encoder(model, PLAIN).embed("image", images)
    embed = torchvision_resnet50.ResNet((2, 1, 3, 1), width=8)
    embed.load_state_dict(small_state())
    cut = torch.nn.Sequential(*list(embed.children())[:-1]).eval()
    with torch.no_grad():
        by_hand = cut(torch.stack([torchvision_resnet50.transform(image) for image in images])).flatten(1).numpy()
    assert vectors.shape == (4, 256)
    assert cosines(vectors, by_hand).min() > 0.9999


def test_files_from_before_the_counters_of_batch_normalisation_load(tmp_path):
    state = {name: value for name, value in small_state().items() if not name.endswith("num_batches_tracked")}
    assert len(state) < len(small_state())
    old, new = (
        load_encoder(describe("torchvision_resnet", save_state(tmp_path / name, weights), 256, "image"), PLAIN)
        for name, weights in (("old", state), ("new", small_state()))
    )
    np.testing.assert_array_equal(old.embed("image", make_images()), new.embed("image", make_images()))


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("layer2.0.bn1.weight"), "1 missing, 0 unknown, 0 of another shape, encoder.stages.1.layers.0"),
        (lambda state: {**state, "layer5.weight": torch.ones(2)}, "0 missing, 1 unknown, 0 of .* layer5.weight"),
        (lambda state: {**state, "bn1.bias": torch.ones(3)}, "0 missing, 0 unknown, 1 of another shape, embedder"),
        (without("layer3.0.conv3.weight"), "layer3.0.conv3.weight is missing; name a folder with the state dict"),
        (lambda state: {"model": state}, "is no state dict"),
        (lambda state: [1, 2], "is no state dict"),
    ],
    ids=["missing", "unknown", "misshapen", "another architecture", "a checkpoint", "a list"],
)
def test_weights_of_another_kind_are_refused(tmp_path, change, reason):
    folder = save_state(tmp_path, change(small_state()))
    with pytest.raises(PlatformError, match=reason) as refusal:
        loading.read_network(describe("torchvision_resnet", folder, 256, "image")).module("image")
    assert "\n" not in str(refusal.value)


def test_a_file_cut_short_is_refused(tmp_path):
    path = save_state(tmp_path, small_state()) / "resnet.pth"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(PlatformError, match=r"is damaged or no state dict .*copy or download it again") as refusal:
        loading.read_network(describe("torchvision_resnet", tmp_path, 256, "image")).module("image")
    assert "\n" not in str(refusal.value)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    torch.save({"conv1.weight": Runs()}, tmp_path / "resnet.pth")
    with pytest.raises(PlatformError, match="is damaged or no state dict"):
        loading.read_network(describe("torchvision_resnet", tmp_path, 256, "image"))


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("the file was run",))


def test_one_file_of_weights_is_wanted(tmp_path):
    save_state(tmp_path, small_state())
    (tmp_path / "other.pth").write_bytes((tmp_path / "resnet.pth").read_bytes())
    with pytest.raises(PlatformError, match=r"holds 2 \*.pth files"):
        loading.read_network(describe("torchvision_resnet", tmp_path, 256, "image"))
