from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from embedding_platform.errors import PlatformError
from embedding_platform.milvus.expressions import EVERYTHING
from embedding_platform.search import Filter, written_filter

MAY = datetime(2026, 5, 31, 18, tzinfo=UTC)


def test_nothing_named_is_no_condition():
    assert Filter().condition == EVERYTHING


def test_all_that_is_named_is_in_the_condition_but_the_sources():
    wanted = Filter(
        sources=("photos",),
        roles=("image",),
        path_prefix="2024/",
        embedded_after=MAY,
        embedded_before=MAY + timedelta(days=1, microseconds=5),
        attributes={"format": "JPEG", "width": (640, None), "sound": True, "duration_seconds": (0.5, 30)},
    )
    assert wanted.condition.split(" and ") == [
        'role in ["image"]',
        'path >= "2024/"',
        'path < "20240"',
        'embedded_at >= "2026-05-31T18:00:00+00:00"',
        'embedded_at < "2026-06-01T18:00:00.000005+00:00"',
        'attributes["format"] == "JPEG"',
        'attributes["width"] >= 640',
        'attributes["sound"] == true',
        'attributes["duration_seconds"] >= 0.5',
        'attributes["duration_seconds"] <= 30',
    ]


def test_a_time_of_any_zone_is_one_in_utc():
    there = Filter(embedded_after=MAY.astimezone(timezone(timedelta(hours=2))))
    assert there.condition == Filter(embedded_after=MAY).condition


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"sources": "photos"}, r"write \('photos',\)"),
        ({"roles": "image"}, r"write \('image',\)"),
        ({"embedded_after": datetime(2026, 5, 31)}, "has no time zone"),
        ({"embedded_after": "2026-05-01"}, "embedded_after of a filter is '2026-05-01'; give a datetime"),
        ({"embedded_before": date(2026, 5, 1)}, "embedded_before of a filter is .*; give a datetime"),
        ({"attributes": {"a.b": 1}}, "is the name of no attribute"),
        ({"attributes": {"width": (None, None)}}, "None for an open end"),
        ({"attributes": {"width": (1, 2, 3)}}, "None for an open end"),
        ({"attributes": {"width": (1, "b")}}, "give two numbers or two texts"),
        ({"attributes": {"width": float("nan")}}, "no value that Milvus compares with"),
        ({"attributes": {"width": [1, 2]}}, "no value that Milvus compares with"),
    ],
)
def test_what_cannot_be_a_filter_is_refused_when_it_is_made(named, reason):
    with pytest.raises(PlatformError, match=reason):
        Filter(**named)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("width=640", 640),
        ("width=640..", (640, None)),
        ("width=..640.5", (None, 640.5)),
        ("width=-1..1e3", (-1, 1000.0)),
        ("width=true", True),
        ("width=True", "True"),
        ("width=utf-8", "utf-8"),
        ('width="640"', "640"),
        ('width="1..2"', "1..2"),
        ("width=a..b", ("a", "b")),
        ("width=2024-01-01..2024-02-01", ("2024-01-01", "2024-02-01")),
        ('width="2024".."2024-05"', ("2024", "2024-05")),
        ("width=..b", (None, "b")),
        ("width=a..b..c", "a..b..c"),
        ("width=a=b", "a=b"),
        ("width=null", "null"),
        ("width=[[1]]", "[[1]]"),
        pytest.param("width=" + "[" * 100_000, "[" * 100_000, id="nested"),
    ],
)
def test_a_written_attribute_is_what_it_reads_as(text, meant):
    found = written_filter(where=[text]).attributes
    assert found == {"width": meant}
    assert type(found["width"]) is type(meant)


def test_a_written_time_without_a_zone_is_in_utc():
    written = written_filter(after="2026-05-31T18:00", before="2026-06-01")
    assert written == Filter(embedded_after=MAY, embedded_before=datetime(2026, 6, 1, tzinfo=UTC))
    assert written_filter(after="2026-05-31T20:00+02:00") == Filter(embedded_after=MAY)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"after": "yesterday"}, "'yesterday' is no time; write 2026-05-31"),
        ({"before": "2026-02-30"}, "'2026-02-30' is no time"),
        ({"where": ["width"]}, "write NAME=VALUE"),
        ({"where": ["=1"]}, "write NAME=VALUE"),
        ({"where": ["width="]}, "write NAME=VALUE"),
        ({"where": ["width=.."]}, "None for an open end"),
        ({"where": ["width=1...3"]}, "give two numbers or two texts"),
        ({"where": ["day=2024..2024-05"]}, "in double quotes"),
        ({"where": ["sound=false..true"]}, "give two numbers or two texts"),
        ({"where": ["width=100..", "width=..200"]}, r"width has two conditions; write them as one.*width=LEAST"),
        ({"where": ["width=NaN"]}, "no value that Milvus compares with"),
        ({"where": ["a b=1"]}, "is the name of no attribute"),
        ({"roles": ["picture"]}, "no role 'picture'; choose from audio, image, text, video"),
    ],
)
def test_what_cannot_be_read_is_refused(written, reason):
    with pytest.raises(PlatformError, match=reason):
        written_filter(**written)
