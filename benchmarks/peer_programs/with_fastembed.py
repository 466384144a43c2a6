"""fastembed: a custom model of `TextEmbedding`, exported here from the same weights to ONNX.

Batches of one text: it does not sort by length, and padding costs more than larger batches win (the
default of 256 took 2.4 times the processor time). The export is not timed. fastembed does not read
how long a text sentence-transformers takes: that goes into the tokenizer_config.json of the copy,
or vectors of long texts would differ from all others.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contestant import Embed, Fetch, serve


@contextmanager
def start(folder: str) -> Iterator[Embed]:
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    copy = Path("fastembed").absolute()
    _export(Path(folder), copy)
    TextEmbedding.add_custom_model(
        "minilm", PoolingType.MEAN, True, ModelSource(url="file://"), dim=384, model_file="model.onnx"
    )
    model = TextEmbedding("minilm", cache_dir="cache", specific_model_path=str(copy), cuda=False)

    def embed(texts: list[str]) -> Fetch:
        vectors = list(model.embed(texts, batch_size=1))
        return lambda: np.stack(vectors)

    yield embed


def _export(folder: Path, copy: Path) -> None:
    import torch
    from transformers import AutoModel

    copy.mkdir()
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(folder / name, copy)
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": longest}))

    network = AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = {name: torch.ones((2, 8), dtype=torch.int64) for name in names}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        network,
        (),
        str(copy / "model.onnx"),
        kwargs=example,
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes=dict.fromkeys(names, axes),
        dynamo=True,
    )


if __name__ == "__main__":
    serve(start, "fastembed", ["fastembed", "onnxscript", "torch", "transformers"])
