"""CLIP ViT-L/14 (openai/clip-vit-large-patch14): the article's snippet, and its network with seeded weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

_WORDS = 49_408
"""Tokens of the published vocabulary, the last two of them start and end."""


def save(folder: Path) -> None:
    """Save CLIP ViT-L/14 with random weights, its image processor and its tokenizer as their owners publish them.

    The published merges are not at hand: this tokenizer has the published bytes, start and
    end, and splits words into letters.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(52)
    # A tower's projection_dim is left at transformers' default, as in the published config.json. Weights three
    # times as large as the usual ones: with those, all images have nearly one vector, and so have all texts.
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(
        text_config={**text, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_factor": 3.0},
        vision_config={**vision, "image_size": 224, "patch_size": 14, "initializer_factor": 3.0},
        projection_dim=768,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {name: place for place, name in enumerate(names)}
    vocabulary |= {"<|startoftext|>": _WORDS - 2, "<|endoftext|>": _WORDS - 1}
    CLIPTokenizer(vocabulary, [], model_max_length=77).save_pretrained(folder)


def article_image(folder: str) -> Callable[[str], np.ndarray]:
    """From the path of an image to its vector float32 [768], by the article's code.

    The snippet calls an `extractor` that belongs to its ResNet, and takes `outputs[1][-1]` of
    the whole model, which is a row of logits and wants text beside the image: here it is the
    model's own processor and `get_image_features`.
    """
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPModel

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(path: str) -> np.ndarray:
        inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            vector: np.ndarray = model.get_image_features(**inputs).pooler_output[0].numpy()
        return vector

    return embed


def article_text(folder: str) -> Callable[[str], np.ndarray]:
    """From a text to its vector float32 [768], by the article's code.

    Repaired as `article_image`: `get_text_features`, of the text padded to 77 tokens as the
    model was trained.
    """
    import torch
    from transformers import AutoTokenizer, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(text: str) -> np.ndarray:
        inputs = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            vector: np.ndarray = model.get_text_features(**inputs).pooler_output[0].numpy()
        return vector

    return embed
