"""What the recipes share: the training loop, the saved folder, the measure of a space."""

import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Trained:
    """What a training run cost. `items` is the number of examples seen, `seconds` wall time."""

    seed: int
    steps: int
    items: int
    seconds: float


def fit(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
) -> float:
    """Minimises a loss with AdamW under a one-cycle rate (Smith and Topin 2018), showing a bar.

    Args:
        name: shown beside the bar.
        parameters: what is trained.
        loss_of_step: draws the batch of the given step and returns its loss.
        steps: number of updates.
        rate: highest learning rate.

    Returns:
        Wall time in seconds.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.08)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        for step in range(steps):
            loss = loss_of_step(step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())
    return time.perf_counter() - start


def save(folder: Path, model: Any, *companions: Any) -> None:
    """Writes the model in float16, and its tokenizer or processors, to an emptied folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    for companion in companions:
        companion.save_pretrained(folder)
    for file in folder.iterdir():
        # safetensors writes for the owner alone; an installed package is read by everyone.
        file.chmod(0o644)


def same_class_recall(
    vectors: np.ndarray, classes: Sequence[Hashable], combinations: Sequence[Hashable] | None = None
) -> float:
    """The part of rows whose nearest other row by cosine is of the same class.

    Args:
        vectors: float32 [n, d].
        classes: the class of each row.
        combinations: where given, rows of the same combination do not count as neighbours, and
            rows that are left without a neighbour of their class do not ask.
    """
    normed = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = normed @ normed.T
    labels = np.array([hash(value) for value in classes])
    barred = np.eye(len(vectors), dtype=bool)
    if combinations is not None:
        finer = np.array([hash(value) for value in combinations])
        barred = finer[:, None] == finer[None]
    asks = ((labels[:, None] == labels[None]) & ~barred).any(1)
    nearest = np.argmax(np.where(barred, -np.inf, similar), axis=1)
    return float((labels[nearest] == labels)[asks].mean())


class CosineHead(torch.nn.Module):
    """A throwaway classifier on the direction of a vector, so that cosine becomes the measure.

    Logits are cosines to one learned direction per class, times 16 (NormFace, Wang et al. 2017).
    """

    def __init__(self, dimension: int, classes: int):
        super().__init__()
        self.directions = torch.nn.Parameter(torch.randn(classes, dimension))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits float32 [n, classes] of float32 [n, dimension]."""
        return 16 * torch.nn.functional.linear(
            torch.nn.functional.normalize(vectors, dim=-1), torch.nn.functional.normalize(self.directions, dim=-1)
        )
