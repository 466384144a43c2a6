from io import BytesIO

import pytest
from pypdf import PdfReader

from embedding_platform.starter.pdf import pdf


def text_of(payload: bytes) -> str:
    pages = PdfReader(BytesIO(payload), strict=True).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def test_text_comes_back_whole() -> None:
    paragraph = "Parentheses (like these), a backslash \\ and caf\u00e9."
    assert text_of(pdf(f"# Title\n\n{paragraph}\n\n## Part\n\nEnd.\n")) == f"Title {paragraph} Part End."


def test_long_article_has_pages() -> None:
    words = [f"word{number}" for number in range(3000)]
    payload = pdf("# Long\n\n" + " ".join(words))
    assert len(PdfReader(BytesIO(payload)).pages) > 3
    assert text_of(payload).split()[1:] == words


def test_character_beyond_latin_1_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        pdf("# \u65e5\u672c")
