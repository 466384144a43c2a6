"""The asset graph: its shape, and what every asset of it has."""

import dagster as dg
import pytest

from embedding_platform.definitions import build_definitions
from embedding_platform.platform import Platform
from embedding_platform.spaces import MODEL_SETS

CHECKS = {
    "files": {"rejects"},
    "segments": {"rejects"},
    "embeddings": {
        *("dimension", "finite", "zero", "norm", "collapse"),
        *("count", "rejects", "duplicates", "distribution", "golden"),
    },
    "collection": {"rows", "index", "recall", "tampering"},
    "published": {"gate", "alias", "golden", "freshness"},
}

UPKEEP = {"upkeep/compacted", "upkeep/prunable"}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    from embedding_platform_tests.conftest import open_platform

    return build_definitions(open_platform(tmp_path_factory.mktemp("platform")))


def specs(definitions: dg.Definitions) -> dict[str, dg.AssetSpec]:
    found = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert set(found) >= UPKEEP
    return {key: spec for key, spec in found.items() if key not in UPKEEP}


def test_is_loadable(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)


def test_every_space_has_its_chain(definitions: dg.Definitions) -> None:
    spaces = MODEL_SETS["starter"]
    expected = {f"{space.modality}/{stage}" for space in spaces for stage in ("files", "segments")}
    expected |= {f"{space.key}/{stage}" for space in spaces for stage in ("embeddings", "collection", "published")}
    assert set(specs(definitions)) == expected


@pytest.mark.parametrize("space", MODEL_SETS["starter"], ids=lambda space: space.key)
def test_lineage_reads_like_the_pipeline(definitions: dg.Definitions, space) -> None:
    def upstream(key: str) -> set[str]:
        return {dep.asset_key.to_user_string() for dep in specs(definitions)[key].deps}

    assert upstream(f"{space.modality}/files") == set()
    assert upstream(f"{space.modality}/segments") == {f"{space.modality}/files"}
    assert upstream(f"{space.key}/embeddings") == {f"{space.modality}/segments"}
    assert upstream(f"{space.key}/collection") == {f"{space.modality}/segments", f"{space.key}/embeddings"}
    assert upstream(f"{space.key}/published") == {f"{space.key}/collection"}


def test_every_asset_is_described_owned_grouped_and_partitioned_by_its_modality(definitions: dg.Definitions) -> None:
    for key, spec in specs(definitions).items():
        modality, stage = key.split("/")[0], key.split("/")[-1]
        assert spec.description, key
        assert spec.owners, key
        assert spec.kinds, key
        assert spec.group_name == modality
        if stage == "published":
            assert spec.partitions_def is None
        else:
            assert spec.partitions_def == dg.DynamicPartitionsDefinition(name=f"{modality}_sources")


def test_checks_are_those_of_the_stage_and_partitioned_like_it(definitions: dg.Definitions) -> None:
    found: dict[str, set[str]] = {}
    for check in (spec for asset in definitions.assets or [] for spec in asset.check_specs):
        found.setdefault(check.asset_key.to_user_string(), set()).add(check.name)
        assert check.partitions_def == specs(definitions)[check.asset_key.to_user_string()].partitions_def
    assert found == {key: CHECKS[key.split("/")[-1]] for key in specs(definitions)}


def test_embeddings_carry_the_fingerprint_as_code_version(platform: Platform, definitions: dg.Definitions) -> None:
    for space in platform.spaces:
        assert specs(definitions)[f"{space.key}/embeddings"].code_version == platform.fingerprint(space)


def test_fewer_spaces_make_a_smaller_graph(tmp_path) -> None:
    from embedding_platform_tests.conftest import open_platform

    definitions = build_definitions(open_platform(tmp_path, spaces=["audio/whisper"]))
    assert {key.split("/")[0] for key in specs(definitions)} == {"audio"}
    assert [sensor.name for sensor in definitions.sensors or []] == ["audio_media", "run_failures"]
