"""The two ways in which things go wrong for a user rather than for us, and how others are told in one line."""

from collections.abc import Mapping, Sequence


class PlatformError(Exception):
    """A mistake or a lack that the user can mend.

    The message is one line: what is wrong, where, and the mend. The command line prints it
    without a stack trace; Dagster shows it as the step's failure.
    """


class RejectedError(Exception):
    """One item cannot be used; the others go on.

    The message is the reason, written for the person who owns the file. It lands in the
    rejected table of the stage that met it.
    """


class UnsoundError(PlatformError):
    """A PlatformError that a check of the asset stands for, so that people see it among the checks as well.

    `check` is the name of that check, `numbers` are what was measured, and `worst` names the worst offenders.
    """

    def __init__(
        self, message: str, check: str, numbers: Mapping[str, int | float] | None = None, worst: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.check = check
        self.numbers = dict(numbers or {})
        self.worst = tuple(worst)


class MilvusError(PlatformError):
    """Milvus does not answer, or not as it should: waiting or starting it mends that, asking otherwise does not."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
