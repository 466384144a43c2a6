"""Ports for servers that tests start."""

import random
import socket
from contextlib import suppress

PORTS = range(12_000, 32_000)
"""Below those that Linux gives to outgoing connections, so that a free one stays free until it is used."""


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
