import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.media import cutting
from embedding_platform.models import loading, whisper
from embedding_platform.records import SAMPLE_RATE, Sound
from embedding_platform.reference import whisper as reference
from embedding_platform.spaces import Space
from embedding_platform_tests.media import made
from embedding_platform_tests.models.small_models import centred, cosines, describe, make_sounds

PLAIN = Execution("cpu", "torch", "float32")
RUNTIMES = ["torch", "openvino"]
POOLINGS = sorted(whisper.POOLINGS)


def described(folder, dimension, pooling=""):
    return replace(describe("whisper", folder, dimension, "audio"), pooling=pooling)


@pytest.fixture(scope="module")
def encoders(folders):
    return {name: load_encoder(described(folders("whisper"), 48, name), PLAIN) for name in POOLINGS}


def states_by_hand(sound, hop_length):
    """ceil(mel frames / 2), one at least."""
    return -(-len(sound.samples) // (2 * hop_length))


def padded_by_hand(network, extractor, sound):
    import torch

    features = extractor(sound.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    output = network(features, decoder_input_ids=torch.tensor([[1, 1]]))
    return output.encoder_last_hidden_state[0, : states_by_hand(sound, extractor.hop_length)].mean(dim=0)


def true_length_by_hand(network, extractor, sound):
    """transformers' own encoder, made for as many states as the sound has."""
    from torch import nn
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    states = states_by_hand(sound, extractor.hop_length)
    config = type(network.config).from_dict({**network.config.to_dict(), "max_source_positions": states})
    encoder = WhisperEncoder(config).eval()
    weights = {
        **network.encoder.state_dict(),
        "embed_positions.weight": network.encoder.embed_positions.weight[:states],
    }
    encoder.load_state_dict(weights)
    assert isinstance(encoder.embed_positions, nn.Embedding)
    features = extractor(sound.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    return encoder(features[:, :, : 2 * states]).last_hidden_state[0].mean(dim=0)


def decoder_by_hand(network, extractor, sound):
    import torch

    features = extractor(sound.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    return network(features, decoder_input_ids=torch.tensor([[1, 1]])).last_hidden_state[0].mean(dim=0)


@pytest.mark.parametrize(
    ("pooling", "by_hand"),
    [("", padded_by_hand), ("true_length", true_length_by_hand), ("decoder", decoder_by_hand)],
)
def test_embeds_what_the_whole_model_gives(encoders, folders, pooling, by_hand):
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    network = WhisperModel.from_pretrained(folders("whisper")).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folders("whisper"))
    vectors = encoders[pooling].embed("audio", make_sounds())
    assert vectors.shape == (4, 48)
    assert vectors.dtype == np.float32
    with torch.no_grad():
        expected = np.stack([by_hand(network, extractor, sound).numpy() for sound in make_sounds()])
    assert cosines(vectors, expected).min() > 0.99999
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_reads_a_bare_model_as_well_as_one_with_a_language_head(encoders, folders, tmp_path, pooling):
    from transformers import AutoFeatureExtractor, WhisperModel

    WhisperModel.from_pretrained(folders("whisper")).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(folders("whisper")).save_pretrained(tmp_path)
    bare = load_encoder(described(tmp_path, 48, pooling), PLAIN)
    np.testing.assert_array_equal(bare.embed("audio", make_sounds()), encoders[pooling].embed("audio", make_sounds()))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_depends_neither_on_its_batch_nor_on_the_runtime(folders, pooling, runtime):
    pytest.importorskip(runtime)
    model = described(folders("whisper_of_30_seconds"), 32, pooling)
    encoder = load_encoder(model, Execution("cpu", runtime, "float32"))
    assert encoder.runtime == runtime
    together = encoder.embed("audio", make_sounds())
    alone = np.concatenate([encoder.embed("audio", [sound]) for sound in make_sounds()])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(together, load_encoder(model, PLAIN).embed("audio", make_sounds()), rtol=1e-3, atol=1e-4)


def test_what_pads_a_batch_does_not_matter_at_true_length(folders):
    import torch

    network = whisper.load(str(folders("whisper")), "true_length")
    prepared = network.prepare("audio", make_sounds()[2], "document")
    mel = torch.from_numpy(prepared["mel"])[None]
    states = torch.tensor([int(prepared["states"])])
    loud = torch.cat([mel, torch.full((1, len(mel[0]), 32), 9.0)], dim=2)
    with torch.inference_mode():
        module = network.module("audio")
        torch.testing.assert_close(module(loud, states), module(mel, states), rtol=1e-5, atol=1e-5)


def test_the_alternatives_give_other_vectors_under_fingerprints_of_their_own(encoders, folders):
    vectors = {name: encoders[name].embed("audio", make_sounds()[2:]) for name in POOLINGS}
    for one, other in (("", "true_length"), ("", "decoder"), ("true_length", "decoder")):
        assert cosines(vectors[one], vectors[other]).max() < 0.99
    spaces = [Space("audio", "whisper", described(folders("whisper"), 48, name)) for name in POOLINGS]
    assert len({loading.fingerprint(space) for space in spaces}) == 3


@pytest.mark.parametrize("length", [1, 159, 160, 161, 9_999, 31_361, 31_999, 32_000])
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_the_log_mel_is_the_extractors(folders, length, level):
    network = whisper.load(str(folders("whisper")), "")
    samples = (level * np.random.default_rng(length).uniform(-1, 1, length)).astype(np.float32)
    expected = network.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"][0]
    prepared = network.prepare("audio", Sound(samples), "document")
    assert prepared["mel"].shape == (40, 200)
    assert prepared["mel"].dtype == np.float32
    assert prepared["states"] == -(-length // 320)
    np.testing.assert_allclose(prepared["mel"], expected, atol=1e-5)


def test_padding_is_left_out_of_the_mean(encoders, folders):
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    short = make_sounds()[2]
    features = AutoFeatureExtractor.from_pretrained(folders("whisper"))(
        short.samples, sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )
    with torch.no_grad():
        encoder = WhisperModel.from_pretrained(folders("whisper")).eval().encoder
        over_all = encoder(features["input_features"]).last_hidden_state.mean(dim=1).numpy()
    assert cosines(encoders[""].embed("audio", [short]), over_all)[0] < 0.999


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("sound", "complaint"),
    [
        (Sound(np.zeros(441, np.float32), 44_100), "44100 samples a second, but the model takes 16000; resample"),
        (Sound(np.zeros(2 * SAMPLE_RATE + 1, np.float32)), r"up to 2 s \(32000 samples\); cut it"),
        (Sound(np.zeros(0, np.float32)), "one sample at least"),
        (Sound(np.zeros((2, 100), np.float32)), "one channel"),
    ],
)
def test_sound_that_the_model_cannot_take_whole_is_refused(encoders, sound, complaint, pooling):
    with pytest.raises(ValueError, match=complaint) as caught:
        encoders[pooling].embed("audio", [sound])
    assert "\n" not in str(caught.value)


def test_samples_without_their_rate_are_refused(encoders):
    with pytest.raises(TypeError, match="Sound"):
        encoders[""].embed("audio", [np.zeros(100, np.float32)])


def test_an_extractor_of_other_windows_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders("whisper"), tmp_path / "whisper")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chunk_length": 3}))
    with pytest.raises(PlatformError, match="40 mel bins and 200 frames, but its feature extractor gives 40 and 300"):
        load_encoder(described(folder, 48), PLAIN)


def test_only_what_a_pooling_needs_is_read(folders):
    import torch

    def weights(pooling: str) -> int:
        module = whisper.load(str(folders("whisper")), pooling).module("audio")
        return sum(parameter.numel() for parameter in module.parameters() if parameter.dtype == torch.float32)

    assert weights("") == weights("true_length") < weights("decoder")


def test_tells_its_window_and_costs_one_each(encoders):
    encoder = encoders[""]
    assert encoder.maximum("audio") == "2 s"
    assert encoder.embed("audio", []).shape == (0, 48)
    assert encoder.cost("audio", encoder.prepare("audio", make_sounds()[0])) == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_reduced_precision_stays_close(folders, pooling, runtime):
    pytest.importorskip(runtime)
    model = described(folders("whisper_of_30_seconds"), 32, pooling)
    vectors = load_encoder(model, Execution("cpu", runtime, "bfloat16")).embed("audio", make_sounds())
    assert vectors.dtype == np.float32
    assert cosines(vectors, load_encoder(model, PLAIN).embed("audio", make_sounds())).min() > 0.995


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """WAV files of 16 kHz: a tone that rises, beats in noise, and clicks."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(16)
    times = np.arange(7 * SAMPLE_RATE) / SAMPLE_RATE
    sounds = {
        "rise": 0.5 * np.sin(2 * np.pi * 200 * times * (1 + times)),
        "beats": 0.3 * np.sin(2 * np.pi * 330 * times[:24_000]) * np.sin(9 * times[:24_000])
        + rng.normal(0, 0.05, 24_000),
        "clicks": 0.6 * (np.arange(60_000) % 4_000 < 90) * rng.uniform(-1, 1, 60_000),
    }
    return [
        made.write_sound(folder / f"{name}.wav", samples.astype(np.float32), SAMPLE_RATE)
        for name, samples in sounds.items()
    ]


@pytest.mark.proof
@pytest.mark.parametrize(
    ("pooling", "snippet", "runtime"),
    [
        ("", "encoder_padded", "torch"),
        pytest.param("", "encoder_padded", "openvino", marks=pytest.mark.long),
        ("decoder", "article", "torch"),
    ],
)
def test_whisper_base_at_full_size_gives_the_reference_vectors(full_size, recordings, pooling, snippet, runtime):
    pytest.importorskip(runtime)
    embed = getattr(reference, snippet)(str(full_size("whisper")))
    expected = np.stack([embed(str(path)) for path in recordings])
    encoder = load_encoder(described(full_size("whisper"), 512, pooling), Execution("cpu", runtime, "float32"))
    sounds = []
    for path in recordings:
        sounds += cutting.read("audio", cutting.cut("audio", "files", made.item(path), made.CUTTING))
    vectors = encoder.embed("audio", sounds)
    assert vectors.shape == (3, 512)
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(centred(vectors), centred(expected)).min() > 0.999
    assert cosines(centred(vectors), np.roll(centred(expected), 1, axis=0)).max() < 0.5
