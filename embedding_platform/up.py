"""The whole platform as one thing to start and stop: web server, daemon, code location and local Milvus.

The parts are processes of their own. Milvus Lite comes first where settings name a folder, since
its folder takes one process and here several need it; they find its server by the folder, which
may be that of `embedding-platform serve`. Then comes the code location, in a server that can load
its code anew, then the web server and the daemon, which both talk to it.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

import click
import psutil
import yaml

from embedding_platform.errors import PlatformError, first_line
from embedding_platform.milvus.connection import keep_served
from embedding_platform.platform import Platform
from embedding_platform.runs import home, instance
from embedding_platform.serving.access import is_loopback
from embedding_platform.settings import FILE_VARIABLE
from embedding_platform.supervision import Part, Running, Supervisor, end_leftovers

NOTE = ".dagster/up.json"
"""Says, below Dagster's home, what runs there: it is locked as long as that lasts, so that no lock is left behind."""

_SOCKETS = "embedding-platform-"
"""Beginning of the names of temporary folders that hold sockets."""

_MOST_BYTES = 1 << 20


def up(platform: Platform, host: str, port: int, settings_file: str | None = None) -> int:
    """Start everything and keep it running until Ctrl-C, SIGTERM or SIGHUP; returns 0, or 1 if a part gave up.

    Raises:
        PlatformError: before anything is started, if it runs already, the port is taken, this folder has
            no dagster.yaml or no workspace.yaml, Dagster's storage cannot be opened, or a model is not
            there; while it starts, if a part does not come to work.
    """
    if not os.path.isfile("workspace.yaml"):
        raise PlatformError("no workspace.yaml in this folder; change to the project's folder")
    dagster_home = home()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with ExitStack() as stack:
        note = stack.enter_context(_locked_note(os.path.join(dagster_home, NOTE)))
        _end_what_a_killed_start_left(note)
        _refuse_taken_port(host, port)
        platform.check()
        with instance():
            pass
        sockets = tempfile.mkdtemp(prefix=_SOCKETS)
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        begun = {
            "address": address,
            "pid": os.getpid(),
            "since": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
            "folder": os.getcwd(),
            "sockets": sockets,
        }
        environment = {**os.environ, "DAGSTER_HOME": dagster_home}
        if settings_file:
            environment[FILE_VARIABLE] = os.path.abspath(settings_file)
        supervisor = Supervisor(environment, say=_say, changed=partial(_write_note, note, begun))
        supervisor.changed([])
        stack.enter_context(supervisor.stopped_by_signals())
        if platform.settings.milvus_is_folder:
            uri = stack.enter_context(keep_served(platform.settings.milvus_uri, _say))
            _say(f"Milvus Lite: {platform.settings.milvus_uri}, served at {uri}")
        stack.callback(supervisor.stop)
        if not all(supervisor.start(part) for part in _parts(host, port, address, sockets)):
            return 0
        if warning := _open_door(host):
            _say(warning)
        _say(f"web UI: {address} (pid {os.getpid()}); Ctrl-C stops everything")
        return 0 if supervisor.watch() else 1


def _say(line: str) -> None:
    # A terminal that was closed does not keep the parts from being ended.
    with suppress(OSError):
        click.echo(f"embedding-platform: {line}", err=True)


@contextmanager
def _locked_note(path: str) -> Iterator[int]:
    """The note, open and locked until the context ends; what it says is of a former start.

    The lock belongs to the open file, so that it ends with the process. A note of a process
    that is gone, or whose number another one has now, is not locked.

    Raises:
        PlatformError: if a process that lives holds it.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PlatformError(f"{path} cannot be written: {error.strerror}; permit writing to it") from None
    try:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = _read(note)
            if not there:
                raise PlatformError("embedding-platform is just being started here; wait a moment") from None
            parts = "".join(f", {name} (pid {pid})" for name, pid, _ in there["parts"])
            raise PlatformError(
                f"runs here already since {there['since']}: {there['address']} (pid {there['pid']}){parts}; "
                f"open it, or stop it by Ctrl-C there or by: kill {there['pid']}"
            ) from None
        try:
            yield note
        finally:
            os.ftruncate(note, 0)
    finally:
        os.close(note)


def _read(note: int) -> dict[str, Any]:
    """What a note says: nothing for an empty one, for the half that a power cut left, and for another version's."""
    try:
        there = dict(json.loads(os.pread(note, _MOST_BYTES, 0)))
    except (ValueError, TypeError):
        return {}
    return there if {"address", "pid", "since", "folder", "sockets", "parts"} <= there.keys() else {}


def _write_note(note: int, begun: dict[str, Any], running: Sequence[Running]) -> None:
    text = json.dumps({**begun, "parts": [[part.name, part.pid, part.born] for part in running]}).encode()
    # On a full disk the former note stays; what it does not name ends by itself where `up` is killed.
    with suppress(OSError):
        os.pwrite(note, text, 0)
        os.ftruncate(note, len(text))


def _end_what_a_killed_start_left(note: int) -> None:
    there = _read(note)
    if not there:
        return
    _say(f"the start of {there['since']} (pid {there['pid']}) ended without stopping; taking its place")
    end_leftovers([Running(*part) for part in there["parts"]], there["folder"], _say)
    if os.path.basename(there["sockets"]).startswith(_SOCKETS):
        shutil.rmtree(there["sockets"], ignore_errors=True)
    os.ftruncate(note, 0)


def _refuse_taken_port(host: str, port: int) -> None:
    """Raises PlatformError where the web server could not listen."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the web server does: connections that linger there are nobody's.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PlatformError(
                f"port {port} of {host} is taken{_by_whom(port)}; stop that, or choose another with --port"
            ) from None
        raise PlatformError(
            f"no web server can listen at {host}, port {port}: {error.strerror}; choose others with --host and --port"
        ) from None


def _by_whom(port: int) -> str:
    # Another user's process does not show who it is.
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _open_door(host: str) -> str:
    """What to say of a host where other machines reach the web UI, "" for this machine alone."""
    if is_loopback(host):
        return ""
    return (
        f"host {host} lets other machines in, and Dagster asks nobody who they are: whoever reaches the web UI may "
        "start and delete runs; put a proxy that asks before it, or leave the host at 127.0.0.1"
    )


def _parts(host: str, port: int, address: str, sockets: str) -> Iterator[Part]:
    """The parts in the order of their start: a server for each code location of workspace.yaml, web server, daemon."""
    workspace = os.path.join(sockets, "workspace.yaml")
    locations = []
    for number, (name, arguments, entry) in enumerate(_code_locations()):
        if arguments is not None:
            path = os.path.join(sockets, f"{number}.sock")
            server = ("--socket", path, "--location-name", name, *arguments)
            quiet = ("--log-level", "warning", "--inject-env-vars-from-instance")
            module = "embedding_platform.code_server"
            yield Part(f"code location {name}", module, (*server, *quiet), partial(_code_is_served, path))
            entry = {"socket": path, "location_name": name}
        locations.append({"grpc_server": entry})
    with open(workspace, "w", encoding="utf-8") as file:
        yaml.safe_dump({"load_from": locations}, file)
    listening = ("--host", host, "--port", str(port))
    yield Part(
        "web server", "dagster_webserver", (*listening, "--workspace", workspace), partial(_web_ui_answers, address)
    )
    yield Part("daemon", "dagster._daemon", ("run", "--workspace", workspace), lambda: True)


def _code_locations() -> list[tuple[str, Sequence[str] | None, dict[str, Any]]]:
    """Name, arguments of a code server, and entry of a workspace for each location of workspace.yaml.

    Arguments are None for a server that somebody else runs; its entry says where it is.
    """
    from dagster._core.errors import DagsterError
    from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, ManagedGrpcPythonEnvCodeLocationOrigin
    from dagster._core.workspace.load import location_origins_from_yaml_paths
    from dagster_shared.check import CheckError

    try:
        origins = location_origins_from_yaml_paths(["workspace.yaml"])
    except (DagsterError, CheckError, yaml.YAMLError) as error:
        raise PlatformError(f"workspace.yaml is no workspace of Dagster: {first_line(error)}; mend it") from None
    locations: list[tuple[str, Sequence[str] | None, dict[str, Any]]] = []
    for origin in origins:
        if isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin):
            locations.append((origin.location_name, origin.loadable_target_origin.get_cli_args(), {}))
        elif isinstance(origin, GrpcServerCodeLocationOrigin):
            place = {"host": origin.host, "port": origin.port, "socket": origin.socket}
            entry = {name: value for name, value in place.items() if value is not None}
            locations.append((origin.location_name, None, {**entry, "location_name": origin.location_name}))
    return locations


def _code_is_served(path: str) -> bool:
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient

    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    try:
        DagsterGrpcClient(socket=path).ping("at work?")
    except DagsterUserCodeUnreachableError:
        return False
    return True


def _web_ui_answers(address: str) -> bool:
    place = address.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")
    try:
        with urllib.request.urlopen(f"{place}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
