"""Files that cannot be used: the others are indexed, each bad one has its reason, too many block."""

import dataclasses
import re
import struct
import zlib
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from embedding_platform.defs.assets import modality_assets
from embedding_platform.defs.partitions import set_name
from embedding_platform.media.items import verdict_code
from embedding_platform.media.listing import list_entries
from embedding_platform.media.suspects import Decode
from embedding_platform.platform import Platform
from embedding_platform.reconcile.embeddings import rejected_contents
from embedding_platform.reconcile.files import classify_source, stored_items, stored_rejects
from embedding_platform.reconcile.rejects import CUTTING_CHANGES, FILE_CHANGES, MODEL_CHANGES
from embedding_platform.reconcile.segments import rejected_items
from embedding_platform.runs import run_sources
from embedding_platform.settings import DecodingSettings, load_settings
from embedding_platform.spaces import MODALITIES
from embedding_platform_tests.conftest import open_platform
from embedding_platform_tests.convergence.small_platform import SmallPlatform
from embedding_platform_tests.media.bad_kinds import INDEXED, KINDS
from embedding_platform_tests.media.made import picture
from embedding_platform_tests.media.test_suspects import leave_behind
from embedding_platform_tests.reconcile.crashing_jobs import crash_in
from embedding_platform_tests.reconcile.test_suspects import write_marked


def huge_png() -> bytes:
    """A PNG of a few bytes whose header claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def images(platform: Platform) -> Path:
    """A source of ten good images and five that are not."""
    source = Path(platform.settings.media_url) / "mixed"
    source.mkdir()
    for number in range(10):
        Image.new("RGB", (64, 64), (25 * number, 90, 200 - 15 * number)).save(source / f"good-{number}.png")
    whole = (source / "good-0.png").read_bytes()
    Image.effect_noise((256, 256), 80).save(source / "whole.jpg")
    (source / "truncated.jpg").write_bytes((source / "whole.jpg").read_bytes()[:4000])
    (source / "empty.png").write_bytes(b"")
    (source / "prose.jpg").write_text("This is prose, not a picture.")
    (source / "corrupt.png").write_bytes(whole[:40] + b"\xff" * 30 + whole[70:])
    (source / "huge.png").write_bytes(huge_png())
    return source


def reasons(platform: Platform, modality: str, source: str) -> dict[str, str]:
    rows = stored_rejects(platform.store, modality, source)
    rows += rejected_items(platform.store, modality, source, platform.cutting)
    return {path: reason for path, _, _, reason in rows}


def test_bad_images_have_a_reason_and_stop_nobody(
    platform: Platform, images: Path, instance: dg.DagsterInstance
) -> None:
    (run,) = run_sources(platform, instance, ["image"])
    assert run.succeeded, run.failures
    found = reasons(platform, "image", "mixed")
    assert set(found) == {"truncated.jpg", "empty.png", "prose.jpg", "corrupt.png", "huge.png"}
    assert all(len(reason) > 10 and "\n" not in reason for reason in found.values()), found
    assert run.metadata["image/clip/collection"]["dagster/partition_row_count"] == 11
    listed = [row.data for stage in ("files", "segments") for row in run.metadata[f"image/{stage}"]["rejects"].records]
    assert {row["path"]: row["reason"] for row in listed} == found


def test_rejects_show_as_a_failed_check_with_the_worst_examples(
    platform: Platform, images: Path, instance: dg.DagsterInstance
) -> None:
    (run,) = run_sources(platform, instance, ["image"])
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    checks = {}
    for record in records:
        evaluation = record.event_log_entry.dagster_event.asset_check_evaluation_data
        checks[evaluation.asset_key.to_user_string(), evaluation.check_name] = evaluation
    files, segments = checks["image/files", "rejects"], checks["image/segments", "rejects"]
    assert not files.passed or not segments.passed
    for check in (files, segments):
        assert check.severity == dg.AssetCheckSeverity.WARN
        assert check.partition == "mixed"
    shown = {row.data["path"] for check in (files, segments) for row in check.metadata["worst"].records}
    assert shown == set(reasons(platform, "image", "mixed"))


def test_too_large_a_share_of_rejects_blocks(tmp_path: Path, images: Path, instance: dg.DagsterInstance) -> None:
    platform = open_platform(tmp_path, quality={"max_rejected_share": 0.01})
    (run,) = run_sources(platform, instance, ["image"])
    assert not run.succeeded
    assert "image/clip/collection" not in run.metadata


def test_a_mended_file_is_taken_up(platform: Platform, images: Path, instance: dg.DagsterInstance) -> None:
    list(run_sources(platform, instance, ["image"]))
    Image.new("RGB", (64, 64), "white").save(images / "empty.png")
    (run,) = run_sources(platform, instance, ["image"])
    assert "empty.png" not in reasons(platform, "image", "mixed")
    assert run.of("collection", "upserted") == 2, "one row in each of the two image spaces"


def test_every_stage_decodes_apart_what_was_decoded_when_a_process_died(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SmallPlatform(load_settings(base=tmp_path), kept=("image",))
    source = tmp_path / "media" / "mixed"
    for name in ("listed.png", "cut.png", "read.png", "good.png", "good.m4a"):
        write_marked(source / name)
    entries = {entry.path: entry for entry in list_entries(str(source.parent), source.name)}
    steps = {"good.m4a": ("recognise", ""), **{f"{step}.png": (step, "image") for step in ("cut", "read")}}
    steps["listed.png"] = ("probe", "image")
    decodes = [
        Decode(*step, entries[name].uri, entries[name].size, entries[name].modified) for name, step in steps.items()
    ]
    leave_behind(platform.settings.decoding_notes, *decodes)
    crash_in("serve", tmp_path, monkeypatch)
    monkeypatch.setattr("embedding_platform.defs.assets.is_remote", lambda model: False)

    settings = platform.settings
    looked_at = (platform.store, settings.media_url, "mixed", settings.decoding, settings.decoding_notes)
    assert classify_source(*looked_at)["audio"]["good.m4a"].endswith(f"-{verdict_code('audio')}-")
    (space,) = platform.spaces
    fingerprint = platform.fingerprint(space)
    stages = modality_assets(MODALITIES["image"], [(space, fingerprint)], platform.cutting, platform.settings)[:3]
    instance.add_dynamic_partitions(set_name("image"), ["mixed"])
    run = dg.materialize(stages, instance=instance, partition_key="mixed", resources={"platform": platform})
    assert run.success
    found = reasons(platform, "image", "mixed")
    found |= {row[0]: row[3] for row in rejected_contents(platform.store, space, "mixed", fingerprint)}
    assert set(found) == {"listed.png", "cut.png", "read.png"}
    assert all("by SIGSEGV" in reason for reason in found.values()), found
    assert sum(platform.embedded.values()) == 1
    retried = {rejected.path: rejected.retried for rejected in platform.rejects(["image"])}
    assert retried == {"listed.png": FILE_CHANGES, "cut.png": CUTTING_CHANGES, "read.png": MODEL_CHANGES}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_bad_kinds_at_once_have_their_reasons_and_the_good_files_their_rows(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    (tmp_path / "media").mkdir()
    platform = open_platform(
        tmp_path, quality={"max_rejected_share": 1.0}, spaces=["image/clip"], decoding={"max_seconds": 10}
    )
    source = tmp_path / "media" / "zoo"
    expected: dict[str, str] = {}
    for name, kind in KINDS.items():
        if kind.limits != DecodingSettings():
            continue  # These need limits of their own.
        folder = source / name.replace("\n", " ").replace("/", " ").replace(".", " ")
        folder.mkdir(parents=True)
        if kind.name == "captions.jsonl":
            kind = dataclasses.replace(kind, others={"good.png": INDEXED, **kind.others})
            (folder / "good.png").write_bytes(picture())
        kind.make(folder / kind.name)
        shown = kind.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        verdicts = {**kind.others} | ({shown: kind.verdict} if kind.verdict else {})
        expected |= {f"{folder.name}/{path}": verdict for path, verdict in verdicts.items()}
    Image.new("RGB", (64, 64), "red").save(source / "good.png")
    runs = list(run_sources(platform, instance))
    assert [run.modality for run in runs] == ["image"]
    assert all(run.succeeded for run in runs), [run.failures for run in runs]
    found = reasons(platform, "image", "zoo")
    listed = {item.path for item in stored_items(platform.store, "image", "zoo")}
    assert found.keys() <= expected.keys()
    assert {path for path in listed if path not in found} - {"good.png"} <= {
        path for path, verdict in expected.items() if verdict == INDEXED
    }
    for path, reason in found.items():
        assert re.search(expected[path], reason), (path, reason)
    images = [path for path in expected if path.startswith("image-")]
    assert len([path for path in images if path in found]) + len([path for path in images if path in listed]) >= 25
    assert runs[0].metadata["image/clip/collection"]["dagster/partition_row_count"] == len(listed - found.keys())


def test_sound_named_as_a_picture_is_known_by_its_content(platform: Platform, instance: dg.DagsterInstance) -> None:
    import wave

    source = Path(platform.settings.media_url) / "misnamed"
    source.mkdir()
    with wave.open(str(source / "song.jpg"), "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(b"".join(struct.pack("<h", (number * 97) % 9000) for number in range(16_000)))
    (run,) = run_sources(platform, instance)
    assert (run.modality, run.succeeded) == ("audio", True)
    (item,) = stored_items(platform.store, "audio", "misnamed")
    assert item.attributes["named_as"] == "image/jpeg"
