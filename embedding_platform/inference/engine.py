"""From a model's description to an encoder at work: its network, on the fastest runtime that gives its vectors."""

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import numpy as np

from embedding_platform.errors import PlatformError, first_line
from embedding_platform.inference import on_openvino, on_torch
from embedding_platform.inference.devices import Execution, budget_of, choose_devices, choose_dtype
from embedding_platform.inference.memory import is_out_of_memory, refuse_without_memory
from embedding_platform.inference.padding import padded_shape, stacked
from embedding_platform.inference.precision import PrecisionRecord, machine, sample_contents
from embedding_platform.models import loading, openai
from embedding_platform.models.encoder import Encoder, Lane, Network, Prepared, Purpose, check_content
from embedding_platform.models.openai import Endpoint
from embedding_platform.records import Content, digest
from embedding_platform.spaces import Model, Role

if TYPE_CHECKING:
    from torch import nn

BYTES_PER_WEIGHT = 4
"""Weights are read in float32, whatever they run in; there is no sense in beginning with less memory."""

LANES_PER_CUDA_DEVICE = 2
"""One copies its batch in while the other computes."""

_loaded: dict[tuple[Model, Execution], tuple[str, "Encoder"]] = {}
"""The weights that each encoder was made from, and the encoder."""

_loading = threading.Lock()


class Program(Protocol):
    """A network ready to run on one device; one thread at a time runs it."""

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float32 [n, d] of a batch of arrays, in the order of the network's arguments."""

    def beside(self) -> "Program":
        """The same network for a second thread."""


def load_encoder(
    model: Model,
    execution: Execution,
    record: PrecisionRecord | None = None,
    endpoint: Endpoint | None = None,
) -> Encoder:
    """The model, ready to embed; loaded once per process, in the way that `execution` says.

    A model behind a server is reached at `endpoint`.

    Weights that were saved anew in a model's folder take the place of those loaded before.
    Without `record`, the precision of a runtime is checked in each process again.

    Raises:
        PlatformError: if the model cannot be found, fetched or read, or is not what its
            description says, or device or runtime are not there; the message says the mend.
    """
    if loading.is_remote(model):
        return _connect(model, endpoint)
    with _loading:
        weights = loading.weights(model)
        if _loaded.get((model, execution), ("",))[0] != weights:
            _loaded[model, execution] = (weights, _start(model, execution, record or PrecisionRecord()))
        return _loaded[model, execution][1]


@lru_cache(maxsize=16)
def _connect(model: Model, endpoint: Endpoint | None) -> Encoder:
    if endpoint is None:
        raise PlatformError(f"{model.location} runs behind a server; say where in the openai settings")
    # The settings add the server to the name, and a name may begin with @ itself.
    name, _, url = model.location.rpartition("@")
    return openai.connect(replace(model, location=name) if "://" in url else model, endpoint)


def _start(model: Model, execution: Execution, record: PrecisionRecord) -> Encoder:
    devices = choose_devices(execution.device)
    for device in devices:
        choose_dtype(execution.precision, device)
    runtime, reason = _choose_runtime(execution, devices)
    return LocalEncoder(model, loading.read_network(model), devices, execution, runtime, reason, record)


def _choose_runtime(execution: Execution, devices: Sequence[str]) -> tuple[str, str]:
    """ "openvino" or "torch", and why it is not openvino where that was to be expected."""
    if devices != ("cpu",) or execution.runtime == "torch":
        if execution.runtime == "openvino":
            raise PlatformError(f"runtime openvino runs on device cpu, not on {devices[0]}; set runtime to auto")
        return "torch", ""
    missing = on_openvino.missing()
    if missing and execution.runtime == "openvino":
        raise PlatformError(f"runtime openvino is not there: {missing}")
    return ("torch", missing) if missing else ("openvino", "")


@dataclass(eq=False)
class LocalEncoder:
    """An `Encoder` whose network runs in this process. Each role's network starts when it is first used."""

    model: Model
    network: Network
    devices: tuple[str, ...]
    execution: Execution
    _runtime: str
    _reason: str
    _record: PrecisionRecord
    _programs: dict[Role, list[Program]] = field(default_factory=dict)
    _starting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def roles(self) -> tuple[Role, ...]:
        """See `Encoder.roles`."""
        return self.network.roles

    @property
    def dimension(self) -> int:
        """See `Encoder.dimension`."""
        return self.network.dimension

    @property
    def device(self) -> str:
        """See `Encoder.device`."""
        return ", ".join(self.devices)

    @property
    def precision(self) -> str:
        """See `Encoder.precision`."""
        return self.execution.precision

    @property
    def runtime(self) -> str:
        """See `Encoder.runtime`."""
        return f"{self._runtime} ({self._reason})" if self._reason else self._runtime

    @property
    def lanes(self) -> Sequence[Lane]:
        """See `Encoder.lanes`."""
        if self.devices[0].startswith("cuda"):
            count = len(self.devices) * LANES_PER_CUDA_DEVICE
        else:
            count = on_openvino.lanes() if self._runtime == "openvino" else 1
        return [partial(self._run, place) for place in range(count)]

    def maximum(self, role: Role) -> str:
        """See `Encoder.maximum`."""
        return self.network.maximum(role)

    def prepare(self, role: Role, content: Content, purpose: Purpose = "document") -> Prepared:
        """See `Encoder.prepare`."""
        check_content(self.roles, role, content)
        return self.network.prepare(role, content, purpose)

    def cost(self, role: Role, prepared: Prepared) -> int:
        """See `Encoder.cost`."""
        return self._padded(role, prepared)["input_ids"][0] if role == "text" else 1

    def shape(self, role: Role, prepared: Prepared) -> Hashable:
        """See `Encoder.shape`: the shapes that the arrays are padded to, and which of them are padded at all.

        The last, since attention takes another kernel for a batch in which nothing is padded
        (transformers, masking_utils: _ignore_bidirectional_mask_sdpa).
        """
        return tuple((shape, shape != prepared[name].shape) for name, shape in self._padded(role, prepared).items())

    def budget(self, role: Role) -> int:
        """See `Encoder.budget`."""
        return budget_of(self.devices[0], role, self.model.parameters)

    def embed(self, role: Role, batch: Sequence[Content], purpose: Purpose = "document") -> np.ndarray:
        """See `Encoder.embed`."""
        prepared = [self.prepare(role, content, purpose) for content in batch]
        return self._run(0, role, prepared)

    def _run(self, place: int, role: Role, batch: Sequence[Prepared]) -> np.ndarray:
        if not batch:
            return np.empty((0, self.dimension), np.float32)
        with self._starting:
            if role not in self._programs:
                self._programs[role] = self._start(role)
        programs = self._programs[role]
        # The lanes were counted before the network started, and may have been OpenVINO's two.
        return programs[place % len(programs)].run(self._collate(role, batch))

    def _collate(self, role: Role, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Arrays [n, ...], one for each argument of the network, padded to the widths of the longest."""
        inputs = self.network.inputs(role).items()
        return [stacked([one[name] for one in batch], given) for name, given in inputs]

    def _padded(self, role: Role, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        inputs = self.network.inputs(role).items()
        return {name: padded_shape(prepared[name].shape, given) for name, given in inputs}

    def _start(self, role: Role) -> list[Program]:
        """One program for each lane, all of them checked against plain float32 torch unless they are that.

        Raises:
            PlatformError: if memory does not suffice, the network does not start, or the precision is lost.
        """
        for device in self.devices:
            refuse_without_memory(f"loading {self.model.location}", BYTES_PER_WEIGHT * self.model.parameters, device)
        try:
            return self._checked(role) if self._runtime == "torch" else self._openvino_or_torch(role)
        except (MemoryError, RuntimeError, ValueError) as error:
            # No batch is at fault, so that a stream must not look for the bad item in it.
            if is_out_of_memory(error):
                raise PlatformError(
                    f"{self.model.location} does not fit into the memory of {self.device}; stop what else runs there, "
                    "or choose a smaller model or another device"
                ) from None
            raise PlatformError(
                f"{self.model.location} does not start on {self.device} with {self._runtime}: {first_line(error)}; "
                "try another device or runtime, or fetch the model again"
            ) from error

    def _openvino_or_torch(self, role: Role) -> list[Program]:
        try:
            return self._checked(role)
        except (RuntimeError, PlatformError) as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            if self.execution.runtime == "openvino":
                raise PlatformError(
                    f"openvino cannot run {self.model.location}: {reason}; set runtime to auto or torch"
                ) from None
            self._runtime, self._reason = "torch", f"not openvino: {reason}"
            return self._checked(role)

    def _checked(self, role: Role) -> list[Program]:
        plain = self._runtime == "torch" and self.execution.precision == "float32"
        if plain or self._record.holds(facts := self._facts(role)):
            return self._placed(lambda: self.network.module(role).eval(), role)
        network = self.network.module(role).eval()
        sample = self._collate(role, self._samples(role))
        expected = on_torch.TorchProgram(network, "cpu").run(sample)
        programs = self._placed(lambda: network, role)
        self._record.check(facts, expected, programs[0].run(sample))
        return programs

    def _samples(self, role: Role) -> list[Prepared]:
        """The sample contents that the model takes; some read less than others."""
        taken = []
        for content in sample_contents(role):
            with contextlib.suppress(ValueError):
                taken.append(self.prepare(role, content))
        if not taken:
            raise PlatformError(
                f"{self.model.location} takes none of the samples of {role} that its precision is measured with; "
                "set runtime to torch and precision to float32"
            )
        return taken

    def _placed(self, network: "Callable[[], nn.Module]", role: Role) -> list[Program]:
        precision, lanes = self.execution.precision, len(self.lanes)
        first: list[Program]
        if self._runtime == "openvino":
            inputs = self.network.inputs(role)
            first = [on_openvino.compile_network(network, inputs, precision, self._kept(role))]
        else:
            # Placing moves the network itself, so that each further device needs a copy.
            one = network()
            networks = [one, *(copy.deepcopy(one) for _ in self.devices[1:])]
            first = [
                on_torch.place(one, device, choose_dtype(precision, device))
                for one, device in zip(networks, self.devices, strict=True)
            ]
        return [*first, *(first[place % len(first)].beside() for place in range(len(first), lanes))]

    def _kept(self, role: Role) -> str:
        """The folder of what the role's network was converted to, the same in every precision and on every machine."""
        if not self.execution.cache:
            return ""
        facts = self._facts(role)
        deciding = [facts[name] for name in ("weights", "pooling", "code", "role", "runtime")]
        return os.path.join(self.execution.cache, "openvino", digest(self.model.family, *deciding)[:32])

    def _facts(self, role: Role) -> dict[str, str]:
        """All that decides how far the vectors may be from float32 torch."""
        return {
            "model": self.model.location,
            "weights": loading.weights(self.model),
            "pooling": self.model.pooling,
            "code": str(loading.code_version(self.model)),
            "role": role,
            "precision": self.execution.precision,
            "runtime": f"{self._runtime} {version(self._runtime)}",
            "machine": machine(self.devices[0]),
        }
