"""A line to Milvus that can be slow, silent or cut."""

import contextlib
import socket
import threading
import time


class Proxy:
    """A TCP proxy before a port of this machine.

    `delay` seconds are added to each packet in both directions; `is_silent` holds everything
    back, `loses_answers` the server's answers, and sets `lost_answer` when there is one; `cut`
    drops all connections and refuses new ones until `mend`.
    """

    def __init__(self, target: str) -> None:
        self.delay = 0.0
        self.is_silent = False
        self.loses_answers = False
        self.lost_answer = threading.Event()
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
        # Closing alone does not end the `accept` that waits.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
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
                answers = sink in self._near and holds_answer(packet)
                while self.is_silent or (self.loses_answers and answers):
                    if answers:
                        self.lost_answer.set()
                    time.sleep(0.05)
                sink.sendall(packet)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def holds_answer(packet: bytes) -> bool:
    """Whether a server's HTTP/2 frames tell of a call, by DATA or HEADERS, not of the connection (RFC 9113, 4.1)."""
    at = 0
    while at + 9 <= len(packet):
        if packet[at + 3] in (0, 1):
            return True
        at += 9 + int.from_bytes(packet[at : at + 3], "big")
    return False
