"""A line to Milvus that can be slow, silent or cut."""

import contextlib
import socket
import threading
import time


class Proxy:
    """A TCP proxy before a port of this machine.

    `delay` seconds are added to each packet in both directions; `is_silent` holds everything
    back, `loses_answers` what comes from the server; `cut` drops all connections and refuses
    new ones until `mend`.
    """

    def __init__(self, target: str) -> None:
        self.delay = 0.0
        self.is_silent = False
        self.loses_answers = False
        self._is_cut = False
        self._target = target
        self._open: list[socket.socket] = []
        self._near: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        self._is_cut = True
        self.loses_answers = False
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def flicker(self) -> None:
        self.cut()
        time.sleep(0.1)
        self.mend()

    def close(self) -> None:
        self.is_silent = False
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", int(self._target)), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            self._near.add(near)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while packet := source.recv(65536):
                time.sleep(self.delay)
                while self.is_silent or (self.loses_answers and sink in self._near):
                    time.sleep(0.05)
                sink.sendall(packet)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
