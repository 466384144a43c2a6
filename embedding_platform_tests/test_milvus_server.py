"""The Milvus server that tests start: it survives being killed, and nobody it was started by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import connect
from embedding_platform.milvus.partitions import Partition
from embedding_platform.milvus.sync import read_rows, sync_partition
from embedding_platform_tests.milvus.making import desired, new_collection, no_rows, rows_for
from embedding_platform_tests.milvus_server import ends

pytestmark = pytest.mark.server

PARENT = """
import sys
from embedding_platform_tests.milvus_server import MilvusServer
server = MilvusServer(sys.argv[1])
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_server_comes_back_at_its_address_with_its_rows(mortal_server):
    client = connect(mortal_server.uri, mortal_server.token)
    partition = Partition(new_collection(client), "photos")
    wanted = desired(range(50))
    sync_partition(client, partition, wanted, rows_for(wanted))
    client.close()
    uri, pid = mortal_server.uri, mortal_server.pid
    mortal_server.kill()
    assert ends(pid, seconds=0)
    with pytest.raises(PlatformError, match=f"no Milvus answers at {uri}"):
        connect(uri, mortal_server.token, timeout_seconds=1)

    mortal_server.start()
    assert mortal_server.uri == uri
    assert mortal_server.pid != pid
    client = connect(uri, mortal_server.token)
    assert set(read_rows(client, partition).index) == set(wanted.index)
    assert sync_partition(client, partition, wanted, no_rows).batches == 0
    client.close()


def test_the_server_ends_with_the_process_that_started_it_even_if_that_is_killed(mortal_server, tmp_path):
    folder = tmp_path / "of_another_process"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pid = int(parent.stdout.readline())
    assert not ends(pid, seconds=0.2)
    parent.kill()
    parent.communicate()
    assert ends(pid)
    assert not ends(mortal_server.pid, seconds=0.2), "several run beside each other"
