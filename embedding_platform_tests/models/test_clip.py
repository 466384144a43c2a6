import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.models import loading
from embedding_platform.reference import clip
from embedding_platform_tests.models.small_models import (
    TEXTS,
    cosines,
    describe,
    make_images,
    read_images,
    save_photographs,
)

PLAIN = Execution("cpu", "torch", "float32")
RUNTIMES = ["torch", "openvino"]


def model_of(folder):
    return describe("clip", folder, 24, "image", "text")


@pytest.fixture(scope="module")
def encoder(folders):
    return load_encoder(model_of(folders("clip")), PLAIN)


@pytest.fixture(scope="module")
def whole(folders):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folders("clip")).eval()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_image_tower_gives_get_image_features(folders, whole, runtime):
    import torch
    from transformers import AutoImageProcessor

    pytest.importorskip(runtime)
    processor = AutoImageProcessor.from_pretrained(folders("clip"), backend="pil")
    with torch.no_grad():
        pixels = processor(images=make_images(), return_tensors="pt")
        expected = whole.get_image_features(**pixels).pooler_output.numpy()
    encoder = load_encoder(model_of(folders("clip")), Execution("cpu", runtime, "float32"))
    vectors = encoder.embed("image", make_images())
    assert vectors.shape == (4, 24)
    assert vectors.dtype == np.float32
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(vectors, np.roll(expected, 1, axis=0)).max() < 0.999


def padded_to_77(folder, whole, texts):
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        return whole.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output.numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], TEXTS[1:2], [], ["a red circle", "one of <|endoftext|> many"]])
def test_text_tower_gives_get_text_features_of_text_padded_to_77(folders, whole, runtime, texts):
    pytest.importorskip(runtime)
    encoder = load_encoder(model_of(folders("clip")), Execution("cpu", runtime, "float32"))
    vectors = encoder.embed("text", texts)
    assert vectors.shape == (len(texts), 24)
    if texts:
        expected = padded_to_77(folders("clip"), whole, texts)
        assert cosines(vectors, expected).min() > 0.9999
        assert len(texts) == 1 or cosines(vectors, np.roll(expected, 1, axis=0)).max() < 0.999


@pytest.mark.parametrize("padding", ["!", "<|endoftext|>"])
def test_the_end_of_text_is_found_as_in_the_first_published_configurations(folders, tmp_path, padding):
    """Those name 2 as the end token, and transformers then takes the highest one."""
    from transformers import AutoTokenizer, CLIPModel

    folder = shutil.copytree(folders("clip"), tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token=padding)
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(model_of(folder), PLAIN)
    assert encoder.network.inputs("text")["input_ids"].padding == tokenizer.convert_tokens_to_ids(padding)
    expected = padded_to_77(folder, CLIPModel.from_pretrained(folder).eval(), TEXTS)
    assert cosines(encoder.embed("text", TEXTS), expected).min() > 0.9999


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("role", "batch"), [("image", make_images()), ("text", TEXTS)])
def test_a_vector_does_not_depend_on_its_batch(folders, role, batch, runtime):
    pytest.importorskip(runtime)
    encoder = load_encoder(model_of(folders("clip")), Execution("cpu", runtime, "float32"))
    together = encoder.embed(role, batch)
    alone = np.concatenate([encoder.embed(role, [content]) for content in batch])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed(role, batch))
    assert cosines(together[:1], together[2:3])[0] < 0.9999
    assert encoder.embed(role, []).shape == (0, 24)


@pytest.mark.parametrize(("kept", "other", "role"), [("text", "vision", "text"), ("vi", "text", "image")])
def test_a_tower_runs_where_the_others_weights_are_not_even_there(folders, tmp_path, encoder, kept, other, role):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(folders("clip"), tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if name.startswith(kept)}, folder / "model.safetensors")
    alone = load_encoder(model_of(folder), PLAIN)
    contents = {"text": TEXTS, "image": make_images()}
    np.testing.assert_array_equal(
        alone.embed(role, contents[role]),
        encoder.embed(role, contents[role]),
    )
    (lacking,) = {"text", "image"} - {role}
    with pytest.raises(PlatformError, match=f"does not hold the weights of CLIP{other.title()}ModelWithProjection"):
        alone.embed(lacking, contents[lacking])


def test_width_is_the_models_where_a_tower_carries_the_default(folders):
    network = loading.read_network(model_of(folders("clip")))
    assert network.config.text_config.projection_dim == network.config.vision_config.projection_dim == 512
    assert network.dimension == 24
    for role in network.roles:
        assert network.module(role).tower.config.projection_dim == 24


def test_text_is_cut_at_the_longest_that_the_model_reads_and_keeps_its_end(encoder):
    prepared = [encoder.prepare("text", text) for text in ("", "ab", "word " * 400)]
    assert [len(one["input_ids"]) for one in prepared] == [2, 4, 77]
    assert [encoder.cost("text", one) for one in prepared] == [16, 16, 77]
    assert {one["input_ids"][-1] for one in prepared} == {encoder.network.tokenizer.eos_token_id}
    assert {one["input_ids"].dtype for one in prepared} == {np.dtype("int64")}
    assert encoder.cost("image", encoder.prepare("image", make_images()[0])) == 1
    assert encoder.maximum("text") == "77 tokens"
    assert encoder.maximum("image") == "any image, seen at 32 x 32 pixels"


def test_threads_side_by_side_prepare_the_same(folders):
    network = loading.read_network(model_of(folders("clip")))
    texts = [f"text {number} " * (number % 50) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: network.prepare("text", text, "document")["input_ids"].tolist(), texts))
    assert together == [network.prepare("text", text, "document")["input_ids"].tolist() for text in texts]


@pytest.mark.parametrize(("role", "batch"), [("image", make_images()), ("text", TEXTS)])
def test_reduced_precision_stays_close(encoder, folders, role, batch):
    reduced = load_encoder(model_of(folders("clip")), Execution("cpu", "torch", "bfloat16")).embed(role, batch)
    assert reduced.dtype == np.float32
    assert cosines(reduced, encoder.embed(role, batch)).min() > 0.995


@pytest.mark.parametrize(
    ("role", "content", "error", "reason"),
    [
        ("image", b"\xff\xd8\xff", TypeError, "image contents are Image, not bytes"),
        ("text", b"a red circle", TypeError, "text contents are str, not bytes"),
        ("text", make_images()[0], TypeError, "text contents are str, not Image"),
        ("image", Image.new("RGB", (0, 4)), ValueError, "holds nothing; leave it out"),
        ("image", Image.new("RGBA", (9, 9)), ValueError, "convert it to RGB"),
        ("audio", "a red circle", PlatformError, "does not embed audio; it embeds image and text"),
    ],
    ids=["bytes of an image", "bytes of text", "an image as text", "no pixels", "transparent", "sound"],
)
def test_wrong_contents_are_refused(encoder, role, content, error, reason):
    with pytest.raises(error, match=reason):
        encoder.embed(role, [content])


def test_a_processor_that_does_not_fit_the_image_tower_is_refused(folders, tmp_path):
    from transformers import CLIPImageProcessorPil

    folder = shutil.copytree(folders("clip"), tmp_path / "clip")
    CLIPImageProcessorPil().save_pretrained(folder)
    with pytest.raises(PlatformError, match="prepares images of 224 x 224 pixels, but its image tower takes 32 x 32; "):
        loading.read_network(model_of(folder))


def test_a_tokenizer_without_padding_is_refused(folders, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(folders("clip"), tmp_path / "clip")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(PlatformError, match="without a padding token; save the model's own tokenizer there"):
        loading.read_network(model_of(folder))


FULL_SIZE_TEXTS = ["A red circle.", "", "Grüße aus Köln: naïve café", "a boat on the sand " * 9]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return save_photographs(tmp_path_factory.mktemp("photographs"), ((640, 480), (333, 500)))


@pytest.fixture(scope="module")
def expected(full_size, photographs):
    """The article's vectors of each role."""
    folder = str(full_size("clip"))
    embed_image, embed_text = clip.article_image(folder), clip.article_text(folder)
    return {
        "image": np.stack([embed_image(str(path)) for path in photographs]),
        "text": np.stack([embed_text(text) for text in FULL_SIZE_TEXTS]),
    }


@pytest.mark.proof
@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=pytest.mark.long)])
@pytest.mark.parametrize("role", ["text", "image"])
def test_vit_l_14_at_full_size_gives_the_articles_vectors(full_size, photographs, expected, role, runtime):
    pytest.importorskip(runtime)
    network = describe("clip", full_size("clip"), 768, "image", "text")
    contents = FULL_SIZE_TEXTS if role == "text" else read_images(photographs)
    vectors = load_encoder(network, Execution("cpu", runtime, "float32")).embed(role, contents)
    assert vectors.shape == (len(contents), 768)
    assert cosines(vectors, expected[role]).min() > 0.9999
    assert cosines(vectors, np.roll(expected[role], 1, axis=0)).max() < 0.99
