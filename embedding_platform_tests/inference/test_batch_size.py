import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.inference.batch_size import PATIENCE, BatchSize, cut, rows


@given(costs=st.lists(st.integers(1, 50)), budget=st.integers(1, 200))
def test_batches_cover_all_in_order_and_none_could_take_the_next(costs, budget):
    batches = [costs[batch] for batch in cut(costs, budget)]
    assert [cost for batch in batches for cost in batch] == costs
    assert all(len(batch) == 1 or sum(batch) <= budget for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert sum(batch) + following[0] > budget


@given(cost=st.integers(0, 50), count=st.integers(1, 100), budget=st.integers(1, 200))
def test_contents_of_one_cost_are_cut_into_full_batches_and_a_rest(cost, count, budget):
    full = rows(cost, budget)
    lengths = [len(range(count)[batch]) for batch in cut([max(1, cost)] * count, budget)]
    assert all(length == full for length in lengths[:-1])
    assert 1 <= lengths[-1] <= full


def test_a_lack_of_memory_halves_the_budget():
    size = BatchSize(100)
    size.ran_out([30] * 3)
    assert size.allowed == 50
    size.ran_out([30])
    assert size.allowed == 25


def test_two_batches_that_ran_out_at_once_halve_it_once():
    size = BatchSize(100)
    size.ran_out([25] * 4)
    size.ran_out([50] * 2)
    assert size.allowed == 50


def test_it_doubles_after_enough_full_batches_and_never_over_the_budget():
    size = BatchSize(100)
    for _ in range(3):
        size.ran_out([size.allowed])
    grown = []
    for _ in range(4 * PATIENCE):
        size.went_well([size.allowed])
        grown.append(size.allowed)
    assert grown == [12] * (PATIENCE - 1) + [25] * PATIENCE + [50] * PATIENCE + [100] * (PATIENCE + 1)


def test_a_device_that_is_always_too_small_keeps_to_one_size():
    size = BatchSize(1000)
    tried = []
    for _ in range(20 * PATIENCE):
        tried.append(size.allowed)
        (size.went_well if size.allowed <= 300 else size.ran_out)([size.allowed])
    assert set(tried) == {1000, 500, 250}
    assert tried.count(250) > 0.98 * len(tried)


def test_the_smallest_size_grows_too():
    size = BatchSize(3)
    size.ran_out([1])
    assert size.allowed == 1
    for _ in range(2 * PATIENCE):
        size.went_well([1] * size.allowed)
    assert size.allowed == 3


def test_batches_that_are_not_full_prove_nothing():
    size = BatchSize(100)
    size.ran_out([10] * 10)
    for _ in range(10 * PATIENCE):
        size.went_well([10] * 4)
    assert size.allowed == 50


@pytest.mark.parametrize("failures", [1, 2, 4])
def test_growth_that_was_too_much_is_tried_again_later_each_time(failures):
    size = BatchSize(1000)
    size.ran_out([1000])
    for failure in range(failures):
        for _ in range(PATIENCE * 2**failure):
            size.went_well([size.allowed])
        assert size.allowed == 1000
        size.ran_out([1000])
    waited = 0
    while size.allowed == 500:
        size.went_well([500])
        waited += 1
    assert waited == PATIENCE * 2**failures


def test_halving_several_times_in_a_row_does_not_make_the_waiting_longer():
    size = BatchSize(1024)
    for cost in (1024, 512, 256):
        size.ran_out([cost])
    for _ in range(PATIENCE):
        size.went_well([128])
    assert size.allowed == 256


@given(
    budget=st.integers(1, 1000),
    events=st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=20)), max_size=200),
)
def test_whatever_happens_the_size_stays_between_one_and_the_budget(budget, events):
    size = BatchSize(budget)
    for went_well, costs in events:
        before = size.allowed
        (size.went_well if went_well else size.ran_out)(costs)
        assert size.allowed in {max(1, budget >> halvings) for halvings in range(11)}
        if not went_well:
            assert size.allowed == (before if sum(costs) > before else max(1, before // 2))
