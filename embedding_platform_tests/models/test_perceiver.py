import shutil

import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.models.loading import load
from embedding_platform.records import CLIP_SOUND_SAMPLES, VideoClip
from embedding_platform_tests.models.small_models import cosines, describe, make_clips, small_perceiver_config


@pytest.fixture(scope="module")
def encoder(folders):
    return load(describe("perceiver", folders("perceiver"), 32, "video"), device="cpu")


def squared(frame: np.ndarray) -> np.ndarray:
    """The centred square, resized bilinearly to 32x32, scaled to [0, 1], channels first."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(frame[top : top + side, left : left + side])
    return np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255


def by_hand(folder, clip: VideoClip) -> np.ndarray:
    """The mean latent of the whole autoencoder, decoding one patch as the article does."""
    import torch
    from transformers import PerceiverForMultimodalAutoencoding

    network = PerceiverForMultimodalAutoencoding.from_pretrained(folder).eval()
    sound = np.zeros(CLIP_SOUND_SAMPLES, np.float32) if clip.sound is None else clip.sound
    inputs = {
        "image": torch.from_numpy(np.stack([squared(frame) for frame in clip.frames]))[None],
        "audio": torch.from_numpy(sound)[None, :, None],
        "label": torch.zeros(1, 5),
    }
    one = {"image": torch.arange(1), "audio": torch.arange(1), "label": None}
    with torch.no_grad():
        output = network(inputs=inputs, subsampled_output_points=one, output_hidden_states=True)
    return output.hidden_states[-1].mean(dim=1)[0].numpy()


def test_embeds_the_mean_latent_of_the_autoencoder(encoder, folders):
    vectors = encoder.embed("video", make_clips())
    assert vectors.shape == (3, 32)
    assert vectors.dtype == np.float32
    expected = np.stack([by_hand(folders("perceiver"), clip) for clip in make_clips()])
    assert cosines(vectors, expected).min() > 0.99999


def test_a_vector_does_not_depend_on_its_batch_nor_on_chance(encoder):
    import torch

    clips = make_clips()
    together = encoder.embed("video", clips)
    torch.manual_seed(99)
    alone = np.concatenate([encoder.embed("video", [clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together, encoder.embed("video", clips))


def test_sound_and_frames_both_decide_the_vector(encoder):
    clip = make_clips()[0]
    other = make_clips(seed=1)[0]
    changed = [clip, VideoClip(clip.frames, other.sound), VideoClip(other.frames, clip.sound)]
    vectors = encoder.embed("video", changed)
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-5
    assert np.abs(vectors[2] - vectors[0]).max() > 1e-5


def test_a_clip_without_sound_is_a_silent_one(encoder):
    frames = make_clips()[1].frames
    silent = VideoClip(frames, np.zeros(CLIP_SOUND_SAMPLES, np.float32))
    vectors = encoder.embed("video", [VideoClip(frames, None), silent])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_a_saved_image_processor_decides_how_frames_are_prepared(encoder, folders, tmp_path):
    from transformers import PerceiverImageProcessorPil

    folder = shutil.copytree(folders("perceiver"), tmp_path / "perceiver")
    square = {"height": 32, "width": 32}
    PerceiverImageProcessorPil(size=square, crop_size=square).save_pretrained(folder)
    normalising = load(describe("perceiver", folder, 32, "video"), device="cpu")
    assert np.abs(normalising.embed("video", make_clips()) - encoder.embed("video", make_clips())).max() > 1e-4


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (VideoClip(np.zeros((3, 32, 32, 3), np.uint8), None), "3 frames"),
        (VideoClip(np.zeros((16, 32, 32, 3), np.uint8), np.zeros(10, np.float32)), "30720"),
    ],
)
def test_clips_of_another_length_are_refused(encoder, clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        encoder.embed("video", [clip])


def test_empty_batch_and_cost(encoder):
    assert encoder.embed("video", []).shape == (0, 32)
    assert encoder.cost("video", make_clips()[0]) == 1


def test_reduced_precision_stays_close(encoder, folders):
    reduced = load(describe("perceiver", folders("perceiver"), 32, "video"), "cpu", "bfloat16")
    vectors = reduced.embed("video", make_clips())
    assert vectors.dtype == np.float32
    assert cosines(vectors, encoder.embed("video", make_clips())).min() > 0.995


def test_a_model_for_other_clips_is_refused(tmp_path):
    from transformers import PerceiverForMultimodalAutoencoding

    config = small_perceiver_config()
    config.num_frames, config.output_shape = 8, [1, 8, 32, 32]
    PerceiverForMultimodalAutoencoding(config).save_pretrained(tmp_path)
    with pytest.raises(PlatformError, match="8 frames and 15360 samples"):
        load(describe("perceiver", tmp_path, 32, "video"), device="cpu")
