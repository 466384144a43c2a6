"""Running a network with OpenVINO on the CPU."""

import importlib
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_platform.errors import PlatformError, first_line
from embedding_platform.models.encoder import Input, Precision
from embedding_platform.models.pretrained import quiet

if TYPE_CHECKING:
    from torch import nn

HINTS: Mapping[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}

_FILE = "network.xml"

_EXAMPLE = 8
"""Length of a varying axis in the example that the network is traced with."""


@dataclass(frozen=True, eq=False)
class OpenVinoProgram:
    """One inference request of a compiled network; a second thread waits its turn."""

    compiled: Any
    request: Any
    turn: Any = field(default_factory=threading.Lock)

    def run(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors float32 [n, d] of a batch of arrays, in the order of the network's arguments."""
        with self.turn:
            (vectors,) = self.request.infer(list(arrays)).values()
            return np.array(vectors, np.float32)

    def beside(self) -> "OpenVinoProgram":
        """A second request, for another thread."""
        return OpenVinoProgram(self.compiled, self.compiled.create_infer_request())


def missing() -> str:
    """Why OpenVINO cannot be used here; "" if it can."""
    try:
        _openvino()
    except ImportError as error:
        return f"{error}; pip install 'embedding-platform[openvino]' is several times as fast on a CPU"
    return ""


def _openvino() -> Any:
    """The package, which tells its makers over the network of each import, unless it misses what it does so with."""
    reporter = "openvino_telemetry"
    if "openvino" not in sys.modules and reporter not in sys.modules:
        sys.modules[reporter] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[reporter]
    return importlib.import_module("openvino")


def compile_network(
    network: "Callable[[], nn.Module]", inputs: Mapping[str, Input], precision: Precision, kept: str = ""
) -> OpenVinoProgram:
    """Compile a network for as many concurrent requests as there are lanes.

    What it was converted to is kept in the folder `kept`, where one is named, and read from
    there the next time; `network` is called only where it has to be converted.

    Raises:
        RuntimeError: if OpenVINO cannot convert the network.
    """
    openvino = _openvino()
    model = _kept(kept) if kept else None
    if model is None:
        model = _converted(network(), inputs)
        if kept:
            _keep(model, kept)
    compiled = openvino.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": lanes(),
        },
    )
    return OpenVinoProgram(compiled, compiled.create_infer_request())


def lanes() -> int:
    """Requests at once: one for each core, at most two, which share the memory better than more would."""
    return min(2, os.cpu_count() or 1)


def _converted(network: "nn.Module", inputs: Mapping[str, Input]) -> Any:
    """The network as OpenVINO holds it, in float32, traced once with an example.

    By the frontend itself: `openvino.convert_model` around it takes four times as long.
    """
    openvino = _openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = tuple(
        torch.ones([2, *(axis or _EXAMPLE for axis in given.shape)], dtype=getattr(torch, given.dtype))
        for given in inputs.values()
    )
    # Tracing warns of each branch that it takes; what it gives is compared with the network itself.
    with warnings.catch_warnings(), quiet(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network.eval(), example, strict=False, check_trace=False)
        decoder = TorchScriptPythonDecoder(traced, example_input=example)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    shapes = [[-1, *(axis or -1 for axis in given.shape)] for given in inputs.values()]
    model.reshape(dict(enumerate(map(openvino.PartialShape, shapes))))
    return model


def _kept(folder: str) -> Any:
    """The converted network in the folder; None if it holds none that can be read."""
    path = Path(folder, _FILE)
    if not path.is_file():
        return None
    try:
        return _openvino().Core().read_model(path)
    except RuntimeError:
        shutil.rmtree(folder)
        return None


def _keep(model: Any, folder: str) -> None:
    """Write the converted network beside the folder, and rename: it is there whole, or not at all.

    Raises:
        PlatformError: if the disk does not take it.
    """
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as beside:
            written = os.path.join(beside, "network")
            _openvino().save_model(model, Path(written, _FILE), compress_to_fp16=False)
            # Another process may have been first, with the same.
            if not os.path.isdir(folder):
                os.rename(written, folder)
    except (OSError, RuntimeError) as error:
        raise PlatformError(
            f"cannot keep the converted network in {folder}: {first_line(error)}; free space or permit writing there, "
            "or name another cache_root"
        ) from None
