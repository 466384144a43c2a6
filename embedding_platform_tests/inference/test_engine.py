import socket
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference import engine, on_openvino, on_torch
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import LANES_PER_CUDA_DEVICE, load_encoder
from embedding_platform.inference.precision import PrecisionRecord
from embedding_platform.models import loading
from embedding_platform.spaces import Model
from embedding_platform_tests.models.small_models import MINILM, TEXTS, cosines, describe, make_images, make_sounds

MODEL = describe("sentence_transformer", MINILM, 384, "text")
TORCH = Execution("cpu", "torch")
OPENVINO = Execution("cpu", "openvino")


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch):
    monkeypatch.setattr(engine, "_loaded", {})


@pytest.fixture(scope="module")
def expected():
    return load_encoder(MODEL, TORCH).embed("text", TEXTS)


@pytest.mark.parametrize(
    ("execution", "floor"),
    [
        (OPENVINO, 0.99999),
        (Execution("cpu", "torch", "bfloat16"), 0.999),
        (Execution("cpu", "openvino", "bfloat16"), 0.999),
    ],
)
def test_every_runtime_gives_the_vectors_of_float32_torch(execution, floor, expected, tmp_path):
    encoder = load_encoder(MODEL, execution, PrecisionRecord(str(tmp_path)))
    vectors = encoder.embed("text", TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 384))
    assert cosines(vectors, expected).min() > floor
    assert (encoder.runtime, encoder.device, encoder.precision) == (execution.runtime, "cpu", execution.precision)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("execution", [TORCH, OPENVINO])
def test_lanes_give_the_same_vectors_side_by_side(execution, expected):
    encoder = load_encoder(MODEL, execution)
    prepared = [encoder.prepare("text", text) for text in TEXTS]
    found: dict[int, np.ndarray] = {}

    def work(place: int) -> None:
        for _ in range(3):
            found[place] = encoder.lanes[place]("text", prepared)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(encoder.lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(encoder.lanes) >= 1
    for vectors in found.values():
        assert cosines(vectors, expected).min() > 0.99999


def test_an_empty_batch_is_an_empty_array_and_starts_nothing():
    encoder = load_encoder(MODEL, TORCH)
    assert encoder.embed("text", []).shape == (0, 384)
    assert encoder._programs == {}


def test_a_model_is_loaded_once_for_each_execution():
    first = load_encoder(MODEL, TORCH)
    assert load_encoder(MODEL, Execution("cpu", "torch")) is first
    assert load_encoder(MODEL, Execution("cpu", "torch", "bfloat16")) is not first


def test_a_precision_that_was_recorded_is_not_measured_again(tmp_path, monkeypatch):
    record = PrecisionRecord(str(tmp_path))
    load_encoder(MODEL, OPENVINO, record).embed("text", ["a"])
    engine._loaded.clear()
    monkeypatch.setattr(engine, "sample_contents", lambda role: pytest.fail("measured again"))
    load_encoder(MODEL, OPENVINO, record).embed("text", ["a"])


def test_auto_takes_openvino_on_the_cpu_and_torch_where_it_is_missing(monkeypatch):
    assert load_encoder(MODEL, Execution("cpu")).runtime == "openvino"
    engine._loaded.clear()
    monkeypatch.setattr(on_openvino, "missing", lambda: "No module named 'openvino'; pip install it")
    assert load_encoder(MODEL, Execution("cpu")).runtime == "torch (No module named 'openvino'; pip install it)"
    assert load_encoder(MODEL, TORCH).runtime == "torch"
    with pytest.raises(PlatformError, match="runtime openvino is not there: No module"):
        load_encoder(MODEL, OPENVINO)


def test_a_network_that_openvino_cannot_take_goes_to_torch_and_says_why(monkeypatch, expected):
    def refuse(*arguments):
        raise RuntimeError("no conversion rule for aten::fancy\nand much more")

    monkeypatch.setattr(on_openvino, "compile_network", refuse)
    encoder = load_encoder(MODEL, Execution("cpu"))
    np.testing.assert_allclose(encoder.embed("text", TEXTS), expected, atol=1e-5)
    assert encoder.runtime == "torch (not openvino: no conversion rule for aten::fancy)"
    with pytest.raises(PlatformError, match=r"openvino cannot run .*no conversion rule for aten::fancy; set runtime"):
        load_encoder(MODEL, OPENVINO).embed("text", ["a"])


def test_a_runtime_that_loses_precision_is_not_used(monkeypatch, expected, tmp_path):
    compiled = on_openvino.compile_network

    class Drifting:
        def __init__(self, program):
            self.program = program

        def run(self, arrays):
            return self.program.run(arrays) + 0.02

        def beside(self):
            return Drifting(self.program.beside())

    monkeypatch.setattr(on_openvino, "compile_network", lambda *arguments: Drifting(compiled(*arguments)))
    encoder = load_encoder(MODEL, Execution("cpu"), PrecisionRecord(str(tmp_path)))
    np.testing.assert_allclose(encoder.embed("text", TEXTS), expected, atol=1e-5)
    assert "below 0.9999" in encoder.runtime
    with pytest.raises(PlatformError, match=r"below 0.9999 and 0.9999; .* set runtime to auto or torch"):
        load_encoder(MODEL, OPENVINO, PrecisionRecord(str(tmp_path))).embed("text", ["a"])


def test_openvino_is_for_the_cpu(monkeypatch):
    monkeypatch.setattr(engine, "choose_devices", lambda wish: ("cuda:0",))
    with pytest.raises(PlatformError, match="runs on device cpu, not on cuda:0; set runtime to auto"):
        load_encoder(MODEL, Execution("auto", "openvino"))


def test_a_model_too_large_for_the_memory_is_refused(monkeypatch):
    free = psutil.virtual_memory()._replace(available=40_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    large = Model("sentence_transformer", MINILM, 384, ("text",), "", "", parameters=22_713_216)
    with pytest.raises(PlatformError, match=r"needs about 0\.1 GB of memory on cpu, and 0\.0 GB are free"):
        load_encoder(large, TORCH).embed("text", ["a"])


def test_memory_that_runs_out_while_loading_is_the_machines_fault(monkeypatch):
    def overflow(*arguments):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(on_torch, "place", overflow)
    with pytest.raises(PlatformError, match="does not fit into the memory of cpu"):
        load_encoder(MODEL, TORCH).embed("text", ["a"])


def test_each_cuda_device_gets_a_copy_of_its_own_and_two_lanes(monkeypatch):
    placed: list[tuple[int, str]] = []

    def place(network, device, dtype):
        placed.append((id(network), device))
        return on_torch.TorchProgram(network.to(dtype), "cpu")

    monkeypatch.setattr(on_torch, "place", place)
    monkeypatch.setattr(engine, "refuse_without_memory", lambda what, needed, device: None)
    devices = ("cuda:0", "cuda:1", "cuda:2")
    encoder = engine.LocalEncoder(
        MODEL, loading.read_network(MODEL), devices, Execution("cuda"), "torch", "", PrecisionRecord()
    )
    prepared = [encoder.prepare("text", "a red circle")]
    vectors = [lane("text", prepared) for lane in encoder.lanes]
    assert len(vectors) == len(devices) * LANES_PER_CUDA_DEVICE
    assert [device for _, device in placed] == list(devices)
    assert len({network for network, _ in placed}) == len(devices)
    assert encoder.device == "cuda:0, cuda:1, cuda:2"
    for other in vectors[1:]:
        np.testing.assert_array_equal(other, vectors[0])


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("family", "role", "dimension", "content"),
    [
        ("resnet", "image", 40, make_images()[0]),
        ("clip", "text", 24, "a red circle"),
        ("whisper", "audio", 48, make_sounds()[0]),
    ],
)
def test_nothing_is_printed_and_nobody_is_told(folders, capfd, monkeypatch, runtime, family, role, dimension, content):
    def refuse(*arguments):
        raise AssertionError(f"network: {arguments}")

    folder = folders(family)
    capfd.readouterr()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = describe(family, folder, dimension, role)
    assert load_encoder(model, Execution("cpu", runtime)).embed(role, [content]).shape == (1, dimension)
    assert capfd.readouterr() == ("", "")


def test_the_makers_of_openvino_hear_nothing():
    script = (
        "import sys\n"
        "from embedding_platform.inference import on_openvino\n"
        "assert on_openvino.missing() == ''\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_server_needs_to_be_named():
    remote = Model("openai", "openai:text-embedding-3-small@http://h/v1", 1536, ("text",), "", "")
    with pytest.raises(PlatformError, match="say where in the openai settings"):
        load_encoder(remote, TORCH)


def test_a_stream_goes_on_where_a_lane_is_lost_to_another_runtime(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no conversion rule")

    monkeypatch.setattr(on_openvino, "compile_network", refuse)
    encoder = load_encoder(MODEL, Execution("cpu"))
    lanes = encoder.lanes
    prepared = [encoder.prepare("text", "a red circle")]
    first, *others = [lane("text", prepared) for lane in lanes]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_network_that_does_not_start_is_no_fault_of_the_batch(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no kernel image is available\nand much more")

    monkeypatch.setattr(on_torch, "place", fail)
    with pytest.raises(PlatformError, match="does not start on cpu with torch: no kernel image is available; try"):
        load_encoder(MODEL, TORCH).embed("text", ["a"])
