import importlib.util
import re
from typing import get_args

import pytest

from embedding_platform.milvus.schema import alias_name
from embedding_platform.settings import IndexSettings
from embedding_platform.spaces import INDEX_TYPES, MODALITIES, MODEL_SETS, Index, Space, index_fault, usual_index

SPACES = [pytest.param(space, id=f"{name}-{space.key}") for name, spaces in MODEL_SETS.items() for space in spaces]


@pytest.mark.parametrize("model_set", MODEL_SETS)
def test_keys_and_the_aliases_made_of_them_are_unique(model_set):
    keys = [space.key for space in MODEL_SETS[model_set]]
    assert len(set(keys)) == len(keys) == len({alias_name(key) for key in keys})


@pytest.mark.parametrize("model_set", MODEL_SETS)
def test_every_modality_has_a_space(model_set):
    assert {space.modality for space in MODEL_SETS[model_set]} == set(MODALITIES)


def test_a_starter_space_stands_in_for_a_space_of_the_hub():
    hub = {space.key: space for space in MODEL_SETS["hub"]}
    for space in MODEL_SETS["starter"]:
        assert space.model.family == hub[space.key].model.family
        assert space.roles == hub[space.key].roles


@pytest.mark.parametrize("name", MODALITIES)
def test_a_modality_has_its_own_name_and_a_module_of_media(name):
    assert MODALITIES[name].name == name
    assert MODALITIES[name].roles
    assert importlib.util.find_spec(f"embedding_platform.media.{name}")


@pytest.mark.parametrize("space", SPACES)
def test_a_space_is_consistent(space: Space):
    modality, model = MODALITIES[space.modality], space.model
    assert re.fullmatch("[a-z0-9_]+/[a-z0-9_]+", space.key)
    assert space.roles
    assert set(space.roles) <= set(modality.roles) & set(model.roles)
    assert set(space.roles) == set(modality.roles), "segments of some role would never be embedded"
    assert importlib.util.find_spec(f"embedding_platform.models.{model.family}")
    assert model.dimension > 0
    assert model.licence
    assert model.source
    assert (model.max_tokens is not None) == ("text" in model.roles)
    low, high = space.norm_band
    assert 0 < low < high
    assert not space.normalised or low < 1 < high
    assert index_fault(space.index) is None


@pytest.mark.parametrize("space", SPACES)
def test_a_model_is_pinned_or_ships_with_a_package(space: Space):
    model = space.model
    if model.location.startswith("package:"):
        package, _, folder = model.location.removeprefix("package:").partition("/")
        assert re.fullmatch(r"[a-z_0-9]+", package)
        assert folder
        assert not folder.startswith("/")
        assert ".." not in folder.split("/")
        assert model.revision is None
    elif model.location.startswith("torch_hub:"):
        assert re.fullmatch(r"torch_hub:[a-z0-9_]+-[0-9a-f]{8}\.pth", model.location), "the SHA-256 pins it"
    elif model.family == "openai":
        assert re.fullmatch("openai:[a-z0-9-]+", model.location)
    else:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.location)
        assert model.revision is None or re.fullmatch("[0-9a-f]{40}", model.revision)


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_the_usual_parameters_of_an_index_are_what_milvus_takes(kind):
    assert index_fault(usual_index(kind, {}, {})) is None


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (Index("NOSUCH", {}, {}), f"unknown index type 'NOSUCH'; choose one of {', '.join(INDEX_TYPES)}"),
        (Index("IVF_PQ", {}, {}), "unknown index type 'IVF_PQ'"),
        (Index("HNSW", {"M": 16}, {"ef": 64}), "build parameters M, efConstruction, given are M"),
        (Index("FLAT"), "takes the build parameters none, given are M, efConstruction"),
        (Index("IVF_FLAT", {"nlist": 4}, {"ef": 4}), "search parameters nprobe, given are ef"),
        (usual_index("HNSW", {"M": 1}, {}), "M is 1, allowed are 2 to 2048"),
        (usual_index("IVF_SQ8", {}, {"nprobe": 65_537}), "nprobe is 65537, allowed are 1 to 65536"),
    ],
)
def test_what_is_wrong_with_an_index_is_said(index, message):
    assert message in index_fault(index)


def test_the_settings_know_the_same_indexes():
    assert set(INDEX_TYPES) == set(get_args(IndexSettings.model_fields["type"].annotation))


def test_models_of_equal_location_are_one_model():
    by_location = {}
    for spaces in MODEL_SETS.values():
        for space in spaces:
            place = space.model.location, space.model.pooling
            assert by_location.setdefault(place, space.model) == space.model


@pytest.mark.parametrize("model_set", MODEL_SETS)
def test_what_is_kept_unasked_needs_neither_key_nor_alternative(model_set):
    kept = [space for space in MODEL_SETS[model_set] if not space.on_request]
    assert {space.modality for space in kept} == set(MODALITIES)
    for space in kept:
        assert space.model.pooling == ""
        assert space.model.family != "openai"


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        MODEL_SETS["mine"] = ()
    with pytest.raises(AttributeError):
        MODEL_SETS["hub"][0].model.dimension = 3


def _architectures():
    """The published architectures, as transformers builds them from their configurations."""
    import transformers as t

    wide = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    deep = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    whisper = {"decoder_layers": 6, "decoder_ffn_dim": 2048, "decoder_attention_heads": 8, "vocab_size": 51865}
    small = {"d_model": 512, "encoder_layers": 6, "encoder_ffn_dim": 2048, "encoder_attention_heads": 8}
    large = {"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20}
    yield "text/mpnet", t.MPNetModel(t.MPNetConfig(vocab_size=30527))
    yield "image/resnet50", t.ResNetModel(t.ResNetConfig())
    yield (
        "image/clip",
        t.CLIPModel(t.CLIPConfig(text_config=wide, vision_config={**deep, "patch_size": 14}, projection_dim=768)),
    )
    yield "audio/whisper", t.WhisperModel(t.WhisperConfig(**small, **whisper)).encoder
    yield "audio/whisper_decoder", t.WhisperModel(t.WhisperConfig(**small, **whisper))
    yield "audio/whisper_large_v2", t.WhisperModel(t.WhisperConfig(**large, **whisper)).encoder


def test_models_have_as_many_weights_as_is_said():
    import torch

    described = {space.key: space.model.parameters for space in MODEL_SETS["hub"]}
    with torch.device("meta"):
        counted = {
            key: sum(weights.numel() for name, weights in model.named_parameters() if name != "logit_scale")
            for key, model in _architectures()
        }
    assert counted == {key: described[key] for key in counted}
