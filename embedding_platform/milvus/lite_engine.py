"""A Milvus Lite engine in this process, which mends what a kill or a full disk left of the one before.

A collection whose making or dropping was cut off may have no schema: it cannot be opened, and
its name stays taken. A write that the disk refused tears the engine's log, and a refused flush
takes rows out of its memory: what it acknowledges afterwards is gone when it is next killed.
Opened again, it reads from disk every row that it acknowledged before.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress

from milvus_lite.adapter.grpc.server import start_server_in_thread
from milvus_lite.db import COLLECTIONS_DIRNAME, MilvusLite
from milvus_lite.exceptions import MilvusLiteError

WORKERS = 1
"""Threads of a Milvus Lite engine: it asks that writes to one collection come one by one."""

_LOG = "milvus_lite"
"""Where the engine tells what failed, in calls and in the background."""

_LOG_OF_CALLS = "milvus_lite.adapter.grpc.servicer"
"""Where it tells what failed in calls, which each caller hears of too."""

_SECONDS_FOR_CALLS_TO_END = 5.0
_SECONDS_BETWEEN_ATTEMPTS = 1.0


class LiteEngine:
    """An engine that serves one directory, at the same port of this machine for all its life; 0 chooses a free one.

    Raises:
        OSError: the directory cannot be opened.
        RuntimeError: the port is taken.
        MilvusLiteError: another process holds it.
    """

    def __init__(self, directory: str, port: int = 0) -> None:
        self.port = port
        self._directory = directory
        self._closing = threading.Event()
        self._turn = threading.Lock()
        self._open()
        self._watcher = _DiskErrors(self._reopen)
        logging.getLogger(_LOG).addHandler(self._watcher)

    def close(self) -> None:
        """Stop serving and let the directory go."""
        logging.getLogger(_LOG).removeHandler(self._watcher)
        self._closing.set()
        with self._turn:
            self._stop()

    def _open(self) -> None:
        _remove_halves(self._directory)
        self._server, self._database, self.port = start_server_in_thread(
            self._directory, host="127.0.0.1", port=self.port, max_workers=WORKERS
        )

    def _stop(self) -> None:
        self._server.stop(grace=_SECONDS_FOR_CALLS_TO_END).wait()
        self._database.close()

    def _reopen(self) -> None:
        with self._turn:
            if self._closing.is_set():
                return
            loaded = self._loaded()
            self._stop()
            while not self._closing.is_set():
                try:
                    self._open()
                    break
                except (OSError, RuntimeError, MilvusLiteError):
                    # The disk may refuse this too. Calls wait for the port until their own deadline.
                    self._closing.wait(_SECONDS_BETWEEN_ATTEMPTS)
            for database, collection in loaded:
                # What cannot be loaded without room on the disk is loaded by the next call that needs it.
                with suppress(OSError, MilvusLiteError):
                    self._database.get_collection(collection, database).load()

    def _loaded(self) -> list[tuple[str, str]]:
        """Database and name of the collections that can be searched now."""
        found = []
        for database in self._database.list_databases():
            for name in self._database.list_collections(database):
                with suppress(OSError, MilvusLiteError):
                    if self._database.get_collection(name, database).load_state == "loaded":
                        found.append((database, name))
        return found


def _remove_halves(directory: str) -> None:
    """Remove collections that have no schema, while no other engine can be in the middle of making one."""
    with MilvusLite(directory) as database, os.scandir(os.path.join(directory, COLLECTIONS_DIRNAME)) as entries:
        for entry in entries:
            if entry.is_dir() and not database.has_collection(entry.name):
                shutil.rmtree(entry.path)


class _DiskErrors(logging.Handler):
    """Calls back, in a thread of its own and once at a time, when the engine tells of an error of the disk.

    Whatever else it tells goes to standard error, as it would without this handler.
    """

    def __init__(self, call_back: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._call_back = call_back
        self._is_under_way = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError) and self._is_under_way.acquire(blocking=False):
            threading.Thread(target=self._run, daemon=True).start()
        if record.name != _LOG_OF_CALLS and logging.lastResort and not logging.getLogger().handlers:
            logging.lastResort.handle(record)

    def _run(self) -> None:
        try:
            self._call_back()
        finally:
            self._is_under_way.release()
