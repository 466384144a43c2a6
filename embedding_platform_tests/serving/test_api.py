"""The JSON API: what each route answers, what it refuses, and that a refusal is one line."""

import re
import tempfile
import threading
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedding_platform.errors import MilvusError, PlatformError
from embedding_platform.inference import query as query_module
from embedding_platform.media.cutting import Cutting
from embedding_platform.media.limits import Deadline
from embedding_platform.milvus.alias import alias_target
from embedding_platform.platform import Platform
from embedding_platform.records import Item, Segment
from embedding_platform.search import Searcher
from embedding_platform.serving import pages
from embedding_platform.serving import service as service_module
from embedding_platform.serving.app import make_app
from embedding_platform_tests.serving.conftest import ADDRESS, HOSTILE_SOURCE, Lake

SPACES = ["text/minilm", "image/resnet50", "image/clip", "image_text/clip", "audio/whisper", "video/perceiver"]


def search(client: TestClient, **params: Any) -> dict[str, Any]:
    answer = client.get("/api/search", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: Any) -> str:
    """The line that a refused request got, and nothing beside it."""
    assert list(answer.json()) == ["error"]
    line = answer.json()["error"]
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def test_spaces_say_what_they_hold_and_take(client: TestClient, lake: Lake) -> None:
    spaces = client.get("/api/spaces").json()
    assert [space["key"] for space in spaces] == SPACES
    clip = spaces[SPACES.index("image_text/clip")]
    assert clip["takes"] == clip["holds"] == ["image", "text"]
    assert clip["sources"] == ["captioned-shapes", "hostile-captions"]
    assert clip["collection"] == alias_target(lake.platform.milvus, "image_text_clip")


def test_words_find_what_searcher_finds_in_every_space_that_takes_them(client: TestClient, lake: Lake) -> None:
    answer = search(client, words="how do bees tell each other where the flowers are", limit=3)
    assert [found["space"] for found in answer["spaces"]] == ["text/minilm", "image/clip", "image_text/clip"]
    first = answer["spaces"][0]["hits"]
    assert [len(found["hits"]) for found in answer["spaces"]] == [3, 3, 3]
    hits = Searcher(lake.platform).search("how do bees tell each other where the flowers are", "text/minilm", limit=3)
    assert [(hit["id"], hit["score"]) for hit in first] == [(hit.id, pytest.approx(hit.score)) for hit in hits]
    assert first[0]["path"].endswith("honeybees.md")
    assert first[0]["text"] == hits[0].text


def test_a_hit_leads_to_its_file_its_trace_its_passage_and_its_run(client: TestClient, lake: Lake) -> None:
    (found,) = search(client, words="honeybees", space="text/minilm", limit=1)["spaces"]
    (hit,) = found["hits"]
    links = hit["links"]
    assert links["run"] == f"http://127.0.0.1:3000/runs/{hit['run_id']}"
    media = client.get(links["media"])
    assert media.content == (lake.media / hit["source"] / hit["path"]).read_bytes()
    (trace,) = client.get(f"/api{links['trace']}").json()
    assert (trace["id"], trace["path"], trace["run_page"]) == (hit["id"], hit["path"], links["run"])
    assert trace["file"]["content_hash"]
    passage = client.get(f"/api{links['passage']}").json()
    assert passage["text"] == hit["text"]
    assert passage["changed"] is False
    document = (lake.media / hit["source"] / hit["path"]).read_text()
    around = (passage["before"] + passage["text"] + passage["after"]).strip("…")
    assert around in document
    assert len(around) > len(hit["text"])


def test_a_passage_whose_document_changed_since_is_shown_as_it_was(client: TestClient, lake: Lake, hit: Any) -> None:
    found = hit("text/minilm", "new")
    path = lake.media / found["source"] / found["path"]
    kept = path.read_text()
    path.write_text("Something else.")
    try:
        passage = client.get(f"/api/passage/text/minilm/{found['id']}").json()
        assert (passage["changed"], passage["text"], passage["before"]) == (True, found["text"], "")
        assert "has changed since" in client.get(found["links"]["passage"]).text
        path.unlink()
        assert "no longer there" in refusal(client.get(f"/api/passage/text/minilm/{found['id']}"))
        assert "no longer there" in refusal(client.get(found["links"]["media"]))
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    ("query", "space", "beginning"),
    [
        ("pictures/0.png", "image/clip", ""),
        ("sounds/0.wav", "audio/whisper", "chirp"),
        ("clips/0.mp4", "video/perceiver", "blinking"),
    ],
)
def test_a_file_finds_what_is_like_it(client: TestClient, lake: Lake, query: str, space: str, beginning: str) -> None:
    with (lake.queries / query).open("rb") as file:
        answer = client.post("/api/search", files={"file": file}, params={"limit": 2}).json()
    assert answer["query"] == query.rpartition("/")[2]
    (found,) = [one for one in answer["spaces"] if one["space"] == space]
    assert len(found["hits"]) == 2
    assert found["hits"][0]["path"].startswith(beginning)


def test_a_text_file_is_searched_by_as_words_are(client: TestClient) -> None:
    files = {"file": ("question.txt", b"searching a graph with several storeys for near vectors")}
    answer = client.post("/api/search", files=files, params={"space": "text/minilm", "limit": 1}).json()
    assert "hnsw-index" in answer["spaces"][0]["hits"][0]["path"]


def test_a_long_text_is_searched_by_and_its_hits_read_in_context(client: TestClient) -> None:
    table = f"{'near vectors':<2500}| {'a graph with storeys':<2500}|"
    answer = client.post("/api/search", files={"file": ("table.txt", table.encode())}, params={"space": "text/minilm"})
    (hit, *_) = answer.json()["spaces"][0]["hits"]
    assert client.get(hit["links"]["passage"]).status_code == 200
    (typed, *_) = search(client, words="a graph & more", space="text/minilm")["spaces"][0]["hits"]
    assert typed["links"]["passage"].endswith("?words=a+graph+%26+more")


def test_more_like_this_leaves_the_row_itself_out(client: TestClient, hit: Any) -> None:
    found = hit("image/clip", "red")
    answer = client.get(f"/api/more_like/image/clip/{found['id']}", params={"limit": 4}).json()
    hits = answer["spaces"][0]["hits"]
    assert len(hits) == 4
    assert found["id"] not in {one["id"] for one in hits}
    assert answer["query"] == found["id"]
    assert f"More like <b>{found['source']}/{found['path']}</b>" in client.get(found["links"]["more_like"]).text


def test_words_and_vectors_are_searched_together_where_a_space_has_both(client: TestClient) -> None:
    assert [space["hybrid"] for space in client.get("/api/spaces").json()] == [True, *[False] * 5]
    answer = search(client, words="Malkov and Yashunin", hybrid=True, limit=3)
    by_space = {found["space"]: found for found in answer["spaces"]}
    assert "Yashunin" in by_space["text/minilm"]["hits"][0]["text"]
    assert by_space["image/clip"]["error"] is None
    page = client.get("/?words=Malkov&hybrid=true").text
    assert '<input type="checkbox" name="hybrid" value="true" checked>' in page


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"source": "shapes"}, lambda hit: hit["source"] == "shapes"),
        ({"source": ["shapes", HOSTILE_SOURCE]}, lambda hit: hit["source"] in ("shapes", HOSTILE_SOURCE)),
        ({"source": HOSTILE_SOURCE}, lambda hit: hit["source"] == HOSTILE_SOURCE),
        ({"path_prefix": "red-"}, lambda hit: hit["path"].startswith("red-")),
        ({"where": "format=PNG"}, lambda hit: hit["attributes"]["format"] == "PNG"),
        ({"where": "width=..64"}, lambda hit: hit["attributes"]["width"] <= 64),
        ({"after": "2020-01-01", "before": "2999-01-01T00:00:00+00:00"}, lambda hit: True),
    ],
    ids=["one source", "two sources", "an odd source", "path", "attribute", "range", "time"],
)
def test_filters_keep_what_they_name_and_all_of_it(client: TestClient, params: dict[str, Any], kept: Any) -> None:
    everything = search(client, words="a circle", space="image/clip", limit=100)["spaces"][0]["hits"]
    found = search(client, words="a circle", space="image/clip", limit=100, **params)["spaces"][0]["hits"]
    assert {hit["id"] for hit in found} == {hit["id"] for hit in everything if kept(hit)}
    assert found


def test_a_filter_that_nothing_meets_finds_nothing(client: TestClient) -> None:
    for params in ({"before": "1999-01-01"}, {"path_prefix": "nowhere/"}, {"where": "width=100000.."}):
        assert search(client, words="a circle", space="image/clip", **params)["spaces"][0]["hits"] == []


def test_spaces_without_the_source_are_left_out(client: TestClient) -> None:
    answer = search(client, words="a circle", source="captioned-shapes")
    assert [found["space"] for found in answer["spaces"]] == ["image/clip", "image_text/clip"]


def test_a_space_that_cannot_take_the_query_says_so_and_the_others_answer(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_space = Searcher.search

    def choosy(searcher: Searcher, query: Any, space: str, **named: Any) -> Any:
        if space == "image/clip":
            raise PlatformError("image/clip does not take it")
        return search_space(searcher, query, space, **named)

    monkeypatch.setattr(Searcher, "search", choosy)
    by_space = {found["space"]: found for found in search(client, words="bees", limit=1)["spaces"]}
    assert by_space["text/minilm"]["hits"]
    assert (by_space["image/clip"]["error"], by_space["image/clip"]["hits"]) == ("image/clip does not take it", [])
    assert "image/clip does not take it" in client.get("/?words=bees").text
    alone = client.get("/api/search", params={"words": "bees", "space": "image/clip"})
    assert (alone.status_code, refusal(alone)) == (422, "image/clip does not take it")


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({}, 422, "words: Field required"),
        ({"words": ""}, 422, "words: String should have at least 1 character"),
        ({"words": "  "}, 422, "the query is empty"),
        ({"words": "x" * 2001}, 422, "at most 2000 characters"),
        ({"words": "x", "space": "image/none"}, 404, "no space 'image/none' is published; choose from text/minilm"),
        ({"words": "x", "space": "audio/whisper"}, 422, "audio/whisper cannot be asked with text; can be: text/minilm"),
        ({"words": "x", "source": "nowhere"}, 404, "no source 'nowhere' there; choose from"),
        ({"words": "x", "limit": 0}, 422, "limit: Input should be greater than or equal to 1"),
        ({"words": "x", "limit": 101}, 422, "limit: Input should be less than or equal to 100"),
        ({"words": "x", "limit": "many"}, 422, "limit: Input should be a valid integer"),
        ({"words": "x", "after": "yesterday"}, 422, "'yesterday' is no time"),
        ({"words": "x", "where": "width"}, 422, "'width' is no condition"),
        ({"words": "x", "role": "smell"}, 422, "no role 'smell'"),
        ({"words": "x", "source": ["y"] * 51}, 422, "at most 50 items"),
        ({"words": "x", "path_prefix": "y" * 1025}, 422, "at most 1024 characters"),
    ],
)
def test_a_question_that_makes_no_sense_gets_one_line(
    client: TestClient, params: dict[str, Any], status: int, said: str
) -> None:
    answer = client.get("/api/search", params=params)
    assert answer.status_code == status
    assert said in refusal(answer)


@pytest.mark.parametrize(("most", "choices", "similar"), [(3, ["3"], 3), (11, ["5", "10"], 11), (200, None, 12)])
def test_pages_ask_for_no_more_hits_than_there_may_be(
    lake: Lake, hit: Any, most: int, choices: list[str] | None, similar: int
) -> None:
    client = lake.client(most_hits=most)
    for answer in (
        client.get("/?words=a+circle&space=image/clip"),
        client.post("/", files={"file": ("circle.txt", b"a circle")}, data={"space": "image/clip"}),
    ):
        assert (answer.status_code, answer.text.count('class="hit"')) == (200, min(10, most))
    numbers = re.findall(r"<option (selected)?>(\d+)<", answer.text)
    assert [number for _, number in numbers] == (choices or ["5", "10", "25", "50", "100"])
    assert [number for is_chosen, number in numbers if is_chosen] == [str(min(10, most))]
    found = client.get(f"/more-like/image/clip/{hit('image/clip', 'red')['id']}")
    assert (found.status_code, found.text.count('class="hit"')) == (200, similar)


def test_a_value_on_the_page_may_hold_spaces(client: TestClient, hit: Any) -> None:
    asked = {"words": "a circle", "space": "image/clip", "limit": "50"}
    for where, is_found in (
        ('format="PNG" width=1..', True),
        ('format="P N G"', False),
        ('format="PNG" width="6 4"', False),
        ('format="P\\" N G', False),
    ):
        answer = client.get("/", params={**asked, "where": where})
        assert (answer.status_code, 'class="hit"' in answer.text) == (200 if "\\" not in where else 422, is_found)


def test_a_form_lists_some_sources_and_takes_the_names_of_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_SOURCES", 2)
    sources = sorted({source for space in client.get("/api/spaces").json() for source in space["sources"]})
    assert len(sources) > 4
    page = client.get("/").text
    assert page.count('type="checkbox" name="source"') == 2
    assert f'One of {len(sources) - 2} more <input name="source"' in page
    answer = client.get("/", params={"words": "a circle", "space": "image/clip", "source": ["", "shapes"]})
    assert 'name="source" value="shapes" checked' in answer.text
    assert answer.text.count('type="checkbox" name="source"') == 3
    assert set(re.findall(r'<span class="source">([^<]*)/</span>', answer.text)) == {"shapes"}


def test_the_list_of_spaces_is_read_beside_the_requests_once_for_each_modality(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = lake.app().state.service
    searcher = service._searcher
    read, may_end = list[str](), threading.Event()
    may_end.set()
    sources = searcher.sources

    def slow(space: str) -> list[str]:
        assert may_end.wait(30)
        read.append(space.partition("/")[0])
        return sources(space)

    monkeypatch.setattr(searcher, "sources", slow)
    first = service.spaces()
    assert sorted(read) == sorted({space.modality for space in first})
    assert service.spaces() is first
    monkeypatch.setattr(service_module, "_SECONDS_OF_SPACES", 0.0)
    may_end.clear()
    assert [service.spaces() is first for _ in range(3)] == [True] * 3
    may_end.set()
    with service._listing:
        assert len(read) == 2 * len({space.modality for space in first})
    monkeypatch.setattr(service_module, "_SECONDS_OF_SPACES", 60.0)
    assert service.spaces() is not first
    assert service.spaces() == first
    monkeypatch.setattr(service_module, "_MOST_SECONDS_OF_SPACES", 0.0)
    monkeypatch.setattr(searcher, "spaces", lambda: [])
    assert service.spaces() == []


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({"space": "audio/whisper"}, 422, "audio/whisper cannot be asked with text"),
        ({"space": "image/none"}, 404, "no space &#39;image/none&#39; is published"),
        ({"source": "nowhere"}, 404, "no source &#39;nowhere&#39; there"),
        ({"where": "width"}, 422, "&#39;width&#39; is no condition"),
        ({"limit": "1000"}, 422, "limit is 1000"),
    ],
)
def test_a_mistake_is_told_on_the_page_that_keeps_what_was_typed(
    client: TestClient, params: dict[str, str], status: int, said: str
) -> None:
    asked = {"words": "blue birds", "path_prefix": "2026/", **params}
    for answer in (client.get("/", params=asked), client.post("/", files={"file": ("x.txt", b"birds")}, data=asked)):
        assert answer.status_code == status
        (fault,) = re.findall(r'<p class="notice fault" role="alert">(.*?)</p>', answer.text)
        assert said in fault
        assert 'name="path_prefix" value="2026/"' in answer.text
    assert 'value="blue birds"' in client.get("/", params=asked).text


def test_a_form_that_was_sent_without_a_file_says_so_and_stays(client: TestClient) -> None:
    answer = client.post("/", files={"file": ("", b"")}, data={"path_prefix": "2026/"})
    assert answer.status_code == 422
    assert "no file was chosen; choose one, or search by words" in answer.text
    assert 'name="path_prefix" value="2026/"' in answer.text


@pytest.mark.parametrize(("space", "chosen"), [("audio/whisper", ""), ("text/minilm", "text/minilm")])
def test_words_typed_after_what_is_similar_find_something(
    client: TestClient, hit: Any, space: str, chosen: str
) -> None:
    page = client.get(hit(space, "")["links"]["more_like"]).text
    (checked,) = re.findall(r'name="space" value="([^"]*)" checked', page)
    assert checked == chosen
    assert 'class="hit"' in client.get("/", params={"words": "bees", "space": checked}).text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("space", "x" * 1025),
        ("source", "x" * 1025),
        ("source", ["x"] * 51),
        ("path_prefix", "x" * 1025),
        ("after", "2" * 41),
        ("before", "2" * 41),
        ("where", "x=1 " * 257),
    ],
)
def test_fields_of_pages_are_as_short_as_those_of_the_api(client: TestClient, field: str, value: Any) -> None:
    asked = {"words": "x", field: value}
    sent = client.post("/", files={"file": ("x.txt", b"x")}, data={field: value})
    for answer in (client.get("/", params=asked), sent):
        assert answer.status_code == 422
        assert f"{field}" in answer.text
        assert "should have at most" in answer.text
        assert "xxx" not in answer.text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7.25, "0:07.2"), (59.96, "1:00"), (62.5, "1:02.5"), (3600, "1:00:00"), (3725.5, "1:02:05.5")],
)
def test_a_place_in_time_is_shown_as_players_show_it(seconds: float, shown: str) -> None:
    assert pages.clock(seconds) == shown


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\nbroken", "a.png cannot be searched by: is damaged"),
        ("a.jpg", b"this is text", "a.jpg cannot be searched by: named .jpg but holds plain text"),
        ("a.zip", b"PK\x03\x04", "a.zip holds no media that can be searched by"),
        ("a.txt", b"", "a.txt cannot be searched by: is empty"),
        ("", b"x", "file"),
        ("../../etc/passwd", b"root", "passwd holds no media"),
        ("..\\..\\a.zip", b"root", "a.zip holds no media"),
    ],
)
def test_a_file_that_cannot_be_searched_by_is_named_without_where_it_lay(
    client: TestClient, name: str, payload: bytes, said: str
) -> None:
    answer = client.post("/api/search", files={"file": (name, payload)})
    assert answer.status_code == 422
    line = refusal(answer)
    assert said in line
    assert "/tmp" not in line
    assert "query" not in line.removeprefix("query")


@pytest.mark.parametrize("path", ["/api", "/api/nothing", "/api/trace/zebra", f"/api/trace/{'0' * 32}"])
def test_what_is_not_there_is_said_to_be_in_one_line(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    if path != "/api":
        refusal(answer)


def test_a_method_that_no_route_has_is_refused(client: TestClient) -> None:
    answer = client.delete("/api/search")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST") or answer.status_code == 405
    refusal(answer)


def test_without_milvus_the_answer_is_one_line_and_comes_back_with_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = lake.client()
    asked = {"params": {"words": "bees", "space": "text/minilm"}}
    assert client.get("/api/search", **asked).status_code == 200
    with monkeypatch.context() as away:

        def gone(*arguments: object) -> None:
            raise MilvusError("no Milvus answers at nowhere; start it")

        away.setattr(service_module.Service, "_ask_milvus", gone)
        away.setattr(service_module, "_SECONDS_BELIEVED", 0.0)
        for path in ("/api/search?words=bees", "/api/spaces", "/healthz", f"/media/image/clip/{'0' * 32}"):
            answer = client.get(path)
            assert (answer.status_code, refusal(answer)) == (503, "no Milvus answers at nowhere; start it")
        page = client.get("/?words=bees")
        assert page.status_code == 503
        assert "no Milvus answers at nowhere; start it" in page.text
    monkeypatch.setattr(service_module, "_SECONDS_BELIEVED", 0.0)
    assert client.get("/api/search", **asked).status_code == 200


def test_too_many_searches_at_once_wait_and_then_hear_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    client = lake.client(concurrent_searches=1)
    monkeypatch.setattr(service_module, "SECONDS_IN_LINE", 0.2)
    under_way, may_end = threading.Event(), threading.Event()
    search_space = Searcher.search

    def slow(*arguments: Any, **named: Any) -> Any:
        under_way.set()
        may_end.wait(30)
        return search_space(*arguments, **named)

    monkeypatch.setattr(Searcher, "search", slow)
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(client.get("/api/search?words=bees&space=text/minilm").status_code)
    )
    first.start()
    assert under_way.wait(30)
    others = [
        client.get("/api/search?words=bees&space=text/minilm"),
        client.post("/api/search", files={"file": ("bees.txt", b"bees")}),
    ]
    may_end.set()
    first.join()
    assert answers == [200]
    for other in others:
        assert other.status_code == 503
        assert "too many searches at once" in refusal(other)


def test_a_file_that_takes_long_to_decode_keeps_no_words_waiting_and_ends(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = lake.client(concurrent_searches=1, upload_seconds=1)
    monkeypatch.setattr(service_module, "SECONDS_IN_LINE", 0.2)
    under_way, may_end = threading.Event(), threading.Event()

    def slow(modality: str, source: str, item: Item, cutting: Cutting) -> list[Segment]:
        """Decodes what plays for a day."""
        deadline = Deadline(cutting.decoding)
        under_way.set()
        may_end.wait(30)
        deadline.check(played=12 * 3600.0)
        raise AssertionError("it may go on for ever")

    monkeypatch.setattr(query_module, "cut", slow)
    files = {"file": ("long.txt", b"bees")}
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(client.post("/api/search", files=files)))
    first.start()
    assert under_way.wait(30)
    assert search(client, words="bees", space="text/minilm")["spaces"][0]["hits"]
    copies: list[str] = []
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: copies.append("made"))
    other = client.post("/api/search", files=files)
    assert (other.status_code, copies) == (503, [])
    time.sleep(1)
    may_end.set()
    first.join()
    assert answers[0].status_code == 422
    assert "long.txt cannot be searched by: takes too long to decode while somebody waits for it" in refusal(answers[0])


def test_what_nobody_foresaw_tells_nothing_of_the_inside(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("the secret is swordfish")

    monkeypatch.setattr(service_module.Service, "spaces", broken)
    client = TestClient(lake.app(), base_url=ADDRESS, raise_server_exceptions=False)
    for path in ("/api/spaces", "/"):
        answer = client.get(path)
        assert answer.status_code == 500
        assert "swordfish" not in answer.text
        assert "something went wrong inside the server" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_lake_in_which_nothing_is_published_says_so(tmp_path: Any) -> None:
    from embedding_platform.milvus.connection import close_directory
    from embedding_platform_tests.conftest import open_platform

    (tmp_path / "media").mkdir()
    platform = open_platform(tmp_path)
    client = TestClient(make_app(lambda: Platform(platform.settings)), base_url=ADDRESS)
    try:
        assert client.get("/api/spaces").json() == []
        assert "Nothing is published yet" in client.get("/").text
        answer = client.get("/api/search?words=x&space=text/minilm")
        assert answer.status_code == 404
        assert "none is: run `embedding-platform run` first" in refusal(answer)
    finally:
        close_directory(platform.settings.milvus_uri)
