import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_platform.errors import RejectedError
from embedding_platform.inference.stream import Embedded, Failed, embed_stream
from embedding_platform.records import Content, Segment
from embedding_platform_tests.inference.small_encoder import SmallEncoder, vector_of


def segment(path: str, position: int, text: str, role: str = "text") -> Segment:
    name = f"{path}#{position}"
    return Segment(name, path, f"/{path}", "1", role, position, 0.0, 0.0, text, name)


def texts_of(lengths: Sequence[Sequence[int]]) -> list[list[Segment]]:
    """A file for each list, with one text of that many words for each number."""
    return [
        [
            segment(f"{number}.txt", place, f"{number}:{place}" + " word" * (words - 1))
            for place, words in enumerate(file)
        ]
        for number, file in enumerate(lengths)
    ]


def read(segments: Sequence[Segment]) -> Iterator[Content]:
    for one in segments:
        yield one.text


def threads_reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_read_files" in thread.name]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), max_size=8), max_size=12),
    budget=st.integers(1, 60),
    readers=st.integers(1, 3),
)
def test_every_segment_comes_back_once_with_the_vector_of_its_own_content(lengths, budget, readers):
    files, encoder = texts_of(lengths), SmallEncoder()
    outcomes = list(embed_stream(files, read, encoder, {"text": budget}, readers))
    assert Counter(outcome.segment.segment_id for outcome in outcomes) == Counter(
        one.segment_id for file in files for one in file
    )
    for outcome in outcomes:
        np.testing.assert_array_equal(outcome.vector, vector_of(outcome.segment.text))
    for batch in encoder.batches:
        longest = max(encoder.cost("text", content) for content in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_texts_of_like_length_share_a_batch():
    encoder = SmallEncoder()
    list(embed_stream(texts_of([[1, 20] * 8]), read, encoder, {"text": 40}))
    assert all(len({encoder.cost("text", content) for content in batch}) == 1 for batch in encoder.batches)


def test_each_role_has_its_own_budget_and_batches():
    files = [[segment("pair", 0, "a b c"), segment("pair", 1, "picture", role="image")] for _ in range(6)]
    encoder = SmallEncoder()
    outcomes = list(embed_stream(files, read, encoder, {"text": 6, "image": 3}))
    assert len(outcomes) == 12
    assert all(len({content == "picture" for content in batch}) == 1 for batch in encoder.batches)
    assert max(len(batch) for batch in encoder.batches if batch[0] == "picture") == 3
    assert max(len(batch) for batch in encoder.batches if batch[0] != "picture") == 2


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_file_rejected_midway_fails_from_there_on_and_others_go_on(good):
    def read_until(segments: Sequence[Segment]) -> Iterator[Content]:
        for place, one in enumerate(segments):
            if one.path == "1.txt" and place == good:
                raise RejectedError("is cut short")
            yield one.text

    outcomes = list(embed_stream(texts_of([[2] * 4] * 3), read_until, SmallEncoder(), {"text": 8}))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert {outcome.segment.segment_id for outcome in failed} == {f"1.txt#{place}" for place in range(good, 4)}
    assert {outcome.reason for outcome in failed} == {"is cut short"}
    assert sum(isinstance(outcome, Embedded) for outcome in outcomes) == 8 + good


def test_a_file_that_gives_too_few_contents_fails_for_the_rest():
    def read_one(segments: Sequence[Segment]) -> Iterator[Content]:
        yield segments[0].text

    outcomes = list(embed_stream(texts_of([[1, 1, 1]]), read_one, SmallEncoder(), {"text": 8}))
    assert [type(outcome) for outcome in outcomes].count(Embedded) == 1
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Failed)} == {
        "the file holds fewer segments than when it was cut"
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too long\nby 3 tokens"), "too long"),
        (RuntimeError("CUDA out of memory"), "CUDA out of memory"),
        (RejectedError("no"), "no"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize("bad", [{"0:0"}, {"0:3", "0:4"}, {f"0:{place}" for place in range(9)}])
def test_contents_that_the_model_refuses_are_found_alone(error, reason, bad):
    def refuse(content: Content) -> None:
        if content in bad:
            raise error

    outcomes = list(embed_stream(texts_of([[1] * 9]), read, SmallEncoder(refuse=refuse), {"text": 16}))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert {outcome.segment.text for outcome in failed} == bad
    assert all(reason in outcome.reason for outcome in failed)
    assert len(outcomes) == 9


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    class Tight(SmallEncoder):
        def embed(self, role, batch):
            if len(batch) > 3:
                raise RuntimeError("out of memory")
            return super().embed(role, batch)

    outcomes = list(embed_stream(texts_of([[1] * 20]), read, Tight(), {"text": 16}))
    assert all(isinstance(outcome, Embedded) for outcome in outcomes)
    assert len(outcomes) == 20


def test_an_unexpected_error_of_a_reader_reaches_the_consumer():
    def crash(segments: Sequence[Segment]) -> Iterator[Content]:
        raise ZeroDivisionError("a bug")
        yield

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(embed_stream(texts_of([[1]]), crash, SmallEncoder(), {"text": 8}))
    assert not threads_reading()


def test_an_error_of_the_list_of_files_reaches_the_consumer():
    def files() -> Iterator[list[Segment]]:
        yield from texts_of([[1]])
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        list(embed_stream(files(), read, SmallEncoder(), {"text": 8}))


@pytest.mark.parametrize("error", [TypeError("text contents are str"), KeyError("weights")])
def test_an_unexpected_error_of_the_model_is_not_swallowed(error):
    def refuse(content: Content) -> None:
        raise error

    with pytest.raises(type(error)):
        list(embed_stream(texts_of([[1]]), read, SmallEncoder(refuse=refuse), {"text": 8}))
    assert not threads_reading()


def test_a_consumer_that_stops_early_stops_the_readers():
    endless = ([segment(f"{number}.txt", 0, f"text {number}")] for number in itertools.count())
    outcomes = embed_stream(endless, read, SmallEncoder(), {"text": 8}, readers=3)
    assert isinstance(next(outcomes), Embedded)
    assert threads_reading()
    outcomes.close()
    assert not threads_reading()


@pytest.mark.parametrize(
    ("roles", "queued", "batches_waiting"),
    [(("text",), 128, 4), (("image",), 8, 1), (("video",), 8, 1), (("image", "text"), 8, 4)],
)
def test_readers_decode_only_so_far_ahead_of_the_model(roles, queued, batches_waiting):
    decoded = 0
    ahead = []

    def count(segments: Sequence[Segment]) -> Iterator[Content]:
        nonlocal decoded
        for one in segments:
            decoded += 1
            yield one.text

    role, budget, readers = roles[-1], 4, 2
    endless = ([segment(f"{number}", 0, f"content{number}", role)] for number in itertools.count())
    outcomes = embed_stream(endless, count, SmallEncoder(), dict.fromkeys(roles, budget), readers)
    for taken, _ in enumerate(itertools.islice(outcomes, 400), start=1):
        ahead.append(decoded - taken)
    assert max(ahead) <= queued + batches_waiting * budget + readers
    outcomes.close()


def test_no_files_give_nothing():
    assert list(embed_stream([], read, SmallEncoder(), {"text": 8})) == []
