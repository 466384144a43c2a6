from pathlib import Path

import numpy as np
import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.inference.on_openvino import compile_network, lanes
from embedding_platform.models.encoder import Input

INPUTS = {"numbers": Input("float32", (None,)), "heard": Input("int64", ())}
BATCH = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([2, 1])]


class Network(torch.nn.Module):
    def forward(self, numbers, heard):
        return torch.stack([numbers.sum(1) + heard.float() * 0.75, 4.0 ** heard.float() / heard.float()], 1)


def test_the_order_of_arguments_and_a_varying_axis_are_kept():
    program = compile_network(Network, INPUTS, "float32")
    np.testing.assert_allclose(program.run(BATCH), [[4.5, 8.0], [12.75, 4.0]], rtol=1e-6)
    longer = [np.ones((5, 40), np.float32), np.ones(5, np.int64)]
    assert program.run(longer).shape == (5, 2)


def test_a_second_request_works_beside_the_first():
    program = compile_network(Network, INPUTS, "float32")
    first = program.run(BATCH)
    other = program.beside().run([BATCH[0] + 1, BATCH[1]])
    np.testing.assert_array_equal(first, program.run(BATCH))
    np.testing.assert_allclose(other[:, 0], first[:, 0] + 3)
    assert 1 <= lanes() <= 2


def test_a_converted_network_is_kept_and_read_again(tmp_path):
    folder = tmp_path / "cache" / "a"
    made: list[int] = []

    def network():
        made.append(1)
        return Network()

    first = compile_network(network, INPUTS, "float32", str(folder))
    again = compile_network(network, INPUTS, "float32", str(folder))
    assert len(made) == 1
    np.testing.assert_array_equal(first.run(BATCH), again.run(BATCH))
    assert [path.name for path in folder.parent.iterdir()] == ["a"]
    (folder / "network.xml").write_text("<net")
    np.testing.assert_array_equal(compile_network(network, INPUTS, "float32", str(folder)).run(BATCH), first.run(BATCH))
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    Path(tmp_path, "cache").write_text("a file in the way")
    with pytest.raises(PlatformError, match=r"cannot keep the converted network in .* or name another cache_root"):
        compile_network(Network, INPUTS, "float32", str(tmp_path / "cache" / "a"))
