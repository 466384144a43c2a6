"""A PDF of one article, written by hand: plain pages of text that any reader can extract."""

import textwrap

_LINES_PER_PAGE = 46
_COLUMNS = 88


def pdf(article: str) -> bytes:
    """A Markdown article of headings and paragraphs as a PDF 1.4 file, A4, in Helvetica.

    Only characters of Latin-1 can be shown; the file format is that of ISO 32000-1, section 7.5.

    Raises:
        UnicodeEncodeError: if the article holds another character.
    """
    lines: list[tuple[int, str]] = []
    for block in article.strip().split("\n\n"):
        size = 11 if not block.startswith("#") else 15 if block.startswith("##") else 20
        lines += [(size, line) for line in textwrap.wrap(block.lstrip("# "), _COLUMNS)] + [(11, "")]
    pages = [lines[start : start + _LINES_PER_PAGE] for start in range(0, len(lines), _LINES_PER_PAGE)]

    # Objects 1 to 3 are catalogue, page tree and font; then each page and its content.
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for index, page in enumerate(pages):
        content = _page_content(page)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * index} 0 R >>".encode()
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream")

    file = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    start = len(file)
    file += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    file += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(file)


def _page_content(page: list[tuple[int, str]]) -> bytes:
    parts = ["BT", "16 TL", "60 780 Td"]
    for size, line in page:
        escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        parts += [f"/F1 {size} Tf", f"({escaped}) Tj", "T*"]
    return "\n".join([*parts, "ET"]).encode("latin-1")
