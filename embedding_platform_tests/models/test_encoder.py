import numpy as np
import pytest
import torch

from embedding_platform.errors import PlatformError
from embedding_platform.models.encoder import check_batch, choose_device, choose_dtype
from embedding_platform_tests.models.small_models import make_clips, make_images, make_sounds

CONTENTS = {"text": "a", "image": make_images()[0], "audio": make_sounds()[0], "video": make_clips()[0]}


@pytest.mark.parametrize(
    ("cuda_devices", "has_mps", "wish", "chosen"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
        (2, True, "cpu", "cpu"),
    ],
)
def test_a_device_is_chosen(monkeypatch, cuda_devices, has_mps, wish, chosen):
    _pretend(monkeypatch, cuda_devices, has_mps)
    assert choose_device(wish) == chosen


@pytest.mark.parametrize(
    ("cuda_devices", "has_mps", "wish", "offered"),
    [(0, False, "cuda", "cpu"), (2, False, "cuda:2", "cpu, cuda:0, cuda:1"), (0, False, "mps", "cpu")],
)
def test_an_absent_device_is_refused_with_those_present(monkeypatch, cuda_devices, has_mps, wish, offered):
    _pretend(monkeypatch, cuda_devices, has_mps)
    with pytest.raises(PlatformError, match=f"device {wish} is not there; set device to auto or to one of {offered}$"):
        choose_device(wish)


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


@pytest.mark.parametrize("role", CONTENTS)
@pytest.mark.parametrize("given", CONTENTS)
def test_contents_have_to_be_of_the_role(role, given):
    if role == given:
        check_batch((role,), role, [CONTENTS[given]])
    else:
        with pytest.raises(TypeError, match=f"^{role} contents are"):
            check_batch((role,), role, [CONTENTS[role], CONTENTS[given]])


def test_a_role_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(PlatformError, match="does not embed audio; it embeds image and text"):
        check_batch(("image", "text"), "audio", [np.zeros(1, np.float32)])
