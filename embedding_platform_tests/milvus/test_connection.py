import json
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus import connection
from embedding_platform.milvus.connection import close_directory, connect, is_served, keep_served, serve
from embedding_platform.milvus.deployment import LITE, deployment_of
from embedding_platform_tests.milvus_server import URI_VARIABLE
from embedding_platform_tests.running_platform import wait_until

from .making import desired, new_collection, rows_for

HOLDER = """
import sys
from embedding_platform.milvus.connection import connect
connect(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""

SERVER = """
import sys
from embedding_platform.milvus.connection import serve
with serve(sys.argv[1]) as uri:
    print(uri, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def started():
    """Start processes that have a directory until their input ends; each and the line that it says then."""
    processes = []

    def start(script, directory):
        process = subprocess.Popen(
            [sys.executable, "-c", script, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(started):
    """Start processes that hold a directory."""

    def hold(directory):
        process, said = started(HOLDER, directory)
        assert said == "open"
        return process

    return hold


@pytest.fixture
def server(started):
    """Start processes that serve a directory; each and the address."""
    return partial(started, SERVER)


@pytest.fixture
def silent_port():
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def refusal(*args, **kwargs):
    with pytest.raises(PlatformError) as failure:
        connect(*args, **kwargs)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_directory_is_made_with_its_parents_and_shared(tmp_path):
    directory = tmp_path / "new" / "deep" / "milvus"
    first, second = connect(str(directory)), connect(str(tmp_path / "new" / "." / "deep" / "milvus"))
    name = new_collection(first)
    assert second.list_collections() == [name]
    assert deployment_of(first) is LITE
    first.close()
    assert second.list_collections() == [name]
    close_directory(str(directory))


def test_a_directory_that_was_closed_opens_again_with_its_rows(tmp_path):
    from embedding_platform.milvus.partitions import Partition
    from embedding_platform.milvus.sync import read_rows, sync_partition

    directory = str(tmp_path / "milvus")
    client = connect(directory)
    name = new_collection(client)
    wanted = desired(range(10))
    sync_partition(client, Partition(name, "photos"), wanted, rows_for(wanted))
    client.close()
    close_directory(directory)
    close_directory(directory)
    assert set(read_rows(connect(directory), Partition(name, "photos")).index) == set(wanted.index)
    close_directory(directory)


@pytest.mark.long
def test_a_connection_that_rests_is_not_closed_for_its_pings(tmp_path, capfd):
    client = connect(str(tmp_path / "milvus"))
    # Without the option of `connect`, Milvus Lite closes it after two minutes, and gRPC says so.
    time.sleep(180)
    assert client.list_collections() == []
    client.close()
    close_directory(str(tmp_path / "milvus"))
    assert capfd.readouterr() == ("", "")


def test_a_directory_of_another_process_is_refused_then_taken_when_free(tmp_path, holder):
    directory = str(tmp_path / "milvus")
    process = holder(directory)
    assert "another process holds" in refusal(directory, timeout_seconds=0.5)
    process.communicate()
    assert connect(directory).list_collections() == []
    close_directory(directory)


def test_a_file_is_no_directory(tmp_path):
    old = tmp_path / "old.db"
    old.write_bytes(b"SQLite")
    assert "before 3.2 cannot be read" in refusal(str(old))
    assert "cannot open" in refusal(str(old / "below"))


def test_a_server_that_is_not_there_is_named_without_secrets(capfd):
    message = refusal(f"http://root:hush@127.0.0.1:{closed_port()}", "root:s3cret", timeout_seconds=2)
    assert "no Milvus answers at http://*****@127.0.0.1" in message
    assert "start it" in message
    assert "hush" not in message
    assert "s3cret" not in message
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_server_that_says_nothing_is_given_up_within_the_timeout(silent_port):
    started = time.monotonic()
    assert "no Milvus answers" in refusal(f"http://127.0.0.1:{silent_port}", timeout_seconds=1)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the milvus uri is empty"),
        ("ftp://u:pw@host/x", "scheme 'ftp'"),
        ("http://host:port", "its port is no number; start it, or correct the uri"),
        ("http://root:hu/sh@host", "no Milvus answers at http://*****@host: its port is no number;"),
    ],
)
def test_uris_that_name_nothing_are_explained(uri, message):
    answer = refusal(uri, timeout_seconds=1)
    assert message in answer
    assert "pw" not in answer


def test_the_bundled_server_is_found_by_its_directory_and_leaves_nothing(tmp_path):
    directory = str(tmp_path / "deep" / "milvus")
    note = f"{directory}.server.json"
    with serve(directory) as uri:
        with open(note) as file:
            said = json.load(file)
        assert said["uri"] == uri
        name = new_collection(connect(directory))
        assert connect(uri).list_collections() == [name]
        with pytest.raises(PlatformError, match="already served at http"), serve(directory):
            pass
        assert os.path.exists(note)
    assert not os.path.exists(note)
    with pytest.raises(ProcessLookupError):
        os.kill(said["pid"], 0)
    assert connect(directory).list_collections() == [name]
    close_directory(directory)


def test_a_directory_in_use_cannot_be_served(tmp_path, holder):
    directory = str(tmp_path / "milvus")
    holder(directory)
    with pytest.raises(PlatformError, match=r"cannot serve .*lock"), serve(directory):
        pass


@pytest.mark.parametrize("note", ['{"uri": "http://127.0.0.1:%d", "pid": %d}', "not json", "{}", "[]"])
def test_the_note_of_a_server_whose_keeper_is_gone_is_ignored(tmp_path, note):
    directory = str(tmp_path / "milvus")
    path = tmp_path / "milvus.server.json"
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        # The port and the number of the process have gone to others meanwhile.
        path.write_text(note % (stranger.getsockname()[1], os.getpid()) if "%" in note else note)
        assert not is_served(directory)
        assert connect(directory).list_collections() == []
        close_directory(directory)


def test_the_server_dies_with_its_parent(tmp_path, server):
    directory = str(tmp_path / "milvus")
    parent, _ = server(directory)
    parent.kill()
    parent.communicate()
    assert connect(directory, timeout_seconds=120).list_collections() == []
    close_directory(directory)


@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_a_directory_that_another_process_serves_is_used_and_served_on_when_that_ends(tmp_path, server, ending):
    directory = str(tmp_path / "milvus")
    other, there = server(directory)
    said = []
    with keep_served(directory, said.append) as uri:
        assert uri == there
        client = connect(directory)
        name = new_collection(client)
        assert said == []
        if ending == "killed":
            other.kill()
        other.communicate()
        assert client.list_collections(timeout=60) == [name], "calls that are under way go on"
        assert connect(directory).list_collections() == [name]
        wait_until(lambda: said, "it is said")
        assert said == [f"Milvus Lite: the process that served {directory} has ended; served from here, at {there}"]
        assert is_served(directory)
    assert not is_served(directory)
    assert not os.path.exists(f"{directory}.server.json")


def test_a_directory_that_another_process_serves_stays_so(tmp_path, server):
    directory = str(tmp_path / "milvus")
    _, there = server(directory)
    with keep_served(directory, pytest.fail):
        pass
    assert is_served(directory)
    with keep_served(directory, pytest.fail) as uri:
        assert uri == there


def test_a_directory_that_others_open_meanwhile_is_served_once_they_have_ended(tmp_path, server, holder, monkeypatch):
    is_taken = threading.Event()
    monkeypatch.setattr(connection, "is_served", lambda path: not is_taken.is_set() or is_served(path))
    monkeypatch.setattr(connection, "_SECONDS_BETWEEN_TRIES", 0.1)
    directory = str(tmp_path / "milvus")
    other, _ = server(directory)
    said = []
    with keep_served(directory, said.append):
        other.communicate()
        has_it = holder(directory)
        is_taken.set()
        wait_until(lambda: said, "it is said")
        assert f"cannot serve {directory}" in said[0]
        assert "tried again every" in said[0]
        has_it.communicate()
        wait_until(lambda: is_served(directory), "it is served")
    assert len(said) == 2


@pytest.mark.server
def test_a_wrong_token_is_refused_without_naming_it(milvus_server):
    if not milvus_server.token:
        pytest.skip(f"the server that {URI_VARIABLE} names asks for no token")
    message = refusal(milvus_server.uri, "root:wr0ngSecret", timeout_seconds=120)
    assert "refuses the token" in message
    assert "wr0ngSecret" not in message
