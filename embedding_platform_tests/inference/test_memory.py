import psutil
import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.inference.memory import free_bytes, is_device_lost, is_out_of_memory, refuse_without_memory


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error, is_lack):
    assert is_out_of_memory(error) == is_lack


def test_what_torch_says_when_memory_runs_out_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_what_does_not_fit_is_refused_before_it_is_tried():
    free = psutil.virtual_memory().available
    refuse_without_memory("a", free // 4, "cpu")
    with pytest.raises(PlatformError, match=r"^b needs about [\d.]+ GB of memory on cpu, and [\d.]+ GB are free; stop"):
        refuse_without_memory("b", 4 * free, "cpu")


def test_a_device_that_does_not_tell_is_tried():
    assert free_bytes("mps") is None
    refuse_without_memory("a", 1 << 60, "mps")


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_device_that_failed_for_good_is_told_from_a_bad_batch(error, is_lost):
    assert is_device_lost(error) == is_lost
