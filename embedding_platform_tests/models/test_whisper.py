import numpy as np
import pytest

from embedding_platform.models.loading import load
from embedding_platform.records import SAMPLE_RATE
from embedding_platform_tests.models.small_models import cosines, describe, make_sounds


@pytest.fixture(scope="module")
def encoder(folders):
    return load(describe("whisper", folders("whisper"), 48, "audio"), device="cpu")


def by_hand(folder, sound):
    """The whole model's encoder states of the padded window, averaged over ceil(mel frames / 2) of them."""
    import torch
    from transformers import AutoFeatureExtractor, WhisperModel

    network = WhisperModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    features = extractor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        output = network(features, decoder_input_ids=torch.tensor([[1, 1]]))
    mel_frames = -(-len(sound) // extractor.hop_length)
    return output.encoder_last_hidden_state[0, : max(1, -(-mel_frames // 2))].mean(dim=0).numpy()


def test_embeds_the_encoder_states_that_hold_sound(encoder, folders):
    vectors = encoder.embed("audio", make_sounds())
    assert vectors.shape == (4, 48)
    assert vectors.dtype == np.float32
    expected = np.stack([by_hand(folders("whisper"), sound) for sound in make_sounds()])
    assert cosines(vectors, expected).min() > 0.99999
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4)


def test_reads_a_bare_model_as_well_as_one_with_a_language_head(encoder, folders, tmp_path):
    from transformers import AutoFeatureExtractor, WhisperModel

    WhisperModel.from_pretrained(folders("whisper")).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(folders("whisper")).save_pretrained(tmp_path)
    bare = load(describe("whisper", tmp_path, 48, "audio"), device="cpu")
    np.testing.assert_array_equal(bare.embed("audio", make_sounds()), encoder.embed("audio", make_sounds()))


def test_padding_is_left_out_of_the_mean(encoder, folders):
    import torch
    from transformers import AutoFeatureExtractor

    short = make_sounds()[2]
    features = AutoFeatureExtractor.from_pretrained(folders("whisper"))(
        short, sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )
    with torch.no_grad():
        over_all = encoder.network(features["input_features"]).last_hidden_state.mean(dim=1).numpy()
    assert cosines(encoder.embed("audio", [short]), over_all)[0] < 0.999


def test_a_vector_does_not_depend_on_its_batch(encoder):
    sounds = make_sounds()
    together = encoder.embed("audio", sounds)
    alone = np.concatenate([encoder.embed("audio", [sound]) for sound in sounds])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(together, encoder.embed("audio", sounds))


def test_equal_lengths_are_a_batch_and_not_channels(encoder):
    sounds = [make_sounds(seed)[2] for seed in range(3)]
    vectors = encoder.embed("audio", sounds)
    assert vectors.shape == (3, 48)
    np.testing.assert_allclose(vectors[1], encoder.embed("audio", sounds[1:2])[0], rtol=1e-4, atol=1e-4)


def test_sound_beyond_the_window_is_refused(encoder):
    with pytest.raises(ValueError, match="up to 32000"):
        encoder.embed("audio", [np.zeros(2 * SAMPLE_RATE + 1, np.float32)])


def test_empty_batch_and_cost(encoder):
    assert encoder.embed("audio", []).shape == (0, 48)
    assert encoder.cost("audio", make_sounds()[0]) == 1


def test_reduced_precision_stays_close(encoder, folders):
    reduced = load(describe("whisper", folders("whisper"), 48, "audio"), "cpu", "bfloat16")
    vectors = reduced.embed("audio", make_sounds())
    assert vectors.dtype == np.float32
    assert cosines(vectors, encoder.embed("audio", make_sounds())).min() > 0.995
