import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DetrImageProcessorPil,
    PerceiverImageProcessorPil,
    ViTImageProcessorPil,
)

from embedding_platform.errors import PlatformError
from embedding_platform.models.pixels import preparation_of, read_preparation

PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "resnet": ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875, resample=3),
    "convnext from 384 on": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "square without a crop": ViTImageProcessorPil(),
    "larger than its crop": BitImageProcessorPil(size={"shortest_edge": 256}),
    "odd": CLIPImageProcessorPil(size={"shortest_edge": 63}, crop_size={"height": 48, "width": 41}, resample=1),
    "not square": CLIPImageProcessorPil(
        size={"height": 100, "width": 120}, crop_size={"height": 77, "width": 98}, resample=2
    ),
    "bytes as they are": CLIPImageProcessorPil(do_rescale=False, do_normalize=False),
    "only rescaled": CLIPImageProcessorPil(do_normalize=False),
    "perceiver": PerceiverImageProcessorPil(),
    "perceiver uncropped": PerceiverImageProcessorPil(do_center_crop=False),
}
SIZES = [
    (2, 3),
    (7, 5),
    (224, 224),
    (256, 256),
    (257, 300),
    (300, 257),
    (640, 480),
    (481, 641),
    (2003, 1501),
    (1000, 37),
    (37, 2001),
    (3000, 9),
    (9, 3000),
]


def drawn(width, height, seed=0):
    """Hard edges down to the pixel, where a filter overshoots, over a gradient."""
    rng = np.random.default_rng(seed)
    gradient = np.linspace(0, 90, width * height).reshape(height, width, 1)
    edges = (
        165 * rng.integers(0, 2, (height, width, 3)) * (np.indices((height, width)).sum(axis=0) % 90 < 60)[..., None]
    )
    return Image.fromarray((gradient + edges).astype(np.uint8))


def cosine(left, right):
    left, right = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    return left @ right / np.linalg.norm(left) / np.linalg.norm(right)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors(name, size):
    processor, image = PROCESSORS[name], drawn(*size)
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    preparation = preparation_of(processor, "here")
    pixels = preparation.prepare(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == preparation.input.shape == (*expected.shape[1:], 3)
    found = preparation.normalised()(torch.tensor(pixels)[None]).numpy()[0]
    levels = np.abs(found - expected) * np.array(preparation.std)[:, None, None] / preparation.scale
    assert levels.max() < 2.01
    assert (levels > 0.5).mean() < 0.03
    assert (levels > 1.5).mean() < 0.0001
    assert cosine(found, expected) > 0.99999


def test_normalising_is_float32_whatever_the_type_of_the_weights():
    preparation = preparation_of(PROCESSORS["clip"], "here")
    pixels = torch.tensor(preparation.prepare(drawn(300, 200)))[None]
    plain, reduced = preparation.normalised(), preparation.normalised().to(torch.bfloat16)
    assert reduced(pixels).dtype == torch.float32
    assert torch.equal(reduced(pixels), plain(pixels))


@pytest.mark.parametrize("name", ["perceiver", "clip"])
def test_frames_are_prepared_as_images_are(name):
    preparation = preparation_of(PROCESSORS[name], "here")
    frames = np.stack([np.asarray(drawn(60, 40, seed)) for seed in range(5)])
    prepared = preparation.prepare_frames(frames)
    assert prepared.shape == (5, 224, 224, 3)
    expected = PROCESSORS[name](images=list(frames), input_data_format="channels_last", return_tensors="np")
    clips = torch.tensor(prepared)[None]
    found = preparation.normalised()(clips).numpy()[0]
    assert cosine(found, expected["pixel_values"]) > 0.99999


def test_threads_side_by_side_prepare_the_same():
    preparation = preparation_of(PROCESSORS["resnet"], "here")
    images = [drawn(300 + 7 * seed, 240, seed) for seed in range(24)]
    alone = [preparation.prepare(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(preparation.prepare, images))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(
    ("published", "height"),
    [
        (
            {
                "crop_size": 224,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": 224,
            },
            224,
        ),
        (
            {
                "crop_pct": 0.875,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "ConvNextFeatureExtractor",
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "resample": 3,
                "size": 224,
            },
            224,
        ),
    ],
    ids=["openai/clip-vit-large-patch14", "microsoft/resnet-50"],
)
def test_reads_configurations_in_the_form_that_the_models_were_published_in(published, height, tmp_path):
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    preparation = read_preparation(str(tmp_path))
    assert (preparation.height, preparation.width) == (height, height)
    assert preparation.mean == tuple(published["image_mean"])
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = processor(images=[drawn(640, 400)], return_tensors="np")["pixel_values"][0]
    found = preparation.normalised()(torch.tensor(preparation.prepare(drawn(640, 400)))[None]).numpy()[0]
    assert cosine(found, expected) > 0.99999


class Framed(CLIPImageProcessorPil):
    def resize(self, image, size, resample=None, **kwargs):
        return image


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (CLIPImageProcessorPil(do_resize=False), "do_resize is off"),
        (CLIPImageProcessorPil(do_center_crop=False), "keep their aspect ratio"),
        (CLIPImageProcessorPil(size={"shortest_edge": 200}), "would be padded"),
        (CLIPImageProcessorPil(size={"shortest_edge": 224, "longest_edge": 400}), "size is"),
        (CLIPImageProcessorPil(size={"max_height": 224, "max_width": 400}), "size is"),
        (CLIPImageProcessorPil(resample=0), "resample is NEAREST"),
        (CLIPImageProcessorPil(do_pad=True), "do_pad is on"),
        (ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=1.2), "would be padded"),
        (ConvNextImageProcessorPil(size={"height": 224, "width": 224}), "size is"),
        (PerceiverImageProcessorPil(crop_size={"height": 200, "width": 200}), "would be padded"),
        (DetrImageProcessorPil(do_pad=False), "of its own"),
        (Framed(), "Framed has a resize of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_preparation_that_is_not_known_is_refused(processor, reason):
    with pytest.raises(PlatformError, match=reason) as refusal:
        preparation_of(processor, "models/somewhere")
    message = str(refusal.value)
    assert message.startswith("models/somewhere prepares images")
    assert "; name a model" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (Image.new("RGB", (5, 0)), "5 x 0 pixels"),
        (Image.new("L", (9, 9)), "mode L; convert it to RGB"),
        (Image.new("RGBA", (9, 9)), "mode RGBA; convert it to RGB"),
    ],
    ids=["no columns", "no rows", "grey", "transparent"],
)
def test_an_image_that_cannot_be_seen_is_refused(image, reason):
    with pytest.raises(ValueError, match=reason):
        preparation_of(PROCESSORS["clip"], "here").prepare(image)


def test_frames_without_pixels_are_refused():
    with pytest.raises(ValueError, match="hold nothing; leave the clip out"):
        preparation_of(PROCESSORS["perceiver"], "here").prepare_frames(np.empty((16, 0, 8, 3), np.uint8))
