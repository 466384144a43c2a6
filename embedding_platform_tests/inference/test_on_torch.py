import numpy as np
import pytest
import torch

from embedding_platform.inference import on_torch
from embedding_platform.inference.on_torch import TorchProgram, place


class Network(torch.nn.Module):
    """A convolution over bytes, and then a mean over places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 5, 3)

    def forward(self, pixels, scale):
        values = pixels.permute(0, 3, 1, 2).to(self.convolution.weight.dtype) * scale[:, None, None, None]
        return self.convolution(values).mean((2, 3))


BATCH = [np.random.default_rng(0).integers(0, 9, (2, 8, 8, 3), np.uint8), np.array([1, 2])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.05)])
def test_vectors_come_back_as_float32_whatever_the_weights_are(dtype, tolerance):
    expected = Network()(*map(torch.from_numpy, BATCH)).detach().numpy()
    program = place(Network(), "cpu", dtype)
    vectors = program.run(BATCH)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=1e-5 + tolerance, atol=1e-5 + tolerance)
    assert program.network.convolution.weight.dtype == dtype
    assert program.network.convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", ["cuda:0", "mps", "cpu"])
def test_batches_for_cuda_are_pinned_and_copied_without_waiting(monkeypatch, device):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: calls.append((where, how)) or self)
    on_torch._placed(BATCH[0], device)
    if device.startswith("cuda"):
        assert calls == ["pinned", (("cuda:0",), {"non_blocking": True})]
    else:
        assert calls == [((device,), {})]


def test_a_second_thread_gets_a_stream_of_its_own_on_cuda_and_waits_its_turn_elsewhere(monkeypatch):
    streams = iter(["first", "second"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: next(streams))
    there = TorchProgram(Network(), "cuda:0", on_torch._own_stream("cuda:0"))
    beside = there.beside()
    assert (there.stream, beside.stream) == ("first", "second")
    assert beside.network is there.network
    assert beside.turn is not there.turn
    here = place(Network(), "cpu", torch.float32)
    assert here.beside() is here
