"""Files that end the process which decodes them: the next run rejects them, and goes on with all others."""

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_platform_tests.reconcile.crashing_jobs import DECODED, NOTES, Job, Jobs, write_marked
from embedding_platform_tests.reconcile.small_lake import Lake

OTHERS = 3

STAGE_OF = {"_container_kind": "files", "probe": "files", "cut": "segments", "read": "embeddings"}
"""Functions that decode, and the stages that call them."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    started = Jobs(tmp_path_factory.mktemp("ends"))
    yield started
    started.close()


def job(root: Path, step: str, end: str) -> Job:
    """A lake of some files, and one that is marked."""
    lake = Lake(root, "audio" if step == "_container_kind" else "image")
    for number in range(OTHERS):
        lake.write(f"n{number}", number)
    write_marked(lake.media / "one" / ("marked.m4a" if lake.modality == "audio" else "marked.png"))
    return Job(str(root), lake.modality, step, end)


def decoders(root: Path) -> list[int]:
    """The processes that have decoded the marked file in the job's step, each once."""
    return [*dict.fromkeys(int(line) for line in (root / DECODED).read_text().split())]


@pytest.mark.parametrize("step", STAGE_OF)
def test_a_file_that_crashes_its_decoder_is_rejected_by_the_next_run(tmp_path: Path, jobs: Jobs, step: str) -> None:
    crashing = job(tmp_path, step, "SIGSEGV")
    first, second, third = (jobs.run(crashing) for _ in range(3))
    assert first["code"] == -signal.SIGSEGV
    assert second["code"] == third["code"] == 0
    ((stage, path, reason),) = second["rejected"]
    assert (stage, Path(path).stem) == (STAGE_OF[step], "marked")
    assert "ends the process that decodes it, by SIGSEGV: it is damaged or hostile; remove it" in reason
    assert second["embedded"] == OTHERS
    assert third["rejected"] == second["rejected"]
    assert third["done"] == [0, 0, 0, 0]
    assert len(decoders(tmp_path)) == 2


@pytest.mark.parametrize("step", ["cut", "read"])
def test_a_file_that_was_decoded_when_its_process_was_killed_is_indexed_by_the_next_run(
    tmp_path: Path, jobs: Jobs, step: str
) -> None:
    killing = job(tmp_path, step, "SIGKILL")
    harmless = dataclasses.replace(killing, end="")
    killed, whole = jobs.run(killing), jobs.run(harmless)
    assert killed["code"] == -signal.SIGKILL
    assert (whole["code"], whole["rejected"], whole["embedded"]) == (0, [], OTHERS + 1)
    died, apart = decoders(tmp_path)
    assert died == killed["process"]
    assert apart not in (killed["process"], whole["process"])
    assert jobs.run(harmless)["done"] == [0, 0, 0, 0]
    assert [path.name for path in (tmp_path / NOTES).iterdir()] == ["lock"]
