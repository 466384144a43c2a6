"""Searches of a small lake with the starter models: by words, files and rows, filtered and hybrid."""

import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import close_directory
from embedding_platform.platform import Platform
from embedding_platform.runs import run_sources
from embedding_platform.search import Filter, Searcher, as_json
from embedding_platform.search.searcher import MOST_HITS
from embedding_platform_tests.conftest import open_platform

TEXT, PAIRS, PICTURES = "text/minilm", "image_text/clip", "image/clip"

NOTES = {
    "bees.txt": "Bees find their way home by the position of the sun.",
    "volcano.txt": "A volcano erupts when molten rock rises through the crust of the earth.",
    "penguins.txt": "Penguins are birds that swim and cannot fly.",
    "2024/harbour.txt": "Ships wait outside the harbour until the tide is high.",
    "2024/order.txt": "Order number QX-7731 was shipped on Monday.",
    "2025/order.txt": "Order number QX-7713 was shipped on Tuesday.",
}
LETTERS = {"bread.txt": "Bread is baked from flour, water, salt and yeast."}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("lake")
    for source, notes in (("notes", NOTES), ('le"tters', LETTERS)):
        for path, text in notes.items():
            (folder / "media" / source / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "media" / source / path).write_text(text)
    (folder / "media" / "photos").mkdir()
    generator = np.random.default_rng(0)
    for place, size in enumerate(((48, 32), (64, 64), (96, 32))):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "media" / "photos" / f"{place}.png")
    (folder / "media" / "photos" / "0.txt").write_text("a red circle")
    opened = open_platform(folder, spaces=[TEXT, PAIRS, PICTURES], runtime="torch")
    with dg.instance_for_test() as instance:
        runs = list(run_sources(opened, instance))
        assert [run.failures for run in runs if not run.succeeded] == []
    yield opened
    close_directory(opened.settings.milvus_uri)


@pytest.fixture(scope="module")
def searcher(platform: Platform) -> Searcher:
    return Searcher(platform)


def paths(hits) -> list[str]:
    return [hit.path for hit in hits]


def test_the_published_spaces_say_what_they_can_be_asked(searcher):
    spaces = {space.key: space for space in searcher.spaces()}
    assert list(spaces) == [TEXT, PICTURES, PAIRS]
    assert spaces[TEXT].roles == spaces[TEXT].holds == ("text",)
    assert (spaces[PICTURES].roles, spaces[PICTURES].holds) == (("image", "text"), ("image",))
    assert spaces[PAIRS].holds == ("image", "text")
    assert [space.hybrid for space in spaces.values()] == [True, False, False]
    assert searcher.sources(TEXT) == ['le"tters', "notes"]


def test_a_hit_says_what_it_is_and_where(searcher):
    first, *others = searcher.search("how do bees navigate", TEXT, limit=3)
    assert (first.space, first.source, first.path, first.role) == (TEXT, "notes", "bees.txt", "text")
    assert first.text == NOTES["bees.txt"]
    assert (first.start, first.end, first.where) == (0, len(first.text), f"characters 0-{len(first.text)}")
    assert first.attributes["words"] == len(first.text.split())
    assert first.score == first.vector_score > others[0].score > others[1].score
    assert datetime.now(UTC) - timedelta(hours=1) < datetime.fromisoformat(first.embedded_at) < datetime.now(UTC)
    assert as_json({TEXT: [first]})[TEXT][0]["path"] == "bees.txt"


def test_the_three_lines_of_the_documentation_run(platform, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    begun = page.partition("`Searcher.open")[0]
    lines = [line for line in begun.splitlines() if line.startswith("    ")]
    (tmp_path / "embedding_platform.yaml").write_text(
        f"{{spaces: [{TEXT}], media_root: {platform.settings.media_url}, store_root: {platform.store}, "
        f"milvus: {{uri: {platform.settings.milvus_uri}}}}}"
    )
    monkeypatch.chdir(tmp_path)
    assert len(lines) == 3
    found: dict[str, object] = {}
    exec(textwrap.dedent("\n".join(lines)), found)
    assert str(found["passages"]).startswith(NOTES["volcano.txt"])
    (tmp_path / "embedding_platform.yaml").rename(tmp_path / "mine.yaml")
    hits = Searcher.open("mine.yaml").search("birds that swim", TEXT, limit=1)
    assert paths(hits) == ["penguins.txt"]


def test_words_a_path_and_a_query_made_before_are_queries(searcher, platform):
    picture = Path(platform.settings.media_url) / "photos" / "1.png"
    assert paths(searcher.search(picture, PICTURES, limit=1)) == ["1.png"]
    query = searcher.file_query(str(picture))
    assert {key: paths(hits) for key, hits in searcher.search_spaces(query, limit=1).items()} == {
        PICTURES: ["1.png"],
        PAIRS: ["0.png"],
    }, "pairs have a caption"
    assert set(searcher.search_spaces("a red circle")) == {TEXT, PICTURES, PAIRS}


@pytest.mark.parametrize(
    ("space", "kept", "found"),
    [
        (TEXT, Filter(sources=('le"tters',)), {"bread.txt"}),
        (TEXT, Filter(path_prefix="2024/"), {"2024/harbour.txt", "2024/order.txt"}),
        (TEXT, Filter(path_prefix="202", sources=('le"tters',)), set()),
        (
            TEXT,
            Filter(attributes={"words": (None, 9)}),
            {"penguins.txt", "2024/order.txt", "2025/order.txt", "bread.txt"},
        ),
        (TEXT, Filter(attributes={"encoding": 'utf-8" or 1 == 1 or "'}), set()),
        (PICTURES, Filter(attributes={"width": (64, None)}), {"1.png", "2.png"}),
        (PICTURES, Filter(attributes={"width": (64, 64), "format": "PNG"}), {"1.png"}),
        (PICTURES, Filter(attributes={"format": ("PN", "PO")}), {"1.png", "2.png"}),
        (PICTURES, Filter(attributes={"format": ("PO", None)}), set()),
        (PAIRS, Filter(roles=("text",)), {"0.png"}),
        (PAIRS, Filter(roles=("image",), attributes={"height": 32}), {"0.png"}),
    ],
)
def test_hits_satisfy_the_filter(searcher, space, kept, found):
    assert set(paths(searcher.search("anything", space, filter=kept, limit=20))) == found


def test_hits_are_of_the_time_asked_for(searcher):
    hits = searcher.search("anything", TEXT, limit=20)
    times = sorted(datetime.fromisoformat(hit.embedded_at) for hit in hits)
    assert len(searcher.search("anything", TEXT, filter=Filter(embedded_after=times[0]), limit=20)) == len(hits)
    assert searcher.search("anything", TEXT, filter=Filter(embedded_before=times[0]), limit=20) == []
    late = Filter(embedded_after=times[-1] + timedelta(microseconds=1))
    assert searcher.search("anything", TEXT, filter=late, limit=20) == []


def test_without_a_space_those_are_searched_that_have_the_source(searcher):
    assert set(searcher.search_spaces("anything", filter=Filter(sources=("photos",)))) == {PICTURES, PAIRS}
    assert set(searcher.search_spaces("anything", filter=Filter(sources=("notes", "photos")))) == {
        TEXT,
        PICTURES,
        PAIRS,
    }


def test_more_like_a_row_is_what_lies_beside_it_without_itself(searcher, monkeypatch):
    (order,) = searcher.search("order QX-7731", TEXT, filter=Filter(path_prefix="2024/order"))
    monkeypatch.setattr(Platform, "encoder", lambda *arguments, **named: pytest.fail("a model was loaded"))
    hits = searcher.more_like(order.id, TEXT, limit=20)
    assert len(hits) == len(NOTES) + len(LETTERS) - 1
    assert hits[0].path == "2025/order.txt"
    assert order.id not in {hit.id for hit in hits}
    assert len(searcher.more_like(order.id, TEXT, limit=3)) == 3
    elsewhere = searcher.more_like(order.id, TEXT, filter=Filter(sources=('le"tters',)), limit=3)
    assert paths(elsewhere) == ["bread.txt"]


def test_a_hybrid_search_finds_the_word_that_a_vector_blurs(searcher):
    for number, path in (("7731", "2024/order.txt"), ("7713", "2025/order.txt")):
        hits = searcher.search(f"QX-{number}", TEXT, hybrid=True)
        assert hits[0].path == path
        assert hits[0].score > hits[1].score


def test_a_fused_score_is_the_sum_over_both_places(searcher):
    near = paths(searcher.search("birds that swim", TEXT, limit=100))
    hits = searcher.search("birds that swim", TEXT, limit=100, hybrid=True)
    assert set(paths(hits)) == set(near), "the vectors bring every row"
    assert hits[0].path == "penguins.txt"
    assert hits[0].score == pytest.approx(2 / 61)
    scores = {hit.path: hit.vector_score for hit in searcher.search("birds that swim", TEXT, limit=100)}
    for hit in hits[1:]:
        assert hit.score == pytest.approx(1 / (60 + 1 + near.index(hit.path)))
        assert hit.vector_score == pytest.approx(scores[hit.path], abs=1e-5)


def test_a_hybrid_search_keeps_to_the_filter(searcher):
    kept = Filter(path_prefix="2025/")
    assert paths(searcher.search("QX-7731", TEXT, filter=kept, hybrid=True)) == ["2025/order.txt"]
    of_letters = Filter(sources=('le"tters',))
    assert paths(searcher.search("QX-7731", TEXT, filter=of_letters, hybrid=True)) == ["bread.txt"]


def test_a_hybrid_search_without_a_space_is_of_text(searcher):
    assert set(searcher.search_spaces("red circle", hybrid=True)) == {TEXT}


def test_words_that_no_row_has_leave_the_order_to_the_vectors(searcher):
    assert paths(searcher.search("?!", TEXT, hybrid=True)) == paths(searcher.search("?!", TEXT))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda searcher: searcher.search("x", "text/none"), "no space 'text/none'; choose from text/minilm"),
        (lambda searcher: searcher.search(" ", TEXT), "the query is empty"),
        (lambda searcher: searcher.search("x", TEXT, limit=0), "limit is 0; choose from 1 to 1000"),
        (lambda searcher: searcher.search("x", TEXT, limit=MOST_HITS + 1), "limit is 1001"),
        (lambda searcher: searcher.search(Path("none.txt"), TEXT), "none.txt is no file"),
        (lambda searcher: searcher.search("x", TEXT, filter=Filter(sources=("no",))), "unknown source 'no'"),
        (
            lambda searcher: searcher.search_spaces("x", filter=Filter(sources=("no",))),
            f"unknown source 'no' in {TEXT}, {PICTURES}, {PAIRS}; choose among le\"tters, notes, photos$",
        ),
        (
            lambda searcher: searcher.search_spaces("x", filter=Filter(sources=("notes", "nots", "photo"))),
            "unknown source 'nots', 'photo' in",
        ),
        (lambda searcher: searcher.search("x", PAIRS, hybrid=True), "image_text/clip cannot be searched by words"),
        (lambda searcher: searcher.more_like("x", TEXT), "'x' is no row id"),
        (lambda searcher: searcher.more_like("0" * 32, TEXT), "text/minilm holds no row 000"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(searcher, call, reason):
    with pytest.raises(PlatformError, match=reason) as caught:
        call(searcher)
    assert "\n" not in str(caught.value)


def test_a_picture_has_no_words(searcher, platform):
    picture = Path(platform.settings.media_url) / "photos" / "1.png"
    with pytest.raises(PlatformError, match=r"a hybrid search wants words, and .*1\.png is image"):
        searcher.search(picture, PAIRS, hybrid=True)
