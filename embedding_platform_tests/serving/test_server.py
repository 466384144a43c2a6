"""`embedding-platform serve` as a process: what it says, what it refuses, and that others work beside it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_platform.milvus.connection import close_directory, connect
from embedding_platform_tests.serving.conftest import TOKEN

PATIENCE_SECONDS = 600.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "embedding_platform.cli", *arguments]


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("EMBEDDING_PLATFORM_", "DAGSTER"))
    }
    return kept | more


def said(folder: Path, *arguments: str, **more: str) -> tuple[int, str]:
    """Exit status of a command that is to end, and what it said to standard error."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return done.returncode, done.stderr


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "embedding_platform.yaml").write_text(
        "spaces: [text/minilm]\nruntime: torch\nserving: {upload_megabytes: 1}\n"
    )
    (folder / "media" / "letters").mkdir(parents=True)
    (folder / "media" / "letters" / "storm.txt").write_text("A storm tore the roof from the lighthouse.")
    return folder


@pytest.fixture(scope="module")
def served(project: Path) -> Iterator[tuple[str, Any]]:
    """The address of a server over the project, and its process."""
    with subprocess.Popen(
        command("serve", "--port", "0"), cwd=project, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("search at http://127.0.0.1:"), line
        yield line.split()[2].rstrip(";"), process
        note = project / ".embedding_platform" / "milvus.server.json"
        assert note.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert not note.exists(), "the local Milvus stops with it"


def test_it_answers_once_it_says_where(served: tuple[str, Any]) -> None:
    address, _ = served
    assert fetched(f"{address}/healthz") == (200, '{"status":"ok"}')
    assert "Nothing is published yet" in fetched(f"{address}/")[1]


def test_a_taken_port_gets_one_line(served: tuple[str, Any], project: Path) -> None:
    port = served[0].rpartition(":")[2]
    status, line = said(project, "serve", "--port", port)
    assert status == 2
    assert line.strip() == (
        f"embedding-platform: port {port} of 127.0.0.1 cannot be had: Address already in use; "
        "stop what listens there, or choose another"
    )


@pytest.mark.parametrize("host", ["0.0.0.0"])
def test_beyond_this_machine_it_wants_a_token(project: Path, host: str) -> None:
    status, line = said(project, "serve", "--host", host)
    assert status == 2
    assert line.strip() == (
        f"embedding-platform: host {host} lets other machines in, and serving.token is not set; set "
        "EMBEDDING_PLATFORM_SERVING__TOKEN, or leave the host at 127.0.0.1"
    )


def test_a_host_that_is_not_ours_gets_one_line(project: Path) -> None:
    status, line = said(project, "serve", "--host", "192.0.2.1", EMBEDDING_PLATFORM_SERVING__TOKEN=TOKEN)
    assert status == 2
    assert line.startswith("embedding-platform: port 8000 of 192.0.2.1 cannot be had: ")
    assert len(line.strip().splitlines()) == 1


def test_a_folder_that_another_process_holds_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "embedding_platform.yaml").write_text("spaces: [text/minilm]\nmilvus: {timeout_seconds: 2}\n")
    held = tmp_path / ".embedding_platform" / "milvus"
    connect(str(held))
    try:
        status, line = said(tmp_path, "serve", "--port", "0")
    finally:
        close_directory(str(held))
    assert status == 2
    assert line.startswith(f"embedding-platform: cannot serve {held}: ")
    assert len(line.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "target", ["/media/../../../../etc/passwd", "/../../etc/passwd", "//etc/passwd", "/style.css/.."]
)
def test_dots_that_no_client_took_away_lead_nowhere(served: tuple[str, Any], target: str) -> None:
    with socket.create_connection(("127.0.0.1", int(served[0].rpartition(":")[2]))) as wire:
        wire.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        with wire.makefile("rb") as answer:
            text = answer.read().decode()
    assert text.startswith("HTTP/1.1 404")
    assert "root:" not in text


def test_an_upload_that_never_ends_is_answered_at_its_limit(served: tuple[str, Any]) -> None:
    head = (
        "POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    opening = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", int(served[0].rpartition(":")[2])), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(opening), opening))
        for _ in range(20):
            # 1.25 MiB, and no end of it.
            wire.sendall(b"10000\r\n" + b"a" * 2**16 + b"\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 413")
    assert fetched(f"{served[0]}/healthz")[0] == 200


def test_a_milvus_that_is_killed_is_missed_for_a_moment(served: tuple[str, Any], project: Path) -> None:
    address, _ = served
    note = project / ".embedding_platform" / "milvus.server.json"
    former = json.loads(note.read_text())["pid"]
    os.kill(former, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while json.loads(note.read_text())["pid"] == former:
        status, said_of_it = fetched(f"{address}/healthz")
        assert status in (200, 503), said_of_it
        assert time.monotonic() < deadline, "the local Milvus is not replaced"
        time.sleep(0.2)
    while fetched(f"{address}/api/spaces") != (200, "[]"):
        assert time.monotonic() < deadline, "the page does not find the Milvus that took its place"
        time.sleep(0.2)


@pytest.mark.long
def test_a_run_beside_it_is_searchable_without_a_restart(served: tuple[str, Any], project: Path) -> None:
    address, _ = served
    (project / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert said(project, "run")[0] == 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "storm.txt" not in (found := fetched(f"{address}/api/search?words=damage+by+wind"))[1]:
        assert time.monotonic() < deadline, found
        time.sleep(1)
