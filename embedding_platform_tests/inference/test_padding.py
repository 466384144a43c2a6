import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_platform.inference.padding import NARROWEST, WIDTHS_PER_DOUBLING, padded_shape, padded_width, stacked
from embedding_platform.models.encoder import Input

lengths = st.integers(1, 4000)
longests = st.one_of(st.none(), st.integers(1, 4000))


@given(length=lengths, longest=longests)
def test_only_the_longest_contents_are_not_padded_and_none_beyond_that(length, longest):
    width = padded_width(length, longest)
    if longest is None or length >= longest:
        assert width == length
    else:
        assert length < width <= longest


@given(length=st.integers(1, 4000))
def test_no_more_is_padded_than_a_step_of_the_ladder(length):
    width = padded_width(length, 5000)
    assert width <= max(NARROWEST, length + length / WIDTHS_PER_DOUBLING)


@given(length=st.integers(1, 3999))
def test_longer_contents_are_never_padded_to_less(length):
    assert padded_width(length, 4000) <= padded_width(length + 1, 4000)


def test_widths_are_few():
    assert sorted({padded_width(length, 256) for length in range(1, 257)}) == [
        *(16, 20, 24, 28, 32, 40, 48, 56, 64),
        *(80, 96, 112, 128, 160, 192, 224, 256),
    ]


def test_only_axes_that_vary_are_padded():
    assert padded_shape((80, 7), Input("float32", (80, None), longest=3000)) == (80, 16)
    assert padded_shape((), Input("int64")) == ()


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_a_batch_is_padded_to_the_width_of_its_longest(counts):
    taken = Input("int64", (None,), padding=9, longest=30)
    batch = stacked([np.arange(count) for count in counts], taken)
    assert batch.shape == (len(counts), padded_width(max(counts), 30))
    for row, count in zip(batch, counts, strict=True):
        assert row.tolist() == [*range(count), *[9] * (len(row) - count)]


@pytest.mark.parametrize("arrays", [[np.array(3), np.array(5)], [np.ones((2, 3)), np.zeros((2, 3))]])
def test_what_does_not_vary_is_stacked_as_it_is(arrays):
    np.testing.assert_array_equal(stacked(arrays, Input("float64", arrays[0].shape)), np.stack(arrays))
