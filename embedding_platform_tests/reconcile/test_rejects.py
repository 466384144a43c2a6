"""What each stage rejected, and what makes it tried again."""

import pytest

from embedding_platform.reconcile import rejects
from embedding_platform.reconcile.rejects import rejected_of_source
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
