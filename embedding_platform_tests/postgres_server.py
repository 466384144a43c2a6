"""A real PostgreSQL for tests: made in a folder of its own, started on a free port, asking for a password."""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from embedding_platform_tests.ports import free_port

USER, PASSWORD = "dagster", "a-password-that-nothing-may-show"

START_SECONDS = 300.0

FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "60"}
"""What suits a database that is thrown away."""


@dataclass
class PostgresServer:
    """One server; it ends with this process, however that ends (Linux)."""

    binaries: str
    port: int = 0
    _folder: str = ""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="postgres-")
        password = Path(self._folder, "password")
        password.write_text(PASSWORD)
        _give(self._folder)
        _give(str(password))
        data = os.path.join(self._folder, "data")
        initdb = [f"{self.binaries}/initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"]
        subprocess.run([*initdb, f"--pwfile={password}"], check=True, stdout=subprocess.DEVNULL, **_as_another())
        self.port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(self.port), **FAST}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(os.path.join(self._folder, "log"), "wb") as log:
            self._process = subprocess.Popen(
                [f"{self.binaries}/postgres", "-D", data, *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                **_as_another(),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.execute("select 1")
            except psycopg2.OperationalError:
                said = Path(self._folder, "log").read_text()
                assert self._process.poll() is None, f"no PostgreSQL: {said[-500:]}"
                assert time.monotonic() < deadline, f"no PostgreSQL: {said[-500:]}"
                time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"create database {name}")
        return f"postgresql+psycopg2://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres")
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


def binaries() -> str:
    """The folder of PostgreSQL's server, "" where none is installed."""
    on_path = shutil.which("postgres")
    found = [os.path.dirname(on_path)] if on_path else []
    found += map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    return next((folder for folder in found if os.path.isfile(f"{folder}/initdb")), "")


def _as_another() -> dict[str, object]:
    """PostgreSQL refuses to serve as root, so that root lets another user do it."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


def _give(path: str) -> None:
    if os.geteuid() == 0:
        os.chown(path, pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)


def _end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGQUIT)
