import io
import random
from pathlib import Path

import pytest
from pypdf import PdfWriter

from embedding_platform.errors import RejectedError
from embedding_platform.media import audio
from embedding_platform.media.recognition import recognise

from .made import picture, tone, write_sound, write_video


def recognised(path: Path) -> tuple[str, str] | None:
    return recognise(path.name, str(path))


def pdf() -> bytes:
    writer, buffer = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("extension", "payload", "expected"),
    [
        ("jpg", picture(format="JPEG"), ("image", "image/jpeg")),
        ("png", picture(), ("image", "image/png")),
        ("webp", picture(format="WEBP"), ("image", "image/webp")),
        ("gif", picture("P", format="GIF"), ("image", "image/gif")),
        ("tiff", picture(format="TIFF"), ("image", "image/tiff")),
        ("bmp", picture(format="BMP"), ("image", "image/bmp")),
        ("txt", b"plain", ("text", "text/plain")),
        ("txt", b"BM is how this text begins", ("text", "text/plain")),
        ("txt", "with a mark".encode("utf-16"), ("text", "text/plain")),
        ("TXT", "caf\u00e9".encode("latin-1"), ("text", "text/plain")),
        ("md", b"# Title", ("text", "text/markdown")),
        ("html", b"<p>shown</p>", ("text", "text/html")),
        ("pdf", pdf(), ("text", "application/pdf")),
        ("", picture(format="JPEG"), ("image", "image/jpeg")),
        ("dat", pdf(), ("text", "application/pdf")),
        ("py", b"print('GIF89a')", None),
        ("csv", b"a,b\n1,2\n", None),
        ("json", b"{}", None),
        ("bin", bytes(range(256)) * 8, None),
        ("unknown", b"", None),
        ("zip", b"PK\x03\x04" + bytes(100), None),
    ],
)
def test_by_signature_then_by_extension(
    tmp_path: Path, extension: str, payload: bytes, expected: tuple[str, str] | None
) -> None:
    path = tmp_path / f"file.{extension}"
    path.write_bytes(payload)
    assert recognised(path) == expected


@pytest.mark.parametrize(
    ("name", "codec", "options", "expected"),
    [
        ("a.wav", "pcm_s16le", {}, ("audio", "audio/wav")),
        ("a.flac", "flac", {}, ("audio", "audio/flac")),
        ("a.mp3", "libmp3lame", {}, ("audio", "audio/mpeg")),
        ("bare.mp3", "libmp3lame", {"write_id3v2": "0", "id3v2_version": "0"}, ("audio", "audio/mpeg")),
        ("a.aac", "aac", {}, ("audio", "audio/aac")),
        ("a.aiff", "pcm_s16be", {}, ("audio", "audio/aiff")),
        ("a.ogg", "libopus", {}, ("audio", "audio/ogg")),
        ("a.m4a", "aac", {}, ("audio", "audio/mp4")),
        ("sound-only.mp4", "aac", {}, ("audio", "audio/mp4")),
        ("sound-only.mkv", "flac", {}, ("audio", "audio/x-matroska")),
        ("sound-only.webm", "libopus", {}, ("audio", "audio/webm")),
    ],
)
def test_sound(tmp_path: Path, name: str, codec: str, options: dict[str, str], expected: tuple[str, str]) -> None:
    path = write_sound(tmp_path / name, tone(0.5, 48_000), rate=48_000, codec=codec, options=options)
    if path.suffix == ".aac":
        assert path.read_bytes()[:1] == b"\xff"
    assert recognised(path) == expected


@pytest.mark.parametrize(
    ("name", "codec", "expected"),
    [
        ("v.mp4", "libx264", ("video", "video/mp4")),
        ("v.mov", "libx264", ("video", "video/quicktime")),
        ("v.mkv", "libx264", ("video", "video/x-matroska")),
        ("v.webm", "libvpx", ("video", "video/webm")),
        ("v.avi", "mpeg4", ("video", "video/x-msvideo")),
        ("v.mts", "libx264", ("video", "video/mp2t")),
        ("v.m4a", "libx264", ("video", "video/mp4")),
    ],
)
def test_video(tmp_path: Path, name: str, codec: str, expected: tuple[str, str]) -> None:
    made = write_video(tmp_path / name.replace(".m4a", ".mp4"), [10] * 12, codec=codec)
    path = made.rename(tmp_path / name)
    assert recognised(path) == expected


def test_a_cover_picture_does_not_make_a_video(tmp_path: Path) -> None:
    import av
    from av.stream import Disposition

    sound = write_sound(tmp_path / "plain.m4a", tone(1, 44_100), codec="aac")
    path = tmp_path / "covered.mp4"
    with av.open(str(sound)) as source, av.open(str(path), "w") as target:
        copied = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 40, 30, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for packet in source.demux():
            if packet.size:
                packet.stream = copied
                target.mux(packet)
        packet = av.Packet(picture(format="JPEG"))
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = cover, 0, 0, True
        target.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert recognised(path) == ("audio", "audio/mp4")


def test_content_wins_over_the_name(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp3", tone(0.5, 44_100), codec="libmp3lame").rename(tmp_path / "a.jpg")
    assert recognised(path) == ("audio", "audio/mpeg")


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("a.jpg", b"these are words", "named .jpg but holds plain text, not an image"),
        ("a.mp4", "schön".encode(), "named .mp4 but holds plain text, not a video"),
        ("a.pdf", b"no header", "named .pdf but holds plain text, not a PDF"),
        ("a.wav", random.Random(1).randbytes(5000), "named .wav but its content is not sound of any known format"),
        ("a.mp3", random.Random(2).randbytes(200_000), "named .mp3 but its content is not sound of any known format"),
        ("a.jpg", bytes(1000), "named .jpg but its content is not an image of any known format"),
        ("a.txt", random.Random(3).randbytes(5000), "named .txt but holds binary data, not text"),
        ("a.md", b"zero\x00byte", "named .md but holds binary data, not text"),
        ("a.png", b"", "is empty (0 bytes)"),
        ("a.txt", b"", "is empty (0 bytes)"),
    ],
)
def test_a_name_that_promises_too_much_is_rejected(tmp_path: Path, name: str, payload: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(RejectedError) as rejection:
        recognised(tmp_path / name)
    assert str(rejection.value) == reason


def test_a_long_text_cut_within_a_character_by_the_first_read_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("é" * 50_000 + "x", encoding="utf-8")
    (tmp_path / "b.jpg").write_text("x" + "é" * 50_000, encoding="utf-8")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(RejectedError, match="holds plain text"):
            recognised(tmp_path / name)


def test_a_container_cut_before_its_index_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [10] * 12)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RejectedError, match="damaged or cut short"):
        recognised(path)


def test_a_playlist_in_disguise_is_not_followed(tmp_path: Path) -> None:
    target = write_sound(tmp_path / "private.mp3", tone(0.5, 44_100), codec="libmp3lame")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode()
    (tmp_path / "a.mp3").write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x00" + playlist)
    with pytest.raises(RejectedError):
        audio.probe(str(tmp_path / "a.mp3"))


def test_captions_files_and_undecodable_names() -> None:
    assert recognise("sub/captions.jsonl", "/nowhere/captions.jsonl") is None
    assert recognise("caf\ufffd.csv", "/nowhere") is None
    with pytest.raises(RejectedError, match="name that is not UTF-8"):
        recognise("caf\ufffd.jpg", "/nowhere")
