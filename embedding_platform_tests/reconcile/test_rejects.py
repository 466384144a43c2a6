"""What each stage rejected, and what makes it tried again."""

import dataclasses

import numpy as np
import pytest

from embedding_platform.errors import RejectedError
from embedding_platform.reconcile import rejects
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.reconcile.rejects import rejected_of_source
from embedding_platform.reconcile.segments import CHANGED
from embedding_platform_tests.reconcile.small_lake import Lake


@pytest.fixture
def lake(tmp_path):
    """A source whose files are sound, empty, blank, refused by the model and without a direction."""

    def refuse(content) -> None:
        if "refused" in content:
            raise ValueError("too odd")

    lake = Lake(tmp_path)
    lake.encoder.refuse_early = refuse
    lake.encoder.spoil = lambda content, vector: vector * 0 if "flat" in content else vector
    write(lake, sound="A sound letter.", empty="", blank=" \n \n ", refused="One that is refused.", flat="A flat one.")
    lake.run()
    return lake


def write(lake, **texts: str) -> None:
    for name, text in texts.items():
        path = lake.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def listed(lake) -> dict[str, tuple[str, str]]:
    """Stage and retry by the name of the file."""
    found = rejected_of_source(lake.store, lake.modality, "one", [(lake.space, lake.fingerprint)], lake.cutting)
    return {one.path.partition(".")[0]: (one.asset, one.retried) for one in found}


def test_every_stage_is_listed_with_what_makes_it_try_again(lake):
    found = listed(lake)
    assert found.keys() == {"empty", "blank", "refused", "flat"}
    assert found["empty"] == ("text/files", rejects.FILE_CHANGES)
    assert found["blank"] == ("text/files", rejects.FILE_CHANGES)
    assert found["refused"] == ("text/small/embeddings", rejects.NEXT_RUN)
    assert found["flat"] == ("text/small/embeddings", rejects.MODEL_CHANGES)


def test_a_file_that_cannot_be_cut_waits_for_another_file_or_another_way_to_cut(tmp_path):
    lake = Lake(tmp_path, modality="image")
    whole = lake.write("whole", 1)
    lake.path("half").write_bytes(whole.read_bytes()[:-200])
    lake.run()
    assert listed(lake) == {"half": ("image/segments", rejects.CUTTING_CHANGES)}
    lake.path("half").write_bytes(lake.write("other", 2).read_bytes()[:-200])
    assert listed(lake) == {"half": ("image/segments", rejects.NEXT_RUN_CHANGED)}
    lake.files()
    assert listed(lake) == {"half": ("image/segments", rejects.NEXT_RUN)}
    lake.write("half", 3)
    lake.run()
    assert listed(lake) == {}


def test_what_is_said_of_the_next_run_comes_true(lake):
    write(lake, empty="No longer empty.", blank="No longer blank.")
    found = listed(lake)
    assert {found[name][1] for name in ("empty", "blank")} == {rejects.NEXT_RUN_CHANGED}
    lake.path("flat").unlink()
    embedded = lake.encoder.embedded
    lake.run()
    assert listed(lake).keys() == {"refused"}
    assert lake.encoder.embedded == embedded + 2


def test_a_rejected_file_that_is_gone_is_said_to_be(lake):
    lake.path("empty").unlink()
    assert listed(lake)["empty"] == ("text/files", rejects.NEXT_RUN_GONE)
    lake.run()
    assert "empty" not in listed(lake)


def test_what_stands_is_not_tried_again(lake):
    before = listed(lake)
    lake.run()
    assert listed(lake) == before
    assert lake.encoder.embedded == 2, "the sound one and the flat one, once each"


def test_reasons_and_places_are_those_of_the_stages(lake):
    found = list(rejected_of_source(lake.store, "text", "one", [(lake.space, lake.fingerprint)], lake.cutting))
    by_path = {one.path: one for one in found}
    assert len(by_path) == len(found) == 4
    assert "0 bytes" in by_path["empty.txt"].reason
    assert by_path["refused.txt"].reason == "unreadable: the model does not take it: too odd"
    assert by_path["flat.txt"].reason.startswith("zero: ")
    assert {one.uri for one in found} == {str(lake.path(name)) for name in ("empty", "blank", "refused", "flat")}
    assert list(rejected_of_source(lake.store, "text", "two", [], lake.cutting)) == []


def test_a_file_rejected_by_other_code_is_tried_again(lake, monkeypatch):
    monkeypatch.setattr("embedding_platform.media.items.CODE_VERSION", "another")
    assert listed(lake)["empty"] == ("text/files", rejects.NEXT_RUN)
    lake.run()
    assert listed(lake)["empty"] == ("text/files", rejects.FILE_CHANGES)


@pytest.mark.parametrize(
    ("modality", "narrow", "stage", "otherwise"),
    [
        ("text", {"max_document_megabytes": 1}, "text/files", rejects.FILE_CHANGES),
        ("image", {"max_pixels": 10}, "image/segments", rejects.CUTTING_CHANGES),
    ],
)
def test_a_file_over_a_limit_is_tried_again_once_the_limit_is_raised(tmp_path, modality, narrow, stage, otherwise):
    lake = Lake(tmp_path, modality=modality)
    usual = lake.cutting.decoding
    lake.write("over", 1)
    if modality == "text":
        write(lake, over="words " * 200_000)
    narrowed = usual.model_copy(update=narrow)
    lake.cutting = dataclasses.replace(lake.cutting, decoding=narrowed)
    listing_limits = narrowed if stage == "text/files" else usual
    reconcile_files(lake.store, str(lake.media), modality, "one", limits=listing_limits)
    lake.segments()
    assert listed(lake) == {"over": (stage, otherwise)}
    lake.cutting = dataclasses.replace(lake.cutting, decoding=usual)
    assert listed(lake) == {"over": (stage, rejects.NEXT_RUN)}
    lake.run()
    assert listed(lake) == {}


@pytest.mark.parametrize("reason", [CHANGED, "cannot be read now: Input/output error"])
def test_what_says_nothing_of_the_file_is_tried_at_every_run(tmp_path, monkeypatch, reason):
    lake = Lake(tmp_path, modality="image")
    lake.write("odd", 1)

    def refuse(*arguments):
        raise RejectedError(reason)

    with monkeypatch.context() as patch:
        patch.setattr("embedding_platform.reconcile.segments.cut", refuse)
        lake.run()
    assert listed(lake) == {"odd": ("image/segments", rejects.NEXT_RUN)}
    lake.run()
    assert listed(lake) == {}


def test_a_vector_of_another_dimension_is_made_at_every_run(lake):
    lake.encoder.spoil = lambda content, vector: np.append(vector, vector).astype(np.float32)
    write(lake, wide="A wide one.")
    lake.run()
    assert listed(lake)["wide"] == ("text/small/embeddings", rejects.NEXT_RUN)
