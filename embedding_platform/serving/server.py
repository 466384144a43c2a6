"""The server: where it listens, the Milvus Lite that it shares with others, and what it loads before it does."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

import uvicorn

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.connection import is_served, serve
from embedding_platform.platform import Platform
from embedding_platform.serving.access import refuse_open_door
from embedding_platform.serving.app import make_app

MOST_CONNECTIONS = 200
"""At once; what comes beyond them is told to come again."""

SECONDS_TO_END = 10
"""What answers under way have to end, once the server is told to stop."""

_HEADER_BYTES = 64 * 2**10


def serve_pages(platform: Platform, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page and the API until this process is told to stop; `ready` hears the address.

    Where Milvus is a folder, and no web UI serves it already, it is served from here, so that
    runs and the command line can use it beside the page.

    Raises:
        PlatformError: if the host needs a token, the port is taken, Milvus does not answer or is
            held by another process, or a model is not there.
    """
    refuse_open_door(host, platform.settings.serving)
    # Told to stop, it leaves by way of what it has opened, whatever it is at.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _interrupt)
    with suppress(KeyboardInterrupt), listening(host, port) as door, ExitStack() as stack:

        def opened() -> Platform:
            uri = platform.settings.milvus_uri
            if platform.settings.milvus_is_folder and not is_served(uri):
                stack.enter_context(serve(uri))
            # A client of its own: that of a Milvus which went away finds no other.
            return Platform(platform.settings)

        app = make_app(opened)
        app.state.service.warm()
        ready(address_of(door, host))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # Else a variable of the environment would tell whom to believe.
            forwarded_allow_ips=["127.0.0.1", "::1"],
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=SECONDS_TO_END,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        uvicorn.Server(config).run([door])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at a host and port; port 0 is any that is free.

    Raises:
        PlatformError: if the port is taken, or the host is not one of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PlatformError(f"cannot listen at {host}: {error.strerror}; name a host of this machine") from None
    with door:
        # A port that a former server has just left counts as free.
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(place)
            door.listen(MOST_CONNECTIONS)
        except OSError as error:
            raise PlatformError(
                f"port {port} of {host} cannot be had: {error.strerror}; stop what listens there, or choose another"
            ) from None
        yield door


def address_of(door: socket.socket, host: str) -> str:
    """The address that people open."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{door.getsockname()[1]}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
