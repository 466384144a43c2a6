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
            assert by_location.setdefault(space.model.location, space.model) == space.model


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        MODEL_SETS["mine"] = ()
    with pytest.raises(AttributeError):
        MODEL_SETS["hub"][0].model.dimension = 3
