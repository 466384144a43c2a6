import json

import numpy as np
import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.inference.precision import PrecisionRecord, machine, sample_contents
from embedding_platform.models.encoder import check_content

FACTS = {"model": "m", "role": "text", "precision": "bfloat16", "runtime": "openvino 1", "machine": "a processor"}


def turned(cosine: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [4, 2], and others of which `count` have the cosine to them and the rest 1."""
    vectors = np.tile([3.0, 0.0], (4, 1)).astype(np.float32)
    others = vectors.copy()
    others[:count] = [cosine, np.sqrt(1 - cosine**2)]
    return vectors, others


@pytest.mark.parametrize(
    ("precision", "cosine", "count", "is_sound"),
    [
        ("float32", 0.99995, 4, True),
        ("float32", 0.9998, 1, False),
        ("bfloat16", 0.9951, 4, True),
        ("bfloat16", 0.991, 1, True),
        ("bfloat16", 0.991, 4, False),
        ("bfloat16", 0.989, 1, False),
        ("float16", 0.9951, 4, True),
        ("float16", 0.989, 1, False),
    ],
)
def test_both_floors_hold(tmp_path, precision, cosine, count, is_sound):
    record, facts = PrecisionRecord(str(tmp_path)), {**FACTS, "precision": precision}
    if is_sound:
        record.check(facts, *turned(cosine, count))
        (file,) = tmp_path.iterdir()
        written = json.loads(file.read_text())
        assert written["cosine_worst"] == pytest.approx(cosine, abs=1e-6)
        assert written["samples"] == 4
    else:
        with pytest.raises(PlatformError, match=f"^m in {precision} by openvino 1 on a processor .* set precision"):
            record.check(facts, *turned(cosine, count))
    assert record.holds(facts) == is_sound


def test_vectors_that_are_no_numbers_are_not_sound(tmp_path):
    vectors, others = turned(1.0, 0)
    others[2] = np.nan
    with pytest.raises(PlatformError, match="below"):
        PrecisionRecord(str(tmp_path)).check(FACTS, vectors, others)


@pytest.mark.parametrize("fact", FACTS)
def test_what_was_measured_holds_for_the_same_facts_alone(tmp_path, fact):
    record = PrecisionRecord(str(tmp_path))
    record.check(FACTS, *turned(1.0, 0))
    assert record.holds(dict(reversed(FACTS.items())))
    assert not record.holds({**FACTS, fact: "other"})


def test_without_a_folder_nothing_is_kept():
    record = PrecisionRecord()
    record.check(FACTS, *turned(1.0, 0))
    assert not record.holds(FACTS)


@pytest.mark.parametrize("role", ["text", "image", "audio", "video"])
def test_samples_are_of_the_role_unlike_each_other_and_always_the_same(role):
    samples = sample_contents(role)
    assert len(samples) >= 2
    for content in samples:
        check_content((role,), role, content)
    shown = [_bytes(content) for content in samples]
    assert len(set(shown)) == len(shown)
    assert shown == [_bytes(content) for content in sample_contents(role)]


def _bytes(content) -> bytes:
    if isinstance(content, str):
        return content.encode()
    return np.asarray(getattr(content, "samples", getattr(content, "frames", content))).tobytes()


def test_a_machine_has_a_name():
    assert machine("cpu") == machine("cpu")
    assert len(machine("cpu")) > 3
