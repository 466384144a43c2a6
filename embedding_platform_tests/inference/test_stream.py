import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.inference import stream
from embedding_platform.inference.lanes import QUEUED
from embedding_platform.inference.stream import WAIT_BATCHES, Embedded, Failed, embed_stream
from embedding_platform.records import Content, Segment
from embedding_platform_tests.inference.small_encoder import SmallEncoder, nothing_refused, vector_of, words

SOON = 60
"""Seconds after which something that should have happened counts as not happening."""

PICTURE = Image.new("RGB", (4, 4))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


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


def endless() -> Iterator[list[Segment]]:
    return ([segment(f"{number}.txt", 0, f"{number} text")] for number in itertools.count())


def read(segments: Sequence[Segment]) -> Iterator[Content]:
    for one in segments:
        yield one.text if one.role == "text" else PICTURE


def names(outcomes: Sequence[Embedded | Failed]) -> list[str]:
    return [outcome.segment.segment_id for outcome in outcomes]


def names_in(files: Sequence[Sequence[Segment]]) -> list[str]:
    return [one.segment_id for file in files for one in file]


def refusing(bad: set[str], error: Exception) -> Callable[[Content], None]:
    def refuse(content: Content) -> None:
        if content.split()[0] in bad:
            raise error

    return refuse


lengths_of_files = st.lists(st.lists(st.integers(1, 30), max_size=8), max_size=12)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), lengths=lengths_of_files, budget=st.integers(1, 60))
def test_every_segment_comes_back_once_in_order_with_its_own_vector_or_its_own_failure(data, lengths, budget):
    files = texts_of(lengths)
    places = [f"{number}:{place}" for number, file in enumerate(lengths) for place in range(len(file))]
    some = st.sets(st.sampled_from(places), max_size=4) if places else st.just(set())
    cut_short, too_long, bad = data.draw(some), data.draw(some), data.draw(some)

    def read_until(segments: Sequence[Segment]) -> Iterator[Content]:
        for one in segments:
            if one.text.split()[0] in cut_short:
                raise RejectedError("is cut short")
            yield one.text

    encoder = SmallEncoder(
        refuse_early=refusing(too_long, ValueError("too long")),
        refuse=refusing(bad, RuntimeError("no kernel")),
        lane_count=data.draw(st.integers(1, 3)),
    )
    readers = data.draw(st.integers(1, 3))
    outcomes = list(embed_stream(files, read_until, encoder, {"text": budget}, readers))

    assert names(outcomes) == names_in(files)
    for outcome in outcomes:
        number, place = map(int, outcome.segment.text.split()[0].split(":"))
        if any(f"{number}:{before}" in cut_short for before in range(place + 1)):
            assert outcome.reason == "is cut short"
        elif f"{number}:{place}" in too_long:
            assert outcome.reason == "the model does not take it: too long"
        elif f"{number}:{place}" in bad:
            assert outcome.reason == "the model failed on it: no kernel"
        else:
            np.testing.assert_array_equal(outcome.vector, vector_of(outcome.segment.text))
    for batch in encoder.batches:
        costs = set(map(words, batch))
        assert len(costs) == 1
        assert len(batch) == 1 or sum(map(words, batch)) <= budget


@settings(deadline=None, max_examples=30)
@given(
    lengths=lengths_of_files,
    budget=st.integers(1, 60),
    naps=st.lists(st.sampled_from([0, 0, 0.001, 0.002]), min_size=7, max_size=7),
)
def test_what_shares_a_batch_depends_on_the_input_alone(lengths, budget, naps):
    def slowly(segments: Sequence[Segment]) -> Iterator[Content]:
        for one in segments:
            time.sleep(naps[len(one.text) % len(naps)])
            yield one.text

    class Slow(SmallEncoder):
        def run(self, lane, role, batch):
            time.sleep(naps[lane])
            return super().run(lane, role, batch)

    files = texts_of(lengths)
    plain = SmallEncoder()
    list(embed_stream(files, read, plain, {"text": budget}, readers=1))
    for readers, lane_count in ((1, 2), (3, 1), (3, 3)):
        slow = Slow(lane_count=lane_count)
        list(embed_stream(files, slowly, slow, {"text": budget}, readers))
        assert sorted(slow.batches) == sorted(plain.batches)


def test_texts_of_like_length_share_a_batch():
    encoder = SmallEncoder()
    list(embed_stream(texts_of([[1, 20] * 8]), read, encoder, {"text": 40}))
    assert all(len(set(map(words, batch))) == 1 for batch in encoder.batches)


def test_each_role_has_its_own_budget_and_batches():
    files = [[segment("pair", 0, "a b c"), segment("pair", 1, "", role="image")] for _ in range(6)]
    encoder = SmallEncoder()
    outcomes = list(embed_stream(files, read, encoder, {"text": 6, "image": 3}))
    assert names(outcomes) == names_in(files)
    assert [len(batch) for batch in encoder.batches if batch[0] is PICTURE] == [3, 3]
    assert [len(batch) for batch in encoder.batches if batch[0] is not PICTURE] == [2, 2, 2]
    assert all(len({content is PICTURE for content in batch}) == 1 for batch in encoder.batches)


def test_a_content_above_the_budget_is_embedded_alone():
    encoder = SmallEncoder()
    outcomes = list(embed_stream(texts_of([[3, 50, 3]]), read, encoder, {"text": 6}))
    assert [type(outcome) for outcome in outcomes] == [Embedded] * 3
    assert [list(map(words, batch)) for batch in encoder.batches] == [[50], [3, 3]]


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_file_rejected_midway_fails_from_there_on_and_others_go_on(good):
    def read_until(segments: Sequence[Segment]) -> Iterator[Content]:
        for place, one in enumerate(segments):
            if one.path == "1.txt" and place == good:
                raise RejectedError("is cut short")
            yield one.text

    files = texts_of([[2] * 4] * 3)
    outcomes = list(embed_stream(files, read_until, SmallEncoder(), {"text": 8}))
    assert names(outcomes) == names_in(files)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert names(failed) == [f"1.txt#{place}" for place in range(good, 4)]
    assert {outcome.reason for outcome in failed} == {"is cut short"}


def test_a_file_that_gives_too_few_contents_fails_for_the_rest():
    def read_one(segments: Sequence[Segment]) -> Iterator[Content]:
        yield segments[0].text

    outcomes = list(embed_stream(texts_of([[1, 1, 1]]), read_one, SmallEncoder(), {"text": 8}))
    assert [type(outcome) for outcome in outcomes] == [Embedded, Failed, Failed]
    assert {outcome.reason for outcome in outcomes[1:]} == {"the file holds fewer segments than when it was cut"}


@pytest.mark.parametrize("error", [ValueError("31 s are longer than 30 s"), RejectedError("31 s are longer than 30 s")])
def test_a_content_that_cannot_be_prepared_fails_and_its_file_goes_on(error):
    encoder = SmallEncoder(refuse_early=refusing({"0:1"}, error))
    outcomes = list(embed_stream(texts_of([[1, 1, 1]]), read, encoder, {"text": 8}))
    assert [type(outcome) for outcome in outcomes] == [Embedded, Failed, Embedded]
    assert outcomes[1].reason == "the model does not take it: 31 s are longer than 30 s"


def test_a_batch_that_memory_does_not_suffice_for_goes_on_in_smaller_ones():
    def run(lane: int, role: str, batch: Sequence) -> np.ndarray:
        if len(batch) > 3:
            raise RuntimeError("out of memory")
        return SmallEncoder.run(encoder, lane, role, batch)

    encoder = SmallEncoder(lane_count=2)
    encoder.run = run
    files = texts_of([[1] * 100])
    outcomes = list(embed_stream(files, read, encoder, {"text": 16}))
    assert names(outcomes) == names_in(files)
    assert {type(outcome) for outcome in outcomes} == {Embedded}
    assert max(map(len, encoder.batches)) <= 3


def test_memory_that_does_not_suffice_for_one_content_ends_the_stream_after_what_comes_before_it():
    encoder = SmallEncoder(refuse=refusing({"3:0"}, MemoryError()))
    outcomes = embed_stream(texts_of([[1]] * 8), read, encoder, {"text": 1})
    assert names(itertools.islice(outcomes, 3)) == ["0.txt#0", "1.txt#0", "2.txt#0"]
    with pytest.raises(PlatformError, match=r"one text content of 3.txt; stop"):
        next(outcomes)


BUGS = (ZeroDivisionError("a bug"), TypeError("a bug"), PlatformError("a bug"))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        *itertools.product(("list of files", "reader", "prepare", "model"), BUGS),
        # Of prepare and model it would say that the content is at fault.
        *itertools.product(("list of files", "reader"), [ValueError("a bug"), SystemExit("a bug")]),
        ("list of files", RejectedError("a bug")),
    ],
)
@pytest.mark.parametrize("budget", [1, 3, 100])
def test_an_unexpected_error_is_raised_after_the_outcomes_that_come_before_it(where, error, budget):
    files = texts_of([[1, 1]] * 6)

    def until() -> Iterator[list[Segment]]:
        yield from files[:4]
        raise error

    def crash(segments: Sequence[Segment]) -> Iterator[Content]:
        for one in segments:
            if one.text == "4:0":
                raise error
            yield one.text

    refuse = refusing({"4:0"}, error)
    encoder = SmallEncoder(
        refuse_early=refuse if where == "prepare" else nothing_refused,
        refuse=refuse if where == "model" else nothing_refused,
    )
    outcomes = embed_stream(
        until() if where == "list of files" else files,
        crash if where == "reader" else read,
        encoder,
        {"text": budget},
    )
    given_before = []
    with pytest.raises(type(error), match="a bug"):
        given_before.extend(iter(outcomes.__next__, None))
    if where == "model":
        # The whole batch has no vectors: what shares it with the bad content is not given.
        assert names(given_before) == names_in(files)[: 8 // budget * budget]
    else:
        assert names(given_before) == names_in(files)[:8]


@pytest.mark.parametrize("taken", [0, 1, 30])
def test_a_consumer_that_stops_early_stops_all_threads(taken):
    before = set(threading.enumerate())
    outcomes = embed_stream(endless(), read, SmallEncoder(lane_count=2), {"text": 8}, readers=3)
    assert len(list(itertools.islice(outcomes, taken))) == taken
    assert (set(threading.enumerate()) > before) == (taken > 0)
    outcomes.close()
    assert set(threading.enumerate()) == before


def test_a_consumer_that_fails_stops_all_threads():
    before = set(threading.enumerate())

    def consume() -> None:
        for _ in embed_stream(endless(), read, SmallEncoder(), {"text": 8}):
            raise OSError("the store is full")

    with pytest.raises(OSError, match="the store is full"):
        consume()
    assert set(threading.enumerate()) == before


class Array(np.ndarray):
    """An array that weak references can point to, and whose bytes are said to be 1,000,000."""

    @property
    def nbytes(self) -> int:
        return 1_000_000


class Weighed(SmallEncoder):
    """Counts the prepared contents that are alive."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self.alive = self.most = 0
        self.lock = threading.RLock()

    def prepare(self, role, content, purpose="document"):
        holder = super().prepare(role, content, purpose)["content"].view(Array)
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(holder, self._gone)
        return {"content": holder}

    def _gone(self):
        with self.lock:
            self.alive -= 1


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true before long."""
    deadline = time.monotonic() + SOON
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    return holds()


@pytest.mark.parametrize("lane_count", [1, 2, 5])
def test_prepared_contents_are_bounded_however_slow_the_model_is(lane_count, monkeypatch):
    """They are in the batches that run or wait for a lane, in those being gathered, or read ahead."""

    class Stuck(Weighed):
        def run(self, lane, role, batch):
            assert eventually(lambda: self.most >= bound - readers - rows), "the room is not used"
            time.sleep(0.02)
            return super().run(lane, role, batch)

    rows, readers, ahead = 3, 2, 5
    monkeypatch.setattr(stream, "READ_AHEAD_BYTES", ahead * (1_000_000 + stream.SEGMENT_BYTES))
    bound = (QUEUED * lane_count + 1) * rows + ahead + readers
    encoder = Stuck(lane_count=lane_count)
    # Of texts of two words, batches hold as many as `rows`.
    outcomes = embed_stream(endless(), read, encoder, {"text": 2 * rows}, readers)
    assert len(list(itertools.islice(outcomes, 100))) == 100
    outcomes.close()
    # One more is in the hand of the collector.
    assert encoder.most <= bound + 1
    assert encoder.alive == 0


def test_no_more_is_embedded_ahead_of_a_slow_consumer_than_may_wait(monkeypatch):
    """And what was embedded is let go."""
    ahead, readers = 5, 2
    monkeypatch.setattr(stream, "READ_AHEAD_BYTES", ahead * (1_000_000 + stream.SEGMENT_BYTES))
    monkeypatch.setattr(stream, "WAIT_BATCHES", 8)
    encoder = Weighed()
    outcomes = embed_stream(endless(), read, encoder, {"text": 6}, readers)
    next(outcomes)
    assert eventually(lambda: encoder.embedded == 8 * 3)
    # One is in the hand of the collector, and one is the first of a batch.
    assert eventually(lambda: encoder.alive <= ahead + readers + 2)
    assert encoder.embedded == 8 * 3
    outcomes.close()


def test_readers_and_collector_go_on_while_a_lane_is_busy_and_the_consumer_waits(monkeypatch):
    """The first batch ends only when as many have been read as may wait for a lane."""
    monkeypatch.setattr(stream, "READ_AHEAD_BYTES", 1)

    class Busy(SmallEncoder):
        def run(self, lane, role, batch):
            assert far_ahead.wait(SOON), "nobody read on"
            return super().run(lane, role, batch)

    def watched(segments: Sequence[Segment]) -> Iterator[Content]:
        if segments[0].path == f"{QUEUED}.txt":
            far_ahead.set()
        yield segments[0].text

    far_ahead = threading.Event()
    outcomes = embed_stream(endless(), watched, Busy(), {"text": 2})
    assert isinstance(next(outcomes), Embedded)
    outcomes.close()


def test_lanes_run_on_while_the_consumer_is_busy():
    """The consumer has the first vector and asks for no other until as many were embedded as may wait."""

    class Watched(SmallEncoder):
        def run(self, lane, role, batch):
            vectors = super().run(lane, role, batch)
            if self.embedded >= WAIT_BATCHES:
                embedded.set()
            return vectors

    embedded = threading.Event()
    outcomes = embed_stream(endless(), read, Watched(), {"text": 2})
    next(outcomes)
    assert embedded.wait(SOON)
    outcomes.close()


def test_lanes_run_side_by_side():
    class Paired(SmallEncoder):
        def run(self, lane, role, batch):
            all_at_once.wait()
            return super().run(lane, role, batch)

    all_at_once = threading.Barrier(3, timeout=SOON)
    files = texts_of([[1]] * 12)
    outcomes = list(embed_stream(files, read, Paired(lane_count=3), {"text": 1}))
    assert names(outcomes) == names_in(files)


def test_vectors_are_given_as_soon_as_those_before_them_are_there():
    """Not only when the next file is, or others that came later."""

    class Stuck(SmallEncoder):
        def run(self, lane, role, batch):
            if self.embedded:
                assert taken.wait(SOON), "the first vector was held back"
            return super().run(lane, role, batch)

    def files() -> Iterator[list[Segment]]:
        yield from texts_of([[1]] * 4)
        assert taken.wait(SOON), "the first vector was held back"

    taken = threading.Event()
    for number, outcome in enumerate(embed_stream(files(), read, Stuck(), {"text": 1})):
        assert outcome.segment.path == f"{number}.txt"
        taken.set()
    assert number == 3


def test_failures_are_given_without_waiting_for_a_content_that_can_be_embedded(monkeypatch):
    monkeypatch.setattr(stream, "READ_AHEAD_BYTES", 1)
    rejected = 0

    def reject(segments: Sequence[Segment]) -> Iterator[Content]:
        nonlocal rejected
        rejected += 1
        raise RejectedError("is no text")
        yield

    outcomes = embed_stream(texts_of([[1]] * 2000), reject, SmallEncoder(), {"text": 8}, readers=1)
    assert names(itertools.islice(outcomes, 100)) == [f"{number}.txt#0" for number in range(100)]
    assert rejected <= 100 + (WAIT_BATCHES + 1) * 8
    outcomes.close()


@pytest.mark.parametrize("files", [[], [[]], [[], []]])
def test_no_segments_give_nothing(files):
    assert list(embed_stream(files, read, SmallEncoder(), {"text": 8})) == []


def test_contents_wait_for_others_of_their_shape_but_not_for_longer_than_told(monkeypatch):
    monkeypatch.setattr(stream, "WAIT_BATCHES", 5)
    encoder = SmallEncoder()
    # Ten texts of ten words make a batch, and so would the rare ones, of which there are too few.
    lengths = [[10] * 30, [50], [10] * 40, [50], [10] * 19, [50], [10]]
    outcomes = list(embed_stream(texts_of(lengths), read, encoder, {"text": 100}))
    assert names(outcomes) == names_in(texts_of(lengths))
    assert [list(map(words, batch)) for batch in encoder.batches] == [
        *[[10] * 10] * 7,
        [50, 50],
        *[[10] * 10] * 2,
        [50],
    ]


def test_a_rare_content_does_not_hold_up_the_stream_for_ever(monkeypatch):
    monkeypatch.setattr(stream, "WAIT_BATCHES", 5)
    files = itertools.chain(texts_of([[3]]), endless())
    outcomes = embed_stream(files, read, SmallEncoder(), {"text": 100})
    assert isinstance(next(outcomes), Embedded)
    outcomes.close()


class ByShape(SmallEncoder):
    """Adds to each vector what tells the shape of its batch, as networks do in their last bits."""

    def run(self, lane, role, batch):
        padded = max(self.cost(role, one) for one in batch)
        return super().run(lane, role, batch) + np.float32(len(batch) + padded / 1000)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), lengths=lengths_of_files, budget=st.integers(1, 60))
def test_a_vector_does_not_depend_on_what_else_the_stream_holds(data, lengths, budget):
    files = texts_of(lengths)
    places = [one.text.split()[0] for file in files for one in file]
    bad = data.draw(st.sets(st.sampled_from(places), max_size=2)) if places else set()

    def embed(files: Sequence[Sequence[Segment]]) -> dict[str, bytes | str]:
        encoder = ByShape(refuse=refusing(bad, RuntimeError("no kernel")), lane_count=2)
        outcomes = embed_stream(files, read, encoder, {"text": budget})
        return {
            one.segment.segment_id: one.vector.tobytes() if isinstance(one, Embedded) else one.reason
            for one in outcomes
        }

    whole = embed(files)
    segments = [one for file in files for one in file]
    assert len(whole) == len(segments)
    alone = {name: vector for one in segments for name, vector in embed([[one]]).items()}
    some = data.draw(st.permutations(segments))[: data.draw(st.integers(0, len(segments)))]
    assert alone == whole
    assert embed([[one] for one in some]) == {one.segment_id: whole[one.segment_id] for one in some}
