import sys
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from embedding_platform.errors import PlatformError, RejectedError
from embedding_platform.inference.batch_size import PATIENCE
from embedding_platform.inference.lanes import QUEUED, Lanes, PreparedSegment
from embedding_platform.records import Segment
from embedding_platform_tests.inference.small_encoder import SmallEncoder, vector_of

SOON = 60
"""Seconds after which something that should have happened counts as not happening."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def prepared(*texts: str) -> list[PreparedSegment]:
    encoder = SmallEncoder()
    segments = [Segment(text, f"{text}.txt", "", "1", "text", 0, 0.0, 0.0, text, text) for text in texts]
    arrays = [encoder.prepare("text", text) for text in texts]
    return [
        PreparedSegment(segment, one, encoder.cost("text", one), encoder.shape("text", one))
        for segment, one in zip(segments, arrays, strict=True)
    ]


def texts(count: int, of: str = "text") -> list[str]:
    return [f"{of}{number}" for number in range(count)]


class Tight(SmallEncoder):
    """Has memory for `room` texts at once, all lanes together, and remembers the sizes that it tried."""

    def __init__(self, room: int, lane_count: int = 1) -> None:
        super().__init__(lane_count=lane_count)
        self.room = room
        self.tried: list[int] = []
        self.held = 0
        self.lock = threading.Lock()

    def run(self, lane, role, batch):
        with self.lock:
            self.tried.append(len(batch))
            self.held += len(batch)
            fits = self.held <= self.room
        try:
            if not fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().run(lane, role, batch)
        finally:
            with self.lock:
                self.held -= len(batch)


def test_out_of_memory_halves_the_batch_and_remembers_it():
    encoder = Tight(room=3)
    batch = prepared(*texts(16))
    with Lanes(encoder, {"text": 16}) as lanes:
        for _ in range(2):
            answers = lanes.submit("text", batch).result()
            np.testing.assert_array_equal(answers, [vector_of(text) for text in texts(16)])
    assert encoder.tried == [16, 8, 4, *[2] * 8, *[2] * 8]


def test_a_role_that_ran_out_does_not_make_the_batches_of_another_smaller():
    encoder = Tight(room=3)
    with Lanes(encoder, {"text": 16, "image": 16}) as lanes:
        lanes.submit("text", prepared(*texts(4))).result()
        encoder.room = 100
        lanes.submit("image", prepared(*texts(16))).result()
    assert encoder.tried == [16, 8, 4, 2, 2, 16]


def test_the_batch_grows_again_when_there_is_memory_again():
    encoder = Tight(room=10)
    batch = prepared(*texts(20))
    with Lanes(encoder, {"text": 20}) as lanes:
        lanes.submit("text", batch).result()
        assert encoder.tried == [20, 10, 10]
        encoder.room = 20
        while max(encoder.tried[-2:]) < 20:
            assert len(encoder.tried) < 100 * PATIENCE
            lanes.submit("text", batch).result()
    sizes = [size for size in encoder.tried[3:] if size >= 10]
    assert sizes == sorted(sizes)
    assert set(sizes) == {10, 20}


def test_memory_that_does_not_suffice_for_one_content_is_said_in_one_line():
    encoder = Tight(room=0)
    with Lanes(encoder, {"text": 16}) as lanes, pytest.raises(PlatformError) as raised:
        lanes.submit("text", prepared(*texts(4))).result()
    assert str(raised.value) == (
        "memory of cpu does not suffice for one text content of text0.txt; "
        "stop what else runs there, or choose a smaller model or another device"
    )
    assert encoder.tried == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_every_way_to_run_out_of_memory_is_known(error):
    def refuse(content: str) -> None:
        if content == "text1" and not encoder.batches:
            raise error

    encoder = SmallEncoder(refuse=refuse)
    with Lanes(encoder, {"text": 16}) as lanes:
        answers = lanes.submit("text", prepared(*texts(2))).result()
    np.testing.assert_array_equal(answers, [vector_of(text) for text in texts(2)])


def test_after_a_lack_of_memory_a_batch_is_alone_so_that_it_does_not_fail_for_another_lane():
    """One lane holds all the memory until the other has met its lack."""

    class Shared(Tight):
        def run(self, lane, role, batch):
            with self.lock:
                others = self.held
                self.tried.append(len(batch))
                self.held += len(batch)
            try:
                if batch[0]["content"][0] == "a0":
                    begun.set()
                    assert met.wait(SOON)
                elif others:
                    met.set()
                    raise RuntimeError("out of memory")
                return SmallEncoder.run(self, lane, role, batch)
            finally:
                with self.lock:
                    self.held -= len(batch)

    begun, met = threading.Event(), threading.Event()
    encoder = Shared(room=0, lane_count=2)
    with Lanes(encoder, {"text": 9}) as lanes:
        large = lanes.submit("text", prepared(*texts(9, "a")))
        assert begun.wait(SOON)
        small = lanes.submit("text", prepared("b"))
        assert [len(large.result()), len(small.result())] == [9, 1]
    assert encoder.tried == [9, 9, 4]


def test_a_batch_that_is_tried_again_finds_the_memory_of_the_failed_one_free():
    class Array(np.ndarray):
        """An array that weak references can point to."""

    alive: list[weakref.ref] = []

    def refuse(content: str) -> None:
        assert all(ref() is None for ref in alive), "the failed batch is still alive"
        scratch = np.zeros(1).view(Array)
        alive.append(weakref.ref(scratch))
        if len(alive) == 1:
            raise RuntimeError("out of memory")
        del scratch

    with Lanes(SmallEncoder(refuse=refuse), {"text": 8}) as lanes:
        assert len(lanes.submit("text", prepared("a", "b")).result()) == 2
    assert len(alive) == 3


def test_torch_gives_cached_memory_back_before_the_batch_is_tried_again(monkeypatch):
    released = []
    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: released.append(list(encoder.tried)))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    encoder = Tight(room=2)
    with Lanes(encoder, {"text": 8}) as lanes:
        lanes.submit("text", prepared(*texts(8))).result()
    assert released == [[8], [8, 4]]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too long\nby 3 tokens"), "too long"),
        (RuntimeError("no kernel"), "no kernel"),
        (RejectedError("no"), "no"),
        (RuntimeError(), "RuntimeError"),
    ],
)
@pytest.mark.parametrize("bad", [set(), {0}, {3, 4}, {0, 8}, set(range(9))])
def test_contents_that_the_model_fails_on_are_found_alone(error, reason, bad):
    def refuse(content: str) -> None:
        if content in {f"text{number}" for number in bad}:
            raise error

    encoder = SmallEncoder(refuse=refuse)
    with Lanes(encoder, {"text": 16}) as lanes:
        answers = lanes.submit("text", prepared(*texts(9))).result()
    assert [place for place, answer in enumerate(answers) if isinstance(answer, str)] == sorted(bad)
    for place, answer in enumerate(answers):
        if place in bad:
            assert answer == f"the model failed on it: {reason}"
        else:
            np.testing.assert_array_equal(answer, vector_of(f"text{place}"))


def test_a_bad_content_and_a_lack_of_memory_in_one_batch():
    class Both(Tight):
        def run(self, lane, role, batch):
            if len(batch) <= self.room and any(one["content"][0] == "text5" for one in batch):
                raise ValueError("bad")
            return super().run(lane, role, batch)

    with Lanes(Both(room=4), {"text": 16}) as lanes:
        answers = lanes.submit("text", prepared(*texts(16))).result()
    assert [place for place, answer in enumerate(answers) if isinstance(answer, str)] == [5]
    assert len(answers) == 16


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyError("weights"), PlatformError("no key; set one")])
def test_other_errors_are_not_swallowed(error):
    def refuse(content: str) -> None:
        raise error

    with Lanes(SmallEncoder(refuse=refuse), {"text": 16}) as lanes, pytest.raises(type(error)):
        lanes.submit("text", prepared("a")).result()


@pytest.mark.parametrize("given", [1, 3])
def test_too_few_or_too_many_vectors_are_a_bug_of_the_model_and_not_of_a_content(given):
    class Wrong(SmallEncoder):
        def run(self, lane, role, batch):
            return np.zeros((given, 8), np.float32)

    with Lanes(Wrong(), {"text": 2}) as lanes, pytest.raises(ValueError, match="zip"):
        lanes.submit("text", prepared("a", "b")).result()


@pytest.mark.parametrize(
    ("words_each", "counts", "sizes"), [(1, [5], [8]), (1, [8, 11], [8, 8, 8]), (3, [1], [2]), (9, [2], [1, 1])]
)
def test_every_batch_is_filled_up_to_what_the_budget_allows(words_each, counts, sizes):
    """With repeats of its last content, whose vectors are dropped."""
    encoder = Tight(room=100)
    with Lanes(encoder, {"text": 8}) as lanes:
        for count in counts:
            batch = [text + " word" * (words_each - 1) for text in texts(count)]
            answers = lanes.submit("text", prepared(*batch)).result()
            np.testing.assert_array_equal(answers, [vector_of(text) for text in batch])
    assert encoder.tried == sizes


def test_parts_of_a_batch_with_a_bad_content_are_filled_up_too():
    class Bad(Tight):
        def run(self, lane, role, batch):
            super().run(lane, role, batch)
            if any(one["content"][0] == "text5" for one in batch):
                raise ValueError("bad")
            return np.stack([vector_of(one["content"][0]) for one in batch])

    encoder = Bad(room=100)
    with Lanes(encoder, {"text": 8}) as lanes:
        answers = lanes.submit("text", prepared(*texts(7))).result()
    assert [place for place, answer in enumerate(answers) if isinstance(answer, str)] == [5]
    assert set(encoder.tried) == {8}


def test_a_batch_of_no_shape_is_not_filled_up_and_may_mix_costs():
    class Mixing(Tight):
        def shape(self, role, prepared):
            return None

    encoder = Mixing(room=100)
    mixed = [replace(one, shape=None) for one in prepared("a", "b c d", "e f", "g")]
    with Lanes(encoder, {"text": 6}) as lanes:
        lanes.submit("text", mixed).result()
    assert encoder.batches == [["a", "b c d", "e f"], ["g"]]
    assert encoder.tried == [3, 1]


def test_whoever_submits_waits_while_enough_batches_have_not_ended():
    class Slow(SmallEncoder):
        def run(self, lane, role, batch):
            assert goes_on.wait(SOON)
            return super().run(lane, role, batch)

    def submit() -> None:
        for text in texts(3 * QUEUED):
            lanes.submit("text", prepared(text))
            submitted.append(text)
            enough.release()

    goes_on, enough, submitted = threading.Event(), threading.Semaphore(0), []
    with Lanes(Slow(lane_count=2), {"text": 1}) as lanes:
        thread = threading.Thread(target=submit)
        thread.start()
        assert all(enough.acquire(timeout=SOON) for _ in range(2 * QUEUED))
        assert not enough.acquire(timeout=0.05)
        assert len(submitted) == 2 * QUEUED
        goes_on.set()
        thread.join(SOON)
    assert len(submitted) == 3 * QUEUED


def test_lanes_run_side_by_side_and_none_in_two_threads_at_once():
    class Watched(SmallEncoder):
        def run(self, lane, role, batch):
            assert busy[lane].acquire(blocking=False), "the lane is in use"
            try:
                all_at_once.wait()
                return super().run(lane, role, batch)
            finally:
                busy[lane].release()

    busy = [threading.Lock() for _ in range(3)]
    all_at_once = threading.Barrier(3, timeout=SOON)
    with Lanes(Watched(lane_count=3), {"text": 16}) as lanes:
        waiting = [lanes.submit("text", prepared(text)) for text in texts(12)]
        np.testing.assert_array_equal([one.result()[0] for one in waiting], [vector_of(text) for text in texts(12)])


def test_at_the_end_batches_that_have_not_begun_never_do():
    class Slow(SmallEncoder):
        def run(self, lane, role, batch):
            begun.set()
            assert goes_on.wait(SOON)
            return super().run(lane, role, batch)

    begun, goes_on = threading.Event(), threading.Event()
    encoder = Slow()
    with Lanes(encoder, {"text": 16}) as lanes:
        first, *rest = [lanes.submit("text", prepared(text)) for text in texts(QUEUED)]
        assert begun.wait(SOON)
        # Cancelling tells it, once the block is being left.
        rest[-1].add_done_callback(lambda cancelled: goes_on.set())
    assert first.done()
    assert all(one.cancelled() for one in rest)
    assert encoder.embedded == 1


def test_a_device_that_failed_for_good_ends_the_stream_with_the_mend():
    def refuse(content):
        raise RuntimeError("CUDA error: device-side assert triggered\nand how to debug it")

    with Lanes(SmallEncoder(refuse=refuse), {"text": 8}) as lanes:
        answers = lanes.submit("text", prepared("a"))
        with pytest.raises(PlatformError, match=r"^cpu failed: CUDA error: device-side assert triggered; run again"):
            answers.result()
