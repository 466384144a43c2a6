"""The starter CLIP: pictures and captions in one space."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from embedding_platform.starter import world
from embedding_platform.starter.recipes.run import Trained, fit, save

PIXELS = 64
SEED = 101
ROUNDS = ((900, 256), (900, 128))
"""Steps and batch of each round; a round starts its rate anew."""

_OPTIONS = {"shape": world.SHAPES, "texture": world.TEXTURES, "size": tuple(world.SIZES)}

ABOUT = (
    "A `CLIPModel` (4 + 4 layers, width 128, 64x64 images in 8x8 patches) with a word-level vocabulary. "
    "It embeds pictures of coloured shapes and English captions of them into one space of 128 dimensions."
)
TRAINED_ON = (
    "fresh drawings of coloured shapes (8 colours, 6 shapes, 3 sizes, 4 textures, 9 positions, 4 backgrounds) "
    "with captions from 23 templates, to tell whose caption is whose, while throwaway heads on the image tower "
    "told shape, texture and size apart; a tenth of the combinations was held out"
)


def train(folder: Path) -> Trained:
    """Trains from the seed and writes the model, tokenizer and image processor to the folder."""
    torch.manual_seed(SEED)
    tokenizer = _tokenizer()
    model = _model(tokenizer)
    seconds = sum(train_round(model, tokenizer, number) for number in range(len(ROUNDS)))
    save(folder, model, tokenizer, _processor())
    return Trained(SEED, sum(steps for steps, _ in ROUNDS), sum(steps * batch for steps, batch in ROUNDS), seconds)


def train_round(model: Any, tokenizer: Any, number: int) -> float:
    """Trains the model in place for one of ROUNDS; returns wall time in seconds."""
    steps, count = ROUNDS[number]
    rng = np.random.default_rng([SEED, number])
    processor = _processor()
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
    deviation = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    known, _ = world.split(world.pictures(), world.PICTURES_HELD_OUT)
    heads = {name: torch.nn.Linear(128, len(values)) for name, values in _OPTIONS.items()}
    model.train()

    def loss_of_step(step: int) -> torch.Tensor:
        batch = [world.on_any_background(known[index], rng) for index in rng.integers(len(known), size=count)]
        captions, told = _captions(batch, rng)
        images = np.stack([np.asarray(world.draw_picture(picture, PIXELS, rng)) for picture in batch])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels + 0.02 * torch.rand(count, 1, 1, 1) * torch.randn_like(pixels) - mean) / deviation
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**tokens, pixel_values=pixels)
        scores = output.logits_per_text.float()
        # A short caption is true of other pictures of the batch too: those are no negatives.
        values = np.array([dataclasses.astuple(picture) for picture in batch])
        true = ((values[:, None] == values[None]) | ~told[:, None]).all(-1)
        np.fill_diagonal(true, False)
        scores = scores.masked_fill(torch.from_numpy(true), -torch.inf)
        target = torch.arange(count)
        loss = (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
        # Contrast alone brings colours and places early, but shapes late.
        seen = output.vision_model_output.pooler_output.float()
        for name, options in _OPTIONS.items():
            classes = torch.tensor([options.index(getattr(picture, name)) for picture in batch])
            loss = loss + cross_entropy(heads[name](seen), classes)
        return loss

    parameters = [*model.parameters(), *(parameter for head in heads.values() for parameter in head.parameters())]
    return fit(f"clip, round {number + 1}", parameters, loss_of_step, steps, rate=1e-3)


def evaluate(folder: Path) -> dict[str, float]:
    """Held-out figures of the saved model, on one picture of each held-out combination.

    `text_to_image_recall_at_1` asks with captions that tell all attributes; the precisions ask
    with short phrases and count how many of the ten nearest pictures they are true of.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    rng = np.random.default_rng(SEED + 1)
    _, hidden = world.split(world.pictures(), world.PICTURES_HELD_OUT)
    hidden = [world.on_any_background(picture, rng) for picture in hidden]
    drawn = [world.draw_picture(picture, 160, rng) for picture in hidden]

    def text_vectors(captions: list[str]) -> torch.Tensor:
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        return normalize(model.get_text_features(**tokens).pooler_output, dim=-1)

    with torch.inference_mode():
        pixels = processor(drawn, return_tensors="pt")["pixel_values"]
        images = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        captions = [world.caption(picture, world.FULL_CAPTIONS[0], rng) for picture in hidden]
        scores = text_vectors(captions) @ images.T
        ranks = (scores > scores.diag()[:, None]).sum(1)
        figures: dict[str, float] = {
            "held_out": len(hidden),
            "text_to_image_recall_at_1": float((ranks == 0).float().mean()),
            "text_to_image_recall_at_10": float((ranks < 10).float().mean()),
            "image_to_text_recall_at_1": float((scores.argmax(0) == torch.arange(len(hidden))).float().mean()),
        }
        for template in ("a {colour} {shape}", "a {colour} {texture} {shape}", "a {shape}", "something {colour}"):
            figures[f"precision: {template}"] = _precision(template, hidden, images, text_vectors)
    return figures


def _precision(template: str, hidden: list[world.Picture], images: torch.Tensor, text_vectors: Any) -> float:
    """Mean precision at 10, or at the number of true pictures where fewer than 10 are true."""
    names = world.mentioned(template)
    told = [tuple(getattr(picture, name) for name in names) for picture in hidden]
    precisions = []
    for wanted in sorted(set(told)):
        true = torch.tensor([values == wanted for values in told])
        query = template.format(**dict(zip(names, wanted, strict=True))).replace("a orange", "an orange")
        scores = (text_vectors([query]) @ images.T)[0]
        best = scores.topk(min(10, int(true.sum()))).indices
        precisions.append(float(true[best].float().mean()))
    return float(np.mean(precisions))


def _captions(batch: list[world.Picture], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """A caption of each picture, and which attributes it tells: bool [n, 6]."""
    captions, told = [], []
    for picture in batch:
        templates = world.FULL_CAPTIONS if rng.random() < 0.6 else world.SHORT_CAPTIONS
        template = str(rng.choice(templates))
        captions.append(world.caption(picture, template, rng))
        names = world.mentioned(template)
        told.append([name in names for name in world.Picture.__dataclass_fields__])
    return captions, np.array(told)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<start>", "<end>", *world.caption_words()]
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokens.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<start>", words.index("<start>")), ("<end>", words.index("<end>"))]
    tokens.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=32,
    )


def _processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})


def _model(tokenizer: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shape,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            # CLIPTextModel pools the state of this token; id 2 would take another, older path.
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": 128,
        },
        vision_config={**shape, "image_size": PIXELS, "patch_size": 8, "projection_dim": 128},
        projection_dim=128,
    )
    return CLIPModel(config)
