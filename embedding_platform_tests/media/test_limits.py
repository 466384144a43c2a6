"""Which rejections stand, and which a later run takes up again."""

import pytest

from embedding_platform.media.limits import USUAL_LIMITS, cut_off, not_now, over, stands


@pytest.mark.parametrize(
    ("name", "value", "higher"),
    [("max_seconds", 0.5, 0.75), ("max_megabytes", 8, 9), ("max_pixels", 100, 101), ("max_hours", 24.0, 24.5)],
)
def test_a_rejection_for_a_limit_stands_until_the_limit_is_raised(name: str, value: float, higher: float) -> None:
    limits = USUAL_LIMITS.model_copy(update={name: value})
    reason = str(over(limits, name, "is too much"))
    assert f"decoding.{name} = {value:g}" in reason
    assert stands(reason, limits)
    assert stands(reason, limits.model_copy(update={name: value / 2}))
    assert not stands(reason, limits.model_copy(update={name: higher}))


def test_a_rejection_for_another_limit_is_not_lifted() -> None:
    reason = str(over(USUAL_LIMITS, "max_megabytes", "is too large"))
    assert stands(reason, USUAL_LIMITS.model_copy(update={"max_pixels": 2 * USUAL_LIMITS.max_pixels}))


@pytest.mark.parametrize(
    ("reason", "is_lasting"),
    [
        ("is damaged", True),
        (str(not_now(OSError(5, "Input/output error"))), False),
        (str(not_now(PermissionError(13, "Permission denied"))), False),
        (str(cut_off("the process that parses it was ended by SIGKILL")), False),
    ],
)
def test_what_says_nothing_of_the_file_does_not_stand(reason: str, is_lasting: bool) -> None:
    assert stands(reason, USUAL_LIMITS) == is_lasting
