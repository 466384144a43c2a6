"""The difference between what should be and what is."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Increment:
    """Row ids by what has to happen to them: add, overwrite, remove, nothing."""

    new: pd.Index
    stale: pd.Index
    orphaned: pd.Index
    unchanged: pd.Index

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (len(self.new) or len(self.stale) or len(self.orphaned))

    def counts(self) -> dict[str, int]:
        """Numbers of new, stale, orphaned and unchanged rows, for people and metadata."""
        return {
            "new": len(self.new),
            "stale": len(self.stale),
            "orphaned": len(self.orphaned),
            "unchanged": len(self.unchanged),
        }


def diff(desired: pd.Series, actual: pd.Series) -> Increment:
    """Compare two maps from row id (the index) to version (the values).

    Desired ids are unique. An id that `actual` holds more than once is stale whatever its
    versions, because a store that answers twice for one key has to be written again.

    Raises:
        ValueError: if `desired` names an id twice.
    """
    if not desired.index.is_unique:
        twice = desired.index[desired.index.duplicated()][0]
        raise ValueError(f"desired rows name the id {twice!r} twice")
    repeated = actual.index[actual.index.duplicated()].unique()
    actual = actual[~actual.index.duplicated()]
    shared = desired.index.intersection(actual.index, sort=False)
    same = desired.loc[shared].to_numpy() == actual.loc[shared].to_numpy()
    same &= ~shared.isin(repeated)
    return Increment(
        new=desired.index.difference(actual.index, sort=False),
        stale=shared[~same],
        orphaned=actual.index.difference(desired.index, sort=False),
        unchanged=shared[same],
    )
