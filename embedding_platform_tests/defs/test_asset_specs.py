"""What Dagster shows of each asset, held against `asset_specs.txt`.

Where a difference is meant, write the file anew: `python -m embedding_platform_tests.defs.test_asset_specs`.
"""

import difflib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from embedding_platform import records
from embedding_platform.definitions import build_definitions
from embedding_platform.defs.columns import DESCRIPTIONS
from embedding_platform.milvus.schema import FIELD_NAMES, WORDS_FIELD
from embedding_platform.platform import Platform
from embedding_platform_tests.conftest import open_platform

SNAPSHOT = Path(__file__).with_name("asset_specs.txt")


def described(definitions: dg.Definitions) -> Iterator[str]:
    """A paragraph for each asset: what a person sees, and nothing that differs between machines."""
    checks: dict[dg.AssetKey, list[str]] = {}
    made_by = [*(definitions.assets or []), *(definitions.asset_checks or [])]
    for check in (spec for one in made_by for spec in one.check_specs):
        checks.setdefault(check.asset_key, []).append(f"{check.name}{'!' if check.blocking else ''}")
    for spec in sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key.to_user_string()):
        tags = {name: value for name, value in spec.tags.items() if not name.startswith("dagster/")}
        partitions = spec.partitions_def.name if isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition) else ""
        yield spec.key.to_user_string()
        yield f"  group       {spec.group_name}"
        yield f"  depends on  {', '.join(sorted(dep.asset_key.to_user_string() for dep in spec.deps)) or 'nothing'}"
        yield f"  partitions  {partitions or 'none'}"
        yield f"  kinds       {', '.join(sorted(spec.kinds))}"
        yield f"  owners      {', '.join(spec.owners)}"
        yield f"  tags        {', '.join(f'{name}={value}' for name, value in sorted(tags.items()))}"
        yield f"  code        {'versioned' if spec.code_version else 'not versioned'}"
        yield f"  metadata    {', '.join(sorted(spec.metadata))}"
        yield f"  checks      {', '.join(checks.get(spec.key, [])) or 'none'}"
        yield ""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return open_platform(tmp_path_factory.mktemp("platform"))


@pytest.fixture(scope="module")
def definitions(platform: Platform) -> dg.Definitions:
    return build_definitions(platform)


def spec_of(definitions: dg.Definitions, key: str) -> dg.AssetSpec:
    (spec,) = (spec for spec in definitions.resolve_all_asset_specs() if spec.key.to_user_string() == key)
    return spec


def test_the_assets_are_as_written_down(definitions: dg.Definitions) -> None:
    found = list(described(definitions))
    difference = difflib.unified_diff(SNAPSHOT.read_text().splitlines(), found, SNAPSHOT.name, "now", lineterm="")
    assert "\n".join(difference) == ""


@pytest.mark.parametrize(
    ("key", "names", "unique"),
    [
        ("text/files", records.ITEMS.names, "path"),
        ("text/segments", records.SEGMENTS.names, "segment_id"),
        ("text/minilm/embeddings", records.vectors_schema(1).names, None),
        ("text/minilm/collection", [*FIELD_NAMES, WORDS_FIELD], "id"),
    ],
)
def test_columns_are_those_of_the_tables(
    definitions: dg.Definitions, key: str, names: list[str], unique: str | None
) -> None:
    schema = spec_of(definitions, key).metadata["dagster/column_schema"].value
    assert [column.name for column in schema.columns] == names
    assert [column.name for column in schema.columns if column.constraints.unique] == ([unique] if unique else [])


def test_every_column_is_described_and_nothing_else(definitions: dg.Definitions) -> None:
    shown = {
        column.name: column.description
        for spec in definitions.resolve_all_asset_specs()
        if "dagster/column_schema" in spec.metadata
        for column in spec.metadata["dagster/column_schema"].value.columns
    }
    assert shown == DESCRIPTIONS


def test_the_type_of_a_vector_tells_its_dimension(platform: Platform, definitions: dg.Definitions) -> None:
    for space in platform.spaces:
        types = {
            stage: {
                column.name: column.type
                for column in spec_of(definitions, f"{space.key}/{stage}")
                .metadata["dagster/column_schema"]
                .value.columns
            }["vector"]
            for stage in ("embeddings", "collection")
        }
        assert types == {
            "embeddings": str(pa.list_(pa.float32(), space.model.dimension)),
            "collection": f"FLOAT_VECTOR({space.model.dimension})",
        }


@pytest.mark.parametrize("stage", ["embeddings", "collection", "published"])
def test_the_code_version_is_the_fingerprint(platform: Platform, definitions: dg.Definitions, stage: str) -> None:
    for space in platform.spaces:
        version = spec_of(definitions, f"{space.key}/{stage}").code_version or ""
        assert version.split()[0] == platform.fingerprint(space)


def test_a_collection_and_its_alias_link_to_each_other(platform: Platform, definitions: dg.Definitions) -> None:
    for space in platform.spaces:
        collection, published = (f"{space.key}/{stage}" for stage in ("collection", "published"))
        assert spec_of(definitions, collection).metadata["published_as"].value == dg.AssetKey(published.split("/"))
        assert spec_of(definitions, published).metadata["collection_asset"].value == dg.AssetKey(collection.split("/"))


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({}, dg.TextMetadataValue, "Section segments of metadata.md"),
        (
            {"metadata_page": "https://docs.example.org/metadata.html"},
            dg.UrlMetadataValue,
            "https://docs.example.org/metadata.html#segments",
        ),
    ],
)
def test_the_page_that_explains_is_a_link_where_it_is_served(
    tmp_path: Path, settings: dict[str, str], kind: type, told: str
) -> None:
    definitions = build_definitions(open_platform(tmp_path, spaces=["text/minilm"], **settings))
    explained = spec_of(definitions, "text/segments").metadata["explained"]
    assert isinstance(explained, kind)
    assert str(explained.value).startswith(told)


def test_every_asset_has_the_owners_of_the_settings(tmp_path: Path) -> None:
    owners = ["me@example.org", "team:search"]
    definitions = build_definitions(open_platform(tmp_path, spaces=["text/minilm"], owners=owners))
    assert [spec.owners for spec in definitions.resolve_all_asset_specs()] == [owners] * 7


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, set()),
        ({"runtime": "torch"}, {"pytorch"}),
        ({"runtime": "openvino"}, {"openvino"}),
        ({"model_set": "hub", "spaces": ["text/openai_3_small"]}, {"openai"}),
    ],
    ids=["auto", "torch", "openvino", "openai"],
)
def test_what_runs_the_model_is_a_kind_where_the_settings_decide_it(
    tmp_path: Path, settings: dict[str, object], kinds: set[str]
) -> None:
    platform = open_platform(tmp_path, **{"spaces": ["text/minilm"], **settings})
    (space,) = platform.spaces
    found = spec_of(build_definitions(platform), f"{space.key}/embeddings").kinds
    assert found == {*kinds, "parquet", space.name}


@pytest.mark.parametrize("user", ["key:secret", "key:p@secret", "key:a/secret"])
def test_no_password_is_shown(tmp_path: Path, user: str) -> None:
    store = f"s3://{user}@bucket/store"
    definitions = build_definitions(open_platform(tmp_path, spaces=["text/minilm"], store_root=store))
    shown = repr([(spec.metadata, spec.description, spec.tags) for spec in definitions.resolve_all_asset_specs()])
    assert "bucket/store" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("location", "tag"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("openai:text-embedding-3-small@https://user.example.org/v1", "openai_text-embedding-3-small"),
        ("/models/mine and yours/", "mine_and_yours"),
        ("x" * 99, "x" * 63),
    ],
)
def test_a_model_is_tagged_by_its_name_alone(location: str, tag: str) -> None:
    from embedding_platform.defs.assets import _tag

    assert _tag(location) == tag


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        SNAPSHOT.write_text("\n".join(described(build_definitions(open_platform(Path(folder))))) + "\n")
