import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import budget_of, choose_devices, choose_dtype


@pytest.mark.parametrize(
    ("cuda_devices", "has_mps", "wish", "chosen"),
    [
        (0, False, "auto", ("cpu",)),
        (0, True, "auto", ("mps",)),
        (2, True, "auto", ("cuda:0", "cuda:1")),
        (2, False, "cuda", ("cuda:0", "cuda:1")),
        (2, False, "cuda:1", ("cuda:1",)),
        (0, True, "mps", ("mps",)),
        (2, True, "cpu", ("cpu",)),
    ],
)
def test_devices_are_chosen(monkeypatch, cuda_devices, has_mps, wish, chosen):
    _pretend(monkeypatch, cuda_devices, has_mps)
    assert choose_devices(wish) == chosen


@pytest.mark.parametrize(
    ("cuda_devices", "has_mps", "wish", "offered"),
    [
        (0, False, "cuda", "cpu"),
        (2, False, "cuda:2", "cpu, cuda:0, cuda:1"),
        (0, False, "mps", "cpu"),
        (0, True, "cuda:0", "cpu, mps"),
    ],
)
def test_an_absent_device_is_refused_with_those_present(monkeypatch, cuda_devices, has_mps, wish, offered):
    _pretend(monkeypatch, cuda_devices, has_mps)
    with pytest.raises(PlatformError, match=f"device {wish} is not there; set device to auto or to one of {offered}$"):
        choose_devices(wish)


def _pretend(monkeypatch, cuda_devices, has_mps):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda_devices)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)


def test_precisions_are_torch_types_and_half_is_refused_on_the_cpu():
    assert choose_dtype("float32", "cpu") is torch.float32
    assert choose_dtype("bfloat16", "cpu") is torch.bfloat16
    assert choose_dtype("float16", "cuda:0") is torch.float16
    with pytest.raises(PlatformError, match="choose bfloat16 or float32"):
        choose_dtype("float16", "cpu")


@pytest.mark.parametrize(
    ("device", "role", "parameters", "budget"),
    [
        ("cpu", "text", 22_713_216, 1024),
        ("cpu", "text", 109_484_928, 512),
        ("cpu", "image", 427_616_512, 4),
        ("cuda:1", "text", 109_484_928, 32768),
        ("mps", "video", 0, 8),
    ],
)
def test_a_batch_is_as_large_as_suits_device_and_model(device, role, parameters, budget):
    assert budget_of(device, role, parameters) == budget
