import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.media.cutting import Cutting, cut, read
from embedding_platform.models.loading import read_network, resolve
from embedding_platform.records import Item
from embedding_platform.reference import sentence_transformer as reference
from embedding_platform_tests.models.small_models import (
    MINILM,
    TEXTS,
    centred,
    cosines,
    describe,
    save_sentence_transformer,
)

TORCH = Execution("cpu", "torch")

PUBLISHED = (0.0677, 0.0635, 0.0487, 0.0793)
"""What public examples print for all-MiniLM-L6-v2 and the sentence of its model card."""


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(describe("sentence_transformer", MINILM, 384, "text"), TORCH)


def by_hand(texts: list[str]) -> np.ndarray:
    """The model card's own recipe: mean of the token states, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

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


def test_cost_counts_the_tokens_that_a_text_is_padded_to_and_no_more_than_the_model_reads(encoder):
    assert encoder.maximum("text") == "256 tokens"
    prepared = [encoder.prepare("text", text) for text in ("", "hello world", "word " * 250, "word " * 400)]
    assert [len(one["input_ids"]) for one in prepared] == [2, 4, 252, 256]
    assert [encoder.cost("text", one) for one in prepared] == [16, 16, 256, 256]


def test_texts_that_are_padded_to_one_width_have_one_shape_and_those_without_padding_another(encoder):
    prepared = [encoder.prepare("text", text) for text in ("", "hello world", "word " * 250, "word " * 400)]
    empty, short, long, cut = [encoder.shape("text", one) for one in prepared]
    assert empty == short
    assert len({short, long, cut}) == 3


def test_empty_batch_has_the_shape_of_no_vectors(encoder):
    assert encoder.embed("text", []).shape == (0, 384)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_reduced_precision_stays_close(encoder, runtime):
    model = describe("sentence_transformer", MINILM, 384, "text")
    reduced = load_encoder(model, Execution("cpu", runtime, "bfloat16")).embed("text", TEXTS)
    assert reduced.dtype == np.float32
    assert cosines(reduced, encoder.embed("text", TEXTS)).min() > 0.999


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_nothing_is_printed(capfd, runtime):
    network = read_network(describe("sentence_transformer", MINILM, 384, "text"))
    assert network.dimension == 384
    load_encoder(describe("sentence_transformer", MINILM, 384, "text"), Execution("cpu", runtime)).embed("text", TEXTS)
    assert capfd.readouterr() == ("", "")


def passages(folder) -> list[str]:
    """What a file of prose is cut to, one of them short."""
    folder.mkdir()
    (folder / "short.txt").write_text("Penguins swim well and fly badly.")
    (folder / "long.txt").write_text("\n\n".join(f"{number}. {text}" for number, text in enumerate(TEXTS * 3)))
    found = []
    for path in sorted(folder.iterdir()):
        item = Item(path.name, str(path), path.stat().st_size, "", "text/plain", "0" * 64)
        segments = cut("text", "s", item, Cutting(None, 60, 8))
        found += list(read("text", segments))
    return found


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("minilm", "torch"),
        ("minilm", "openvino"),
        pytest.param("mpnet", "torch", marks=pytest.mark.proof),
        pytest.param("mpnet", "openvino", marks=pytest.mark.long),
    ],
)
def test_real_files_get_the_vectors_of_the_articles_code(name, runtime, full_size, tmp_path):
    folder, dimension = (MINILM, 384) if name == "minilm" else (full_size("sentence_transformer"), 768)
    model = describe("sentence_transformer", folder, dimension, "text")
    article = reference.article(resolve(model))
    texts = passages(tmp_path / "prose")
    expected = np.stack([article(text) for text in texts])
    vectors = load_encoder(model, Execution("cpu", runtime)).embed("text", texts)
    assert len(texts) > 6
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(centred(vectors), centred(expected)).min() > 0.999


def test_words_that_a_model_puts_before_queries_and_documents_are_put_there(tmp_path):
    from sentence_transformers import SentenceTransformer

    save_sentence_transformer(tmp_path / "model", {"query": "query: ", "document": "passage: "})
    encoder = load_encoder(describe("sentence_transformer", tmp_path / "model", 48, "text"), TORCH)
    chain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(encoder.embed("text", TEXTS), chain.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(encoder.embed("text", TEXTS, "query"), chain.encode_query(TEXTS), atol=1e-6)
    assert cosines(encoder.embed("text", TEXTS[:1]), encoder.embed("text", TEXTS[:1], "query"))[0] < 0.999


def test_a_model_that_leaves_its_prompt_out_of_the_mean_is_refused(tmp_path):
    save_sentence_transformer(tmp_path / "model", {"query": "query: "}, include_prompt=False)
    with pytest.raises(PlatformError, match="leaves the words of its prompt out of the mean"):
        read_network(describe("sentence_transformer", tmp_path / "model", 48, "text"))
