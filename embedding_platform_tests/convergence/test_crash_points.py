"""The table of boundaries: each names something that is there, and strikes once, where it says."""

import pytest

from embedding_platform import storage
from embedding_platform_tests.convergence.crash_points import BY_NAME, IN_PROCESS, POINTS, Crash, CrashPoint, armed


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_every_point_names_something_that_can_be_wrapped_and_is_put_back(point: CrashPoint) -> None:
    from embedding_platform_tests.convergence import crash_points

    owner, name = crash_points._place_of(point.target)
    original = getattr(owner, name)
    with armed([point], 1):
        assert getattr(owner, name) is not original
    assert getattr(owner, name) is original


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(POINTS) > len(IN_PROCESS) > 20


def test_the_passage_is_counted_over_all_points_and_concerns_their_arguments_alone(tmp_path) -> None:
    points = [BY_NAME["mid segment shard write"], BY_NAME["mid vector shard write"]]
    folder = f"{tmp_path}/store"
    with armed(points, 2) as struck:
        storage.write_bytes(f"{folder}/segments/a", b"first")
        storage.write_bytes(f"{folder}/files/b", b"of no concern")
        with pytest.raises(Crash):
            storage.write_bytes(f"{folder}/vectors/c", b"second")
        storage.write_bytes(f"{folder}/vectors/d", b"third")
    assert struck == ["mid vector shard write"]
    assert (tmp_path / "store" / "vectors" / ".writing-0123456789abcdef").read_bytes() == b"sec"
    assert sorted(path.name for path in (tmp_path / "store").rglob("?")) == ["a", "b", "d"]
