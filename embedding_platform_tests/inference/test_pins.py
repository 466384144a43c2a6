import json
import os

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference import pins
from embedding_platform.models import loading
from embedding_platform.spaces import Model

REMOTE = Model("openai", "openai:text-embedding-3-small@http://h/v1", 8, ("text",), "", "")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_HUB = Model("resnet", "owner/resnet", 40, ("image",), "", "", revision=COMMIT)


@pytest.fixture
def cached(tmp_path, monkeypatch, folders):
    """The small ResNet in the place where the hub's client keeps what it has fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--owner--resnet" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    os.symlink(folders("resnet"), snapshot)
    files = {file: (snapshot / file).read_bytes() for file in os.listdir(snapshot)}
    snapshot.unlink()
    snapshot.mkdir()
    for name, payload in files.items():
        (snapshot / name).write_bytes(payload)
    return snapshot


def test_a_hub_model_whose_files_moved_under_its_revision_is_refused(cached, tmp_path):
    url = str(tmp_path / "pins" / "a.json")
    pins.hold(ON_HUB, url)
    pins.hold(ON_HUB, url)
    assert set(json.loads((tmp_path / "pins" / "a.json").read_text())["files"]) == {"config.json", "model.safetensors"}
    (cached / "README.md").write_text("decides nothing")
    pins.hold(ON_HUB, url)
    (cached / "model.safetensors").write_bytes((cached / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(PlatformError, match=r"^owner/resnet has moved: model.safetensors is no longer .* fetch"):
        pins.hold(ON_HUB, url)


def test_a_folder_needs_no_pin_because_its_content_is_in_its_fingerprint(folders, tmp_path):
    model = Model("resnet", str(folders("resnet")), 40, ("image",), "", "")
    pins.hold(model, str(tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()
    assert loading.weights(model)


def test_a_model_behind_a_server_shows_no_files_to_pin(tmp_path):
    pins.hold(REMOTE, str(tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()
