import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from embedding_platform.errors import PlatformError
from embedding_platform.inference.devices import Execution
from embedding_platform.inference.engine import load_encoder
from embedding_platform.media import cutting
from embedding_platform.models import perceiver
from embedding_platform.records import CLIP_FRAME_RATE, CLIP_FRAMES, CLIP_SAMPLE_RATE, CLIP_SOUND_SAMPLES, VideoClip
from embedding_platform.reference import perceiver as reference
from embedding_platform_tests.media import made
from embedding_platform_tests.models.small_models import (
    centred,
    cosines,
    describe,
    make_clips,
    small_perceiver_config,
)

PLAIN = Execution("cpu", "torch", "float32")
RUNTIMES = ["torch", "openvino"]


@pytest.fixture(scope="module")
def encoder(folders):
    return load_encoder(describe("perceiver", folders("perceiver"), 32, "video"), PLAIN)


def squared(frame: np.ndarray) -> np.ndarray:
    """The centred square, resized bilinearly to 32x32, scaled to [0, 1], channels first."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(frame[top : top + side, left : left + side])
    return np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255


def inputs_of(clip: VideoClip) -> dict:
    import torch

    sound = np.zeros(CLIP_SOUND_SAMPLES, np.float32) if clip.sound is None else clip.sound
    return {
        "image": torch.from_numpy(np.stack([squared(frame) for frame in clip.frames]))[None],
        "audio": torch.from_numpy(sound)[None, :, None],
        "label": torch.zeros(1, 5),
    }


def latents_by_hand(folder, clip: VideoClip, chunk: int = 0) -> np.ndarray:
    """The last latents of the whole autoencoder, decoding one patch as the article does."""
    import torch
    from transformers import PerceiverForMultimodalAutoencoding

    network = PerceiverForMultimodalAutoencoding.from_pretrained(folder).eval()
    one = {"image": torch.tensor([chunk]), "audio": torch.tensor([chunk]), "label": None}
    with torch.no_grad():
        output = network(inputs=inputs_of(clip), subsampled_output_points=one, output_hidden_states=True)
    return output.hidden_states[-1][0].numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (1, {}),
        (2, {"num_cross_attention_heads": 2, "qk_channels": 40, "v_channels": 32}),
        (3, {"num_blocks": 2, "use_query_residual": False}),
        (4, {"image_size": 8, "samples_per_patch": 32}),
    ],
)
def test_embeds_the_mean_latent_of_the_autoencoder(tmp_path, seed, changes, runtime):
    import torch
    from transformers import PerceiverForMultimodalAutoencoding

    pytest.importorskip(runtime)
    config = small_perceiver_config()
    config.update(changes)
    torch.manual_seed(seed)
    network = PerceiverForMultimodalAutoencoding(config)
    _unsettle(network)
    network.save_pretrained(tmp_path)
    model = describe("perceiver", tmp_path, 32, "video")
    vectors = load_encoder(model, Execution("cpu", runtime, "float32")).embed("video", make_clips(seed))
    assert vectors.shape == (3, 32)
    assert vectors.dtype == np.float32
    expected = np.stack([latents_by_hand(tmp_path, clip).mean(axis=0) for clip in make_clips(seed)])
    assert cosines(vectors, expected).min() > 0.99999
    assert cosines(centred(vectors), centred(expected)).min() > 0.9999
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-3)


def _unsettle(network) -> None:
    """Gains, offsets and biases as training leaves them: not 1 and 0, with which a wrong use of them goes unseen."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)


def test_all_chunks_of_the_articles_loop_have_the_same_latents(folders):
    clip = make_clips()[0]
    first, *others = [latents_by_hand(folders("perceiver"), clip, chunk) for chunk in range(4)]
    for latents in others:
        np.testing.assert_array_equal(latents, first)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_vector_does_not_depend_on_its_batch_nor_on_chance(folders, runtime):
    import torch

    pytest.importorskip(runtime)
    model = describe("perceiver", folders("perceiver"), 32, "video")
    encoder = load_encoder(model, Execution("cpu", runtime, "float32"))
    assert encoder.runtime == runtime
    clips = make_clips()
    together = encoder.embed("video", clips)
    torch.manual_seed(99)
    alone = np.concatenate([encoder.embed("video", [clip]) for clip in clips])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(together, encoder.embed("video", clips))


def test_sound_and_frames_both_decide_the_vector(encoder):
    clip = make_clips()[0]
    other = make_clips(seed=1)[0]
    changed = [clip, VideoClip(clip.frames, other.sound), VideoClip(other.frames, clip.sound)]
    vectors = encoder.embed("video", changed)
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3
    assert np.abs(vectors[2] - vectors[0]).max() > 1e-3


def test_the_order_of_frames_decides_the_vector(encoder):
    clip = make_clips()[0]
    backwards = VideoClip(clip.frames[::-1], clip.sound)
    vectors = encoder.embed("video", [clip, backwards])
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3


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
    normalising = load_encoder(describe("perceiver", folder, 32, "video"), PLAIN)
    assert np.abs(normalising.embed("video", make_clips()) - encoder.embed("video", make_clips())).max() > 1e-4


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (VideoClip(np.zeros((3, 32, 32, 3), np.uint8), None), "3 frames; the model takes 16: cut"),
        (VideoClip(np.zeros((16, 32, 32, 3), np.uint8), np.zeros(10, np.float32)), r"takes \[30720\]: cut"),
        (VideoClip(np.zeros((16, 0, 32, 3), np.uint8), None), "hold nothing"),
    ],
)
def test_clips_that_the_model_cannot_take_whole_are_refused(encoder, clip, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        encoder.embed("video", [clip])
    assert "\n" not in str(caught.value)


def test_tells_its_length_and_costs_one_each(encoder):
    assert encoder.maximum("video") == "16 frames"
    assert encoder.embed("video", []).shape == (0, 32)
    assert encoder.cost("video", encoder.prepare("video", make_clips()[0])) == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_reduced_precision_stays_close(encoder, folders, runtime):
    pytest.importorskip(runtime)
    model = describe("perceiver", folders("perceiver"), 32, "video")
    vectors = load_encoder(model, Execution("cpu", runtime, "bfloat16")).embed("video", make_clips())
    assert vectors.dtype == np.float32
    assert cosines(vectors, encoder.embed("video", make_clips())).min() > 0.995


def test_keeps_neither_the_decoder_nor_what_was_multiplied_out(folders):
    from transformers import PerceiverForMultimodalAutoencoding

    module = perceiver.load(str(folders("perceiver")), "").module("video")
    whole = PerceiverForMultimodalAutoencoding.from_pretrained(folders("perceiver")).perceiver
    cross = whole.encoder.cross_attention
    kept = (whole.encoder.self_attends, cross.attention.output, cross.layernorm, cross.mlp)
    expected = sum(parameter.numel() for part in kept for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_frames": 8, "output_shape": [1, 8, 32, 32]}, "8 frames and 15360 samples"),
        ({"output_shape": [1, 16, 30, 30]}, "30 x 30 pixels, which do not part into patches of 4 x 4"),
    ],
)
def test_a_model_for_other_clips_is_refused(tmp_path, changes, complaint):
    from transformers import PerceiverForMultimodalAutoencoding

    config = small_perceiver_config()
    config.update(changes)
    PerceiverForMultimodalAutoencoding(config).save_pretrained(tmp_path)
    with pytest.raises(PlatformError, match=complaint):
        load_encoder(describe("perceiver", tmp_path, 32, "video"), PLAIN)


def test_without_an_image_processor_frames_have_the_size_of_the_output(folders, tmp_path):
    """image_size of the published model is 56: the patches along an edge, not the pixels."""
    config = small_perceiver_config()
    config.image_size = 8
    config.save_pretrained(tmp_path)
    network = perceiver.load(str(tmp_path), "")
    assert network.inputs("video")["patches"].shape == (16 * 8 * 8, 4, 4, 3)


def write_clip(path, seed: int, has_sound: bool):
    """An MP4 of 0.64 s: a disc that crosses waves, and a tone that rises."""
    import av

    rows, columns = np.mgrid[0:200, 0:256]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = 256, 200, "yuv420p"
        stream.options = {"crf": "12", "preset": "ultrafast"}
        heard = container.add_stream("aac", rate=CLIP_SAMPLE_RATE, layout="mono") if has_sound else None
        for place in range(CLIP_FRAMES):
            waves = np.sin(rows[..., None] / (9 + 7 * seed) + columns[..., None] / (31, 17, 11) + 0.2 * place)
            disc = (rows - 100) ** 2 + (columns - 40 - (4 + 6 * seed) * place) ** 2 < 900
            pixels = 120 + 70 * waves + 60 * disc[..., None] * (1, -1, seed - 1)
            picture = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            picture.pts, picture.time_base = place, Fraction(1, CLIP_FRAME_RATE)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if heard is not None:
            times = np.arange(CLIP_SOUND_SAMPLES) / CLIP_SAMPLE_RATE
            samples = 0.5 * np.sin(2 * np.pi * 300 * (1 + seed) * times * (1 + times))
            for start in range(0, CLIP_SOUND_SAMPLES, 1024):
                part = samples[None, start : start + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = CLIP_SAMPLE_RATE, start, Fraction(1, CLIP_SAMPLE_RATE)
                container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_clip(folder / f"{seed}.mp4", seed, has_sound=seed != 1) for seed in range(3)]


@pytest.fixture(scope="module")
def expected(full_size, videos):
    embed = reference.encoder_only(str(full_size("perceiver")))
    return np.stack([embed(str(path)) for path in videos])


@pytest.mark.proof
def test_the_articles_loop_gives_the_encoders_latents_at_full_size(full_size, videos, expected):
    vector = reference.article(str(full_size("perceiver")), chunks=1)(str(videos[0]))
    assert cosines(vector[None], expected[:1])[0] > 0.999999


@pytest.mark.proof
@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=pytest.mark.long)])
def test_the_multimodal_perceiver_at_full_size_gives_the_articles_vectors(full_size, videos, expected, runtime):
    pytest.importorskip(runtime)
    model = replace(describe("perceiver", full_size("perceiver"), 512, "video"), parameters=50_000_000)
    clips = []
    for path in videos:
        clips += cutting.read("video", cutting.cut("video", "files", made.item(path), made.CUTTING))
    vectors = load_encoder(model, Execution("cpu", runtime, "float32")).embed("video", clips)
    assert vectors.shape == (3, 512)
    assert cosines(vectors, expected).min() > 0.9999
    assert cosines(centred(vectors), centred(expected)).min() > 0.999
    assert cosines(centred(vectors), np.roll(centred(expected), 1, axis=0)).max() < 0.5
