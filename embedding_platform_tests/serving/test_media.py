"""Media files: the parts that players ask for, the types they are sent as, and no way out of the media root."""

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedding_platform.milvus.alias import alias_target
from embedding_platform.milvus.connection import CALL_SECONDS
from embedding_platform.milvus.query import get_rows
from embedding_platform.serving.media import Part, open_inside, requested_part, shown_type
from embedding_platform.serving.refused import RefusedError
from embedding_platform_tests.serving.conftest import HOSTILE_SOURCE, Lake


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media root with a file, links inside it and out of it, a pipe, and a secret beside it."""
    root = tmp_path / "media"
    (root / "photos" / "deep").mkdir(parents=True)
    (root / "photos" / "deep" / "a.txt").write_bytes(b"inside")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "media-beside").mkdir()
    (tmp_path / "media-beside" / "b.txt").write_bytes(b"secret")
    (root / "photos" / "inner").symlink_to(root / "photos" / "deep")
    (root / "photos" / "outer.txt").symlink_to(tmp_path / "secret.txt")
    (root / "photos" / "beside").symlink_to(tmp_path / "media-beside")
    (root / "linked").symlink_to(tmp_path / "media-beside")
    (root / "photos" / "loop").symlink_to(root / "photos" / "loop")
    os.mkfifo(root / "photos" / "pipe")
    return root


@pytest.mark.parametrize("path", ["deep/a.txt", "inner/a.txt"])
def test_what_lies_inside_is_opened(root: Path, path: str) -> None:
    with open_inside(str(root), "photos", path) as opened:
        assert (opened.file.read(), opened.size) == (b"inside", 6)
        assert Path(opened.uri).read_bytes() == b"inside"


@pytest.mark.parametrize(
    ("source", "path", "status"),
    [
        ("photos", "../../secret.txt", 403),
        ("..", "secret.txt", 403),
        ("photos", "/etc/passwd", 403),
        ("/etc", "passwd", 403),
        ("photos", "deep/../../../secret.txt", 403),
        ("photos", "", 403),
        ("photos", ".", 403),
        ("", "secret.txt", 403),
        ("photos", "a\0.txt", 403),
        ("photos", "outer.txt", 403),
        ("photos", "beside/b.txt", 403),
        ("linked", "b.txt", 403),
        ("photos", "%2e%2e/%2e%2e/secret.txt", 404),
        ("photos", "..\\..\\secret.txt", 404),
        ("photos", "file:/etc/passwd", 404),
        ("photos", "loop", 404),
        ("photos", "pipe", 404),
        ("photos", "deep", 404),
        ("photos", "nothing.txt", 404),
        ("photos", "a" * 5000, 404),
    ],
)
def test_what_leads_out_or_nowhere_is_not(root: Path, source: str, path: str, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        open_inside(str(root), source, path)
    assert refused.value.status == status
    assert "secret" not in str(refused.value).replace("secret.txt", "")


def test_a_folder_that_becomes_a_link_after_it_was_looked_at_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    realpath = os.path.realpath

    def looked_at(path: str) -> str:
        found = realpath(path)
        if found.endswith("a.txt"):
            (root / "photos" / "deep").rename(root / "photos" / "moved")
            (root / "photos" / "deep").symlink_to(root.parent / "media-beside")
            (root.parent / "media-beside" / "a.txt").write_bytes(b"secret")
        return found

    monkeypatch.setattr(os.path, "realpath", looked_at)
    with pytest.raises(RefusedError) as refused:
        open_inside(str(root), "photos", "deep/a.txt")
    assert refused.value.status == 404


@pytest.mark.parametrize("path", ["../../secret.txt", "x::file:///etc/passwd", "", "a/../../b"])
def test_no_name_leads_out_of_an_object_store(path: str) -> None:
    with pytest.raises(RefusedError) as refused:
        open_inside("memory://bucket/media", "photos", path)
    assert refused.value.status == 403


def test_an_object_is_read_in_parts() -> None:
    import fsspec

    with fsspec.open("memory://bucket/media/photos/a.bin", "wb") as file:
        file.write(b"0123456789")
    opened = open_inside("memory://bucket/media", "photos", "a.bin")
    assert (opened.size, b"".join(opened.pieces(Part(2, 5)))) == (10, b"234")
    with pytest.raises(RefusedError, match="no longer there"):
        open_inside("memory://bucket/media", "photos", "b.bin")


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("", Part(0, 100)),
        ("bytes=0-", Part(0, 100)),
        ("bytes=0-0", Part(0, 1)),
        ("bytes=10-19", Part(10, 20)),
        ("bytes=90-1000", Part(90, 100)),
        ("bytes=-10", Part(90, 100)),
        ("bytes=-1000", Part(0, 100)),
        ("bytes=100-", None),
        ("bytes=-0", None),
        ("bytes=5-3", Part(0, 100)),
        ("bytes=0-1,5-6", Part(0, 100)),
        ("bytes=-", Part(0, 100)),
        ("bytes=x-y", Part(0, 100)),
        ("lines=0-1", Part(0, 100)),
        (f"bytes=0-{'9' * 40}", Part(0, 100)),
    ],
)
def test_a_range_is_read_as_players_mean_it(wanted: str, part: Part | None) -> None:
    assert requested_part(wanted, 100) == part


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("a.jpg", "image/jpeg"),
        ("a.WEBM", "video/webm"),
        ("a.flac", "audio/flac"),
        ("a.pdf", "application/pdf"),
        ("a.html", "application/octet-stream"),
        ("a.svg", "application/octet-stream"),
        ("a.txt", "application/octet-stream"),
        ("a.js", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_only_what_runs_nothing_is_sent_as_what_it_is(path: str, media_type: str) -> None:
    assert shown_type(path) == media_type


def test_a_player_gets_the_part_that_it_asks_for(client: TestClient, hit: Any, lake: Lake) -> None:
    found = hit("audio/whisper", "")
    whole = (lake.media / found["source"] / found["path"]).read_bytes()
    answer = client.get(found["links"]["media"])
    assert (answer.status_code, answer.content) == (200, whole)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"].startswith("audio/")
    part = client.get(found["links"]["media"], headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert part.headers["content-length"] == "100"
    beyond = client.get(found["links"]["media"], headers={"Range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole)}")
    known = client.get(found["links"]["media"], headers={"If-None-Match": answer.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = client.head(found["links"]["media"])
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole)))


def test_a_page_in_the_lake_is_handed_over_and_never_shown(client: TestClient, hit: Any) -> None:
    found = hit("text/minilm", "page.html")
    assert found["source"] == HOSTILE_SOURCE
    assert found["shown"] is False
    answer = client.get(found["links"]["media"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''page.html"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("space", ["image/clip", "image/resnet50", "image_text/clip", "video/perceiver"])
def test_previews_of_pictures_and_clips_are_small_jpegs(client: TestClient, hit: Any, space: str) -> None:
    answer = client.get(hit(space, "")["links"]["preview"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.content[:3] == b"\xff\xd8\xff"
    assert len(answer.content) < 60_000


def test_previews_of_sound_show_how_loud_it_is(client: TestClient, hit: Any) -> None:
    answer = client.get(hit("audio/whisper", "")["links"]["preview"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert len(answer.content) > 500


def test_text_has_no_preview_and_pictures_no_passage(client: TestClient, hit: Any) -> None:
    text, picture = hit("text/minilm", "page"), hit("image/clip", "red")
    assert text["links"]["preview"] is None
    assert picture["links"]["passage"] is None
    assert client.get(f"/preview/text/minilm/{text['id']}").status_code == 404
    assert client.get(f"/api/passage/image/clip/{picture['id']}").status_code == 404


@pytest.mark.parametrize("kind", ["media", "preview", "api/passage", "api/more_like"])
@pytest.mark.parametrize(
    "place",
    [
        "image/clip/" + "0" * 32,
        "image/nothing/" + "0" * 32,
        "image/clip/../../../etc/passwd",
        "image/clip/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "image/clip/..%252f..%252fetc%252fpasswd",
        "image/clip/%2fetc%2fpasswd",
        "image/clip//etc/passwd",
        "image/clip/" + "0" * 31 + "%00",
        "image/clip/" + "0" * 32 + "%0a",
        "image/clip/" + "A" * 32,
        "..%2f..%2fetc/passwd/" + "0" * 32,
        "image/clip/" + "0" * 32 + "/../../secret.txt",
        'image/clip/x" or id >= "',
    ],
)
def test_what_is_no_row_of_ours_leads_nowhere(client: TestClient, kind: str, place: str) -> None:
    answer = client.get(f"/{kind}/{place}")
    assert answer.status_code in (404, 422)
    assert "root:" not in answer.text
    assert "swordfish" not in answer.text


@pytest.mark.parametrize("kind", ["media", "preview", "api/passage"])
def test_a_row_is_of_its_own_space_alone(client: TestClient, hit: Any, kind: str) -> None:
    found = hit("image/clip", "red")
    assert client.get(f"/{kind}/text/minilm/{found['id']}").status_code == 404
    assert client.get(f"/{kind}/audio/whisper/{found['id']}").status_code == 404


@pytest.mark.parametrize(
    ("source", "path"),
    [("shapes", "../../secret.txt"), ("..", "secret.txt"), ("/etc", "passwd"), ("shapes", "/etc/passwd")],
)
def test_a_row_that_somebody_wrote_into_milvus_opens_no_file(
    client: TestClient, lake: Lake, hit: Any, source: str, path: str
) -> None:
    milvus = lake.platform.milvus
    collection = alias_target(milvus, "text_minilm")
    assert collection is not None
    (row,) = get_rows(milvus, collection, [hit("text/minilm", "page")["id"]])
    forged = {**row, "id": "f" * 32, "source": source, "path": path, "uri": str(lake.folder / "secret.txt")}
    milvus.upsert(collection, [forged], timeout=CALL_SECONDS)
    try:
        for kind in ("media", "api/passage"):
            answer = client.get(f"/{kind}/text/minilm/{'f' * 32}")
            assert answer.status_code == 403
            assert "swordfish" not in answer.text
    finally:
        milvus.delete(collection, ids=["f" * 32], timeout=CALL_SECONDS)


def test_a_file_that_became_a_link_out_of_the_root_is_not_sent(client: TestClient, lake: Lake, hit: Any) -> None:
    found = hit("image/clip", "red-")
    path = lake.media / found["source"] / found["path"]
    kept = path.read_bytes()
    path.unlink()
    path.symlink_to(lake.folder / "secret.txt")
    try:
        for link in ("media", "preview"):
            answer = client.get(found["links"][link])
            assert answer.status_code == 403
            assert "leaves the media root" in answer.json()["error"]
    finally:
        path.unlink()
        path.write_bytes(kept)
