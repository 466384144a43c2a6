"""The process that keeps one Milvus server: `python -P milvus_server_process.py FOLDER`.

It runs in the environment that holds the package `milvus`, prints one line of JSON (uri, pid)
once the server is healthy, and kills the server when its own standard input ends: the pipe
closes with the parent however that dies. A process that was itself killed takes the server
with it (Linux). Data and ports stay in FOLDER, so that another start goes on with both. `-P` keeps
this script's folder, which holds a package `milvus` too, off the path.
"""

import ctypes
import fcntl
import json
import lzma
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from milvus import MilvusServerConfig
from milvus import __file__ as packed_beside

START_SECONDS = 300.0

PORTS = range(12_000, 32_000)
"""Below those that Linux gives to outgoing connections, so that a free one stays free until it is used."""

SHORT_WAITS = {
    "PROXY_TIMETICKINTERVAL": "50",
    "QUERYCOORD_CHECKINTERVAL": "100",
    "QUERYCOORD_CHECKSEGMENTINTERVAL": "100",
    "QUERYCOORD_CHECKCHANNELINTERVAL": "100",
    "QUERYCOORD_CHECKINDEXINTERVAL": "200",
    "QUERYCOORD_CHECKHANDOFFINTERVAL": "200",
    "QUERYCOORD_COLLECTIONOBSERVERINTERVAL": "50",
    "QUERYCOORD_DISTPULLINTERVAL": "50",
    "QUERYCOORD_UPDATENEXTTARGETINTERVAL": "1",
    "INDEXCOORD_SCHEDULER_INTERVAL": "100",
    "COMMON_SESSION_TTL": "10",
}
"""How often parts of Milvus look at each other, and how long they mourn one that was killed, several
times shorter than usual (milliseconds, but seconds for the next target and the session). A server takes
its configuration from such variables before its file."""


class Config(MilvusServerConfig):
    def try_bind_port(self, port: int) -> socket.socket | None:
        return bound_to(port)


def bound_to(port: int) -> socket.socket | None:
    """A socket on a port that is free, even if connections to a killed server linger there."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("", port))
        bound.listen()
    except OSError:
        bound.close()
        return None
    return bound


def main(folder: Path) -> None:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    binaries = unpack()
    config = Config(data_dir=str(folder))
    ports = choose_ports(folder / "ports.json", [name for name in config.configurable_items if name.endswith("_port")])
    peer, health = ports.pop("peer"), ports.pop("health")
    config.update(**ports)
    config.set("authorization_enabled", True)
    config.resolve()
    etcd = folder / "configs" / "etcd.json"
    etcd.write_text(json.dumps(etcd_configuration(config.get("etcd_port"), peer)))
    surroundings = {
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(health),
        "ETCD_CONFIG_PATH": str(etcd),
        "LD_LIBRARY_PATH": str(binaries),
        "LOG_LEVEL": "warn",
    }
    with open(folder / "logs" / "server.log", "ab") as log:
        server = subprocess.Popen(
            [str(binaries / "milvus"), "run", "standalone"],
            cwd=folder,
            env={**os.environ, **surroundings, **SHORT_WAITS},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
    try:
        await_health(server, health)
        print(json.dumps({"uri": f"http://127.0.0.1:{config.get('proxy_port')}", "pid": server.pid}), flush=True)
        sys.stdin.buffer.read()
    finally:
        server.kill()
        server.wait()


def unpack() -> Path:
    """The folder of the server's binaries, unpacked on first use (250 MB)."""
    target = Path(sys.prefix) / "milvus-binaries"
    target.mkdir(exist_ok=True)
    with open(target / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for packed in sorted((Path(packed_beside).parent / "data" / "bin").glob("*.lzma")):
            binary = target / packed.stem
            if not binary.exists():
                beside = target / f".{packed.stem}"
                beside.write_bytes(lzma.decompress(packed.read_bytes()))
                beside.chmod(0o755)
                beside.rename(binary)
    return target


def choose_ports(kept: Path, names: list[str]) -> dict[str, int]:
    """A port for each name, for etcd's peers and for health: those of the last start, if there was one.

    Milvus looks for its former parts at their former addresses for a minute before it gives them up.
    """
    if not kept.exists():
        names = [*names, "peer", "health"]
        drawn = (port for port in random.SystemRandom().sample(PORTS, len(PORTS)) if is_free(port))
        kept.write_text(json.dumps({name: next(drawn) for name in names}))
    return dict(json.loads(kept.read_text()))


def is_free(port: int) -> bool:
    bound = bound_to(port)
    if bound is not None:
        bound.close()
    return bound is not None


def etcd_configuration(port: int, peer: int) -> dict[str, str]:
    """Ports of the etcd inside, which takes 2379 and 2380 where no file says otherwise."""
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return {
        "name": "default",
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": f"default={peer_url}",
    }


def end_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def await_health(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"the Milvus server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                if answer.read() == b"OK":
                    return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"the Milvus server is not healthy after {START_SECONDS:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
