"""Several processes write through the bundled server; then it is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus import connection
from embedding_platform.milvus.connection import connect, is_served, serve
from embedding_platform.milvus.index import ann_search, ensure_index
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import read_rows, sync_partition

from .making import HNSW, desired, make_row, new_collection, no_rows, rows_for

TESTS = Path(__file__).parent.parent
WRITERS = 3
ROWS = 1500

WRITER = """
import sys
from milvus.making import desired, rows_for
from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import sync_partition

directory, collection, source, rows = sys.argv[1:]
wanted = desired(range(int(rows)), of=source)
client = connect(directory)
report = sync_partition(client, Partition(collection, source), wanted, rows_for(wanted, source, 100), print)
client.flush(collection, timeout=60)
assert report.upserted == len(wanted), report
"""


def start_writers(directory, collection):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, directory, collection, f"source {number}", str(ROWS)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "milvus")


def test_processes_write_at_once_and_a_killed_server_loses_nothing(directory):
    assert not is_served(directory)
    with serve(directory):
        client = connect(directory)
        collection = new_collection(client)
        for writer in start_writers(directory, collection):
            _, errors = writer.communicate()
            assert writer.returncode == 0, errors
        ensure_index(client, collection, HNSW, "COSINE")
        with open(f"{directory}.server.json") as file:
            os.kill(json.load(file)["pid"], signal.SIGKILL)
        # Another takes its place, which is no reason for anybody else to serve the directory.
        assert is_served(directory)
        client.close()

    assert not is_served(directory)
    with serve(directory):
        client = connect(directory)
        for number in range(WRITERS):
            source = f"source {number}"
            wanted = desired(range(ROWS), of=source)
            assert sync_partition(client, Partition(collection, source), wanted, no_rows).batches == 0
            assert len(read_rows(client, Partition(collection, source))) == ROWS
        query = make_row(wanted.index[5], "1")["vector"][None]
        (hits,) = ann_search(client, collection, None, query, 1, HNSW, "COSINE")
        assert hits[0][0] == wanted.index[5]
        client.close()


def test_a_sync_that_lost_its_server_is_finished_by_the_next(directory, monkeypatch):
    monkeypatch.setattr(connection, "_SECONDS_BETWEEN_SERVERS", 600)
    source = "source 0"
    wanted = desired(range(5000), of=source)
    with serve(directory):
        client = connect(directory)
        impatient = Impatient(client)
        collection = new_collection(client)
        with open(f"{directory}.server.json") as file:
            pid = json.load(file)["pid"]

        def killed_halfway(ids):
            for number, rows in enumerate(rows_for(wanted, source, 1000)(ids)):
                if number == 3:
                    os.kill(pid, signal.SIGKILL)
                    impatient.gives_up = True
                    return
                yield rows

        with pytest.raises(PlatformError, match=r"Milvus could not .*run again"):
            sync_partition(impatient, Partition(collection, "p"), wanted, killed_halfway)
        client.close()

    with serve(directory):
        client = connect(directory)
        report = sync_partition(client, Partition(collection, "p"), wanted, rows_for(wanted, source, 1000))
        assert 0 < report.counts["unchanged"] < 5000
        assert report.counts["new"] + report.counts["unchanged"] == 5000
        assert len(read_rows(client, Partition(collection, "p"))) == 5000
        client.close()


class Impatient:
    """A client whose calls give up after a second rather than two minutes, once it `gives_up`."""

    def __init__(self, client):
        self._client = client
        self.gives_up = False

    def __getattr__(self, name):
        call = getattr(self._client, name)
        return lambda *args, **kwargs: call(*args, **{**kwargs, **({"timeout": 1} if self.gives_up else {})})
