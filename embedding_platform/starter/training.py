"""Trains the starter models: `python -m embedding_platform.starter.training [clip|resnet50|whisper|perceiver ...]`.

Each model is trained from its seed, saved to `weights/`, loaded again and measured on held-out
things; its card and `figures.json` are written from those figures. Without a name, all four.
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedding_platform.starter.recipes.run import Trained

NAMES = ("clip", "resnet50", "whisper", "perceiver")

CARD = """---
license: apache-2.0
library_name: transformers
---
# Starter model: {name}

{about}

It knows shapes, colours, movements and tones and nothing else: on photographs, speech, music or
film its vectors mean nothing. It is there so that the platform runs whole without a download.

## Training
- Trained on: {trained_on}.
- Seed {seed}, {steps:,} steps, {items:,} examples, {minutes:.0f} minutes with {threads} CPU threads, shared machine.
- Made by `python -m embedding_platform.starter.training {name}`; weights are stored as float16.

## Held-out figures
Measured by that script on the saved model, loaded again in float32.

| figure | value |
|---|---|
{rows}
"""


def main() -> None:
    """Trains, measures and writes the models named on the command line."""
    from embedding_platform.starter.recipes.run import WEIGHTS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that takes one folder per model")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no starter model named {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        recipe = importlib.import_module(f"embedding_platform.starter.recipes.{name}")
        folder = arguments.weights / name
        write_card(name, folder, recipe.train(folder), recipe.evaluate(folder))


def write_card(name: str, folder: Path, trained: "Trained", figures: dict[str, float]) -> None:
    """Writes the folder's README.md and figures.json."""
    import torch

    recipe = importlib.import_module(f"embedding_platform.starter.recipes.{name}")
    rows = "\n".join(f"| {figure} | {_shown(value)} |" for figure, value in figures.items())
    card = CARD.format(
        name=name,
        about=recipe.ABOUT,
        trained_on=recipe.TRAINED_ON,
        seed=trained.seed,
        steps=trained.steps,
        items=trained.items,
        minutes=trained.seconds / 60,
        threads=torch.get_num_threads(),
        rows=rows,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {json.dumps(figures)}")


def _shown(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    main()
