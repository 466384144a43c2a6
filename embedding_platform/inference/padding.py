"""What contents of varying length are padded to, each to a width that depends on itself alone."""

from collections.abc import Sequence

import numpy as np

from embedding_platform.models.encoder import Input

NARROWEST = 16
"""The least width. Below it the rows of a batch would be many, and the time for each hardly less."""

WIDTHS_PER_DOUBLING = 4
"""Widths between one power of two and the next. More of them pad less, but fill more batches up."""


def padded_width(length: int, longest: int | None) -> int:
    """The width for a content of this length: the next of 16, 20, 24, 28, 32, 40, 48 and so on, at most `longest`.

    Only a content of the longest length gets no padding; where `longest` is None, each is left at its length.
    """
    if longest is None or length >= longest:
        return length
    if length < NARROWEST:
        return min(NARROWEST, longest)
    step = max(1, (1 << length.bit_length() - 1) // WIDTHS_PER_DOUBLING)
    return min((length // step + 1) * step, longest)


def padded_shape(shape: Sequence[int], given: Input) -> tuple[int, ...]:
    """The shape that an array of `shape`, one content's, is padded to as an argument of a network."""
    return tuple(
        padded_width(length, given.longest) if axis is None else length
        for length, axis in zip(shape, given.shape, strict=True)
    )


def stacked(arrays: Sequence[np.ndarray], given: Input) -> np.ndarray:
    """Arrays of n contents as one [n, ...], padded to what the largest of them is padded to."""
    largest = tuple(np.max([array.shape for array in arrays], axis=0).tolist()) if arrays[0].ndim else ()
    shape = padded_shape(largest, given)
    if all(array.shape == shape for array in arrays):
        return np.stack(arrays)
    batch = np.full((len(arrays), *shape), given.padding, arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return batch
