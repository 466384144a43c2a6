"""Processes that belong together: started one after the other, started again when they die, ended as one.

A part that dies is started again, so that a process that the machine ran out of memory for does
not end the work of the others; one that dies over and over ends all of them, because starting it
again does not help. Each part has a process group of its own. What a dead part leaves of its
group is killed before it is started again, and the whole group ends with the supervising process,
however that dies (see `part`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import psutil

from embedding_platform.errors import PlatformError

SECONDS_TO_END = 10.0
"""How long a part may take to end by itself; then it is killed, which no run is harmed by."""

MOST_DEATHS = 3
SECONDS_OF_DEATHS = 120.0
"""A part that dies more often than `MOST_DEATHS` times within so long is given up."""

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BEFORE_NEXT_START = 1.0


@dataclass(frozen=True)
class Part:
    """A Python module that runs as a process of its own, and how to tell that it is at work."""

    name: str
    module: str
    arguments: tuple[str, ...]
    is_ready: Callable[[], bool]
    seconds_to_start: float = 180.0


@dataclass(frozen=True)
class Running:
    """A process by number and time of birth, which together no other process has had or will have."""

    name: str
    pid: int
    born: float

    @classmethod
    def of(cls, name: str, pid: int) -> "Running":
        """The process that has the number now; one that has just ended was born at no time."""
        try:
            return cls(name, pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return cls(name, pid, 0.0)

    @property
    def lives(self) -> bool:
        """Whether it has not ended. Another process that was given its number meanwhile does not count."""
        try:
            process = psutil.Process(self.pid)
            # Clocks are read in hundredths of a second, and a clock that is set moves the boot time they count from.
            return abs(process.create_time() - self.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass
class Supervisor:
    """The parts that run, in the order of their start, and the order to stop.

    `say` receives one line for everything that a person should know; `changed` is called
    whenever other processes run than before.
    """

    environment: Mapping[str, str]
    say: Callable[[str], None]
    changed: Callable[[Sequence[Running]], None]
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _running: dict[str, Running] = field(default_factory=dict)
    _parts: dict[str, Part] = field(default_factory=dict)
    _deaths: dict[str, list[float]] = field(default_factory=dict)
    _is_ordered: bool = False

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as the order to stop; a second one as the order to do so at once."""

        def order(number: int, frame: FrameType | None) -> None:
            self._is_ordered = True

        former = {number: signal.signal(number, order) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def start(self, part: Part) -> bool:
        """Start a part and wait until it is at work; returns whether it is, False after an order to stop.

        Raises:
            PlatformError: if it ends, or is not at work in time.
        """
        if self._is_ordered:
            return False
        self._parts[part.name] = part
        process = self._launch(part)
        deadline = time.monotonic() + part.seconds_to_start
        while not part.is_ready():
            if process.poll() is not None:
                raise PlatformError(f"{part.name} {_how_it_ended(process)} while it started; see what it said above")
            if time.monotonic() > deadline:
                raise PlatformError(
                    f"{part.name} is not at work after {part.seconds_to_start:.0f} s; see what it said above"
                )
            if self._waits(_SECONDS_BETWEEN_LOOKS):
                return False
        return True

    def watch(self) -> bool:
        """Start dead parts again until the order to stop comes; False if one dies over and over."""
        while not self._waits(_SECONDS_BETWEEN_LOOKS):
            for name, process in list(self._processes.items()):
                if process.poll() is None:
                    continue
                told = f"{name} (pid {process.pid}) {_how_it_ended(process)}"
                now = time.monotonic()
                deaths = [*(at for at in self._deaths.get(name, []) if now - at < SECONDS_OF_DEATHS), now]
                self._deaths[name] = deaths
                _kill_group(process.pid)
                if len(deaths) > MOST_DEATHS:
                    self.say(
                        f"{told}, for the {len(deaths)}th time in {SECONDS_OF_DEATHS:.0f} s; everything is stopped: "
                        "see what it said above"
                    )
                    return False
                if self._waits(_SECONDS_BEFORE_NEXT_START):
                    return True
                try:
                    self.say(f"{told}; started again as pid {self._launch(self._parts[name]).pid}")
                except OSError as error:
                    # Of a machine without room for a process: tried again, as after another death.
                    self.say(f"{told}; cannot be started again: {error.strerror}")
        return True

    def stop(self) -> None:
        """End all parts, those started last first; kill what does not end in time, or at a second order."""
        for name in reversed(self._processes):
            with suppress(ProcessLookupError):
                self._processes[name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_END
        self._is_ordered = False
        while self._live_parts() and time.monotonic() < deadline and not self._waits(_SECONDS_BETWEEN_LOOKS):
            pass
        late = self._live_parts()
        for process in self._processes.values():
            _kill_group(process.pid)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if late:
            self.say(f"killed {' and '.join(late)}; the next start takes up what was under way")
        self._processes.clear()

    def _launch(self, part: Part) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "embedding_platform.part", str(SECONDS_TO_END), part.module, *part.arguments]
        former = self._processes.get(part.name)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=self.environment, start_new_session=True, bufsize=0
        )
        if former is not None and former.stdin is not None:
            former.stdin.close()
        self._processes[part.name] = process
        self._running[part.name] = Running.of(part.name, process.pid)
        self.changed(list(self._running.values()))
        return process

    def _live_parts(self) -> list[str]:
        return [name for name, process in self._processes.items() if process.poll() is None]

    def _waits(self, seconds: float) -> bool:
        """Wait, but not after an order to stop; returns whether there was one."""
        deadline = time.monotonic() + seconds
        while not self._is_ordered and (left := deadline - time.monotonic()) > 0:
            # No event or lock: the handler of a signal, which runs in between, must not meet it held.
            time.sleep(min(left, _SECONDS_BETWEEN_LOOKS))
        return self._is_ordered


def end_leftovers(leftovers: Sequence[Running], folder: str, say: Callable[[str], None]) -> None:
    """See to it that nothing is left of parts whose supervising process was killed.

    They end by themselves in a moment; what does not is killed, and with it those of their groups
    that work in `folder`.
    """
    alive = [running for running in leftovers if running.lives]
    if alive:
        say(f"waiting for {', '.join(f'{part.name} (pid {part.pid})' for part in alive)} of a start that was killed")
    deadline = time.monotonic() + SECONDS_TO_END + 2
    while alive and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        alive = [running for running in alive if running.lives]
    for running in leftovers:
        if running.lives or not psutil.pid_exists(running.pid):
            for pid in _members(running.pid, folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _members(group: int, folder: str) -> Iterator[int]:
    """Processes of a group at work in a folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and os.path.realpath(process.cwd()) == os.path.realpath(folder):
                yield process.pid


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _how_it_ended(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
