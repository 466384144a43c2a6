import errno
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest
from fsspec.spec import AbstractFileSystem

from embedding_platform import storage
from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.media import listing
from embedding_platform.media.listing import (
    ENTRIES,
    Entry,
    current_state,
    entries,
    entries_table,
    list_entries,
    list_sources,
    newest_change,
    shares,
)
from embedding_platform.media.reading import open_media


def paths(root: Path, source: str = "s") -> list[str]:
    return [entry.path for entry in list_entries(str(root), source)]


def test_sources_are_the_visible_folders_of_the_root(tmp_path: Path) -> None:
    for name in ("zoo", "Ärger", ".hidden", "a.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "zoo")
    (tmp_path / "file.txt").write_text("belongs to no source")
    assert list_sources(str(tmp_path)) == ["linked", "zoo", "Ärger"]


@pytest.mark.parametrize(
    ("root", "mend"),
    [("{tmp}/nowhere", "create the folder"), ("memory://nowhere-{unique}", r"put an object such as sources/\.keep")],
)
def test_a_root_that_is_not_there_is_named_with_the_mend(tmp_path: Path, root: str, mend: str) -> None:
    root = root.format(tmp=tmp_path, unique=uuid4().hex)
    with pytest.raises(PlatformError, match=rf"^media_root .* is not there; {mend}"):
        list_sources(root)
    # A disk that is not mounted is not a source that was emptied.
    with pytest.raises(PlatformError, match=rf"^media_root .* is not there; {mend}"):
        list_entries(root, "s")
    if "://" in root:
        storage.write_bytes(f"{root}/sources/.keep", b"")
        assert list_sources(root) == ["sources"]
        assert list_entries(root, "s") == []


def test_an_unknown_protocol_is_the_users_mistake() -> None:
    with pytest.raises(PlatformError, match="no file system for gopher://"):
        list_sources("gopher://somewhere")


def test_a_missing_source_is_empty(tmp_path: Path) -> None:
    assert list_entries(str(tmp_path), "s") == []
    root = f"memory://{uuid4().hex}"
    fsspec.url_to_fs(root)[0].pipe_file(f"{root}/other/a.txt", b"x")
    assert list_entries(root, "s") == []


def test_the_buckets_of_a_folder_share_its_files_and_all_have_its_captions_files(tmp_path: Path) -> None:
    names = [
        f"{folder}{number}.{suffix}" for folder in ("", "sub/") for number in range(9) for suffix in ("png", "txt")
    ]
    for name in (*names, "captions.jsonl", "sub/captions.jsonl"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_text(name)
    whole = entries_table(str(tmp_path), "s")
    assert list(shares("s", whole, {})) == [("s", whole)]
    found = dict(shares("s", whole, {"s": 3}))
    assert list(found) == ["s~0of3", "s~1of3", "s~2of3"]
    captions = {"captions.jsonl", "sub/captions.jsonl"}
    shared_out = [set(table["path"].to_pylist()) - captions for table in found.values()]
    assert all(shared_out)
    assert sorted(path for own in shared_out for path in own) == sorted(names)
    for source, table in found.items():
        assert captions < set(table["path"].to_pylist())
        assert entries_table(str(tmp_path), source, {"s": 3}) == table, "as its own run lists it"


@pytest.mark.parametrize(("source", "counts"), [("s", {"s": 3}), ("s~0of3", {}), ("s~0of3", {"s": 4})])
def test_a_source_that_is_superseded_has_no_file(tmp_path: Path, source: str, counts: dict[str, int]) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "captions.jsonl").write_text("")
    assert entries_table(str(tmp_path), source).num_rows == 1
    assert entries_table(str(tmp_path), source, counts).num_rows == 0


def test_a_linked_source_that_leads_nowhere_is_not_a_removed_one(tmp_path: Path) -> None:
    (tmp_path / "disk" / "photos").mkdir(parents=True)
    (tmp_path / "disk" / "photos" / "a.txt").write_text("words")
    (tmp_path / "media").mkdir()
    link = tmp_path / "media" / "s"
    link.symlink_to(tmp_path / "disk" / "photos")
    assert paths(tmp_path / "media") == ["a.txt"]
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(PlatformError, match=r"^source s under .*media is a link to .*photos, where nothing is; mount"):
        paths(tmp_path / "media")
    link.unlink()
    assert paths(tmp_path / "media") == []


def test_entries_are_sorted_and_carry_size_and_change_mark(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "sub folder"
    folder.mkdir(parents=True)
    (folder / "käse 🧀.txt").write_bytes(b"12345")
    (tmp_path / "s" / "b.txt").write_bytes(b"")
    first, second = list_entries(str(tmp_path), "s")
    assert (first.path, second.path) == ("b.txt", "sub folder/käse 🧀.txt")
    assert second.uri == str(folder / "käse 🧀.txt")
    status = (folder / "käse 🧀.txt").stat()
    assert (second.size, second.modified) == (5, f"{status.st_mtime_ns}.{status.st_ctime_ns}")
    assert current_state(second.uri) == (second.size, second.modified)


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        ".folder/a.txt",
        "a.tmp",
        "a.PART",
        "a.crdownload",
        "a.txt~",
        ".a.swp",
        "a.swp",
        "~$report.docx",
        "#a#",
    ],
)
def test_hidden_and_temporary_names_are_left_out(tmp_path: Path, name: str) -> None:
    for root in (str(tmp_path), f"memory://{uuid4().hex}"):
        for path in (name, "kept.txt"):
            with fsspec.open(f"{root}/s/{path}", "wb", auto_mkdir=True) as file:
                file.write(b"x")
        assert [entry.path for entry in list_entries(root, "s")] == ["kept.txt"]


def test_pipes_and_sockets_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    os.mkfifo(source / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket.wav"))
        assert paths(tmp_path) == []


def test_links_are_followed_but_no_folder_twice(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    (source / "real").mkdir(parents=True)
    elsewhere.mkdir()
    (source / "real" / "a.txt").write_text("a")
    (elsewhere / "b.txt").write_text("b")
    (elsewhere / "back").symlink_to(source)
    (source / "a-link-sorted-first").symlink_to(source / "real")
    (source / "file-link.txt").symlink_to(source / "real" / "a.txt")
    (source / "loop").symlink_to(source)
    (source / "self").symlink_to(source / "self")
    (source / "up").symlink_to(tmp_path)
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (source / "out").symlink_to(elsewhere)
    assert paths(tmp_path) == ["file-link.txt", "out/b.txt", "real/a.txt"]


def test_a_folder_that_may_not_be_read_is_an_error_not_an_empty_folder(tmp_path: Path) -> None:
    locked = tmp_path / "s" / "locked"
    locked.mkdir(parents=True)
    locked.chmod(0)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("this user reads everything")
        with pytest.raises(PlatformError, match="cannot be listed: Permission denied"):
            list_entries(str(tmp_path), "s")
    finally:
        locked.chmod(0o700)


def test_a_name_that_is_not_utf8_is_shown_with_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    assert paths(tmp_path) == ["caf\ufffd.txt"]


def test_a_source_whose_name_is_not_utf8_keeps_no_other_from_being_listed(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9"), "real \ufffd", "s"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x")
    assert list_sources(str(tmp_path)) == ["caf\ufffd", "real \ufffd", "s"]
    assert paths(tmp_path) == paths(tmp_path, "real \ufffd") == ["a.txt"]
    with pytest.raises(PlatformError, match=r"^source caf\ufffd under .* has a name that is not UTF-8; rename"):
        paths(tmp_path, "caf\ufffd")
    assert paths(tmp_path, "gone \ufffd") == []


@pytest.mark.parametrize("name", ["a::b.txt", "[x]*.txt", "file#1?.txt", "100%.txt"])
def test_odd_local_names_can_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_text(name)
    (entry,) = list_entries(str(tmp_path), "s")
    with open_media(entry.uri) as file:
        assert file.read().decode() == name


def test_a_local_file_tells_when_it_was_put_there_whatever_time_it_carries(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    file = tmp_path / "s" / "old.txt"
    file.write_text("copied with its time")
    os.utime(file, (1, 1))
    (entry,) = list_entries(str(tmp_path), "s")
    assert entry.changed_at == pytest.approx(file.stat().st_ctime)
    (tmp_path / "s" / "newer.txt").write_text("x")
    table = entries_table(str(tmp_path), "s")
    assert newest_change(table) == max(one.changed_at or 0 for one in entries(table)) >= entry.changed_at
    assert newest_change(table.slice(0, 0)) is None


def test_elsewhere_no_time_is_known() -> None:
    assert Entry("a.txt", "s3://bucket/s/a.txt", 1, "1700000000.5").changed_at is None
    assert newest_change(pa.table([["a.txt"], ["s3://bucket/s/a.txt"], [1], ["0123abc"]], ENTRIES.names)) is None


def test_remote_entries_change_their_mark_with_their_content() -> None:
    root = f"memory://{uuid4().hex}"
    marks = []
    for content in (b"one", b"two"):
        fsspec.url_to_fs(root)[0].pipe_file(f"{root}/s/a/b.txt", content)
        (entry,) = list_entries(root, "s")
        assert (entry.path, entry.uri, entry.size) == ("a/b.txt", f"{root}/s/a/b.txt", 3)
        assert current_state(entry.uri) == (entry.size, entry.modified)
        marks.append(entry.modified)
    assert marks[0] != marks[1]


def test_opening_what_is_gone_rejects(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="no longer there"):
        open_media(str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("failing", ["a.txt", "sub", "linked", "s"])
def test_what_the_disk_does_not_tell_is_an_error_not_an_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, failing: str
) -> None:
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "a.txt").write_text("a")
    (source / "sub" / "b.txt").write_text("b")
    real_stat, real_scandir = os.stat, os.scandir

    def fail_if_named(path: object) -> None:
        if os.path.basename(os.fspath(path)) == failing:  # type: ignore[call-overload]
            raise OSError(code, os.strerror(code), path)

    def stat(path: object, *args: object, **options: object) -> os.stat_result:
        fail_if_named(path)
        return real_stat(path, *args, **options)  # type: ignore[arg-type]

    class Child:
        """A directory entry, which has its own way to the disk."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.entry, self.name, self.path = entry, entry.name, entry.path
            self.is_symlink = entry.is_symlink

        def __fspath__(self) -> str:
            return self.path

        def stat(self) -> os.stat_result:
            fail_if_named(self.path)
            return self.entry.stat()

    def scandir(path: str) -> AbstractContextManager[list[Child]]:
        fail_if_named(path)
        return nullcontext([Child(entry) for entry in real_scandir(path)])

    assert paths(tmp_path) == ["a.txt", "sub/b.txt"]
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(listing.os, "DirEntry", Child)
    with pytest.raises(PlatformError, match=rf"{failing} cannot be (looked at|listed): .*; permit"):
        list_entries(str(tmp_path), "s")


def test_a_listing_that_fails_in_the_middle_is_no_shorter_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "s" / name).write_text(name)
    real = os.scandir

    def failing(path: str) -> Iterator[os.DirEntry[str]]:
        yield next(iter(real(path)))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", lambda path: nullcontext(failing(path)))
    with pytest.raises(PlatformError, match="cannot be listed: Input/output error; "):
        list_entries(str(tmp_path), "s")


@pytest.mark.parametrize("failing", ["s", "s/sub"])
def test_a_remote_folder_that_cannot_be_listed_is_an_error(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    root = f"memory://{uuid4().hex}"
    fs = fsspec.url_to_fs(root)[0]
    fs.pipe_file(f"{root}/s/a.txt", b"a")
    fs.pipe_file(f"{root}/s/sub/b.txt", b"b")
    # This file system finds all files at once; others walk.
    monkeypatch.setattr(type(fs), "find", AbstractFileSystem.find)
    real = type(fs).ls

    def ls(self: object, path: str, *args: object, **options: object) -> object:
        if path.rstrip("/").endswith(failing):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, path, *args, **options)

    assert [entry.path for entry in list_entries(root, "s")] == ["a.txt", "sub/b.txt"]
    monkeypatch.setattr(type(fs), "ls", ls)
    with pytest.raises(PlatformError, match=r"source s under .* cannot be listed: Input/output error; permit"):
        list_entries(root, "s")


def test_a_remote_folder_whose_state_is_not_told_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"memory://{uuid4().hex}"
    fs = fsspec.url_to_fs(root)[0]
    fs.pipe_file(f"{root}/s/a.txt", b"a")

    def info(self: object, path: str, **options: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(type(fs), "info", info)
    with pytest.raises(PlatformError, match="cannot be listed: Permission denied"):
        list_entries(root, "s")


def test_a_rewrite_of_the_same_size_within_the_same_second_changes_the_state(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    states = set()
    for nanoseconds in (1_700_000_000_000_000_001, 1_700_000_000_000_000_002):
        path.write_text(str(nanoseconds % 10))
        os.utime(path, ns=(nanoseconds, nanoseconds))
        states.add(current_state(str(path)))
    assert len(states) == 2


def test_what_became_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(RejectedError, match="is no longer a file"):
        open_media(str(tmp_path / "a.wav"))
