"""A run whose process died holds nothing that the next one waits for."""

import socket
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from embedding_platform.launcher import PROCESS_TAG, process_tags
from embedding_platform.runs import fail_dead_runs
from embedding_platform_tests.convergence.zygote import DAGSTER_SETTINGS

NO_PROCESS = 2**22 + 1


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The instance of the project's dagster.yaml, whose pools have one place each."""
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(DAGSTER_SETTINGS.parent)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("tags", "freed"),
    [
        ({PROCESS_TAG: f"{socket.gethostname()}:{NO_PROCESS}:0.0"}, True),
        (process_tags(), False),
        ({PROCESS_TAG: f"elsewhere:{NO_PROCESS}:0.0"}, False),
        ({}, False),
    ],
    ids=["died here", "lives", "on another machine", "of a daemon"],
)
def test_only_a_dead_run_of_this_machine_lets_go_of_its_pool(
    instance: dg.DagsterInstance, tags: dict[str, str], freed: bool
) -> None:
    run = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTED)
    pools = instance.event_log_storage
    pools.initialize_concurrency_limit_to_default("gpu")
    assert pools.claim_concurrency_slot("gpu", run.run_id, "image__clip__embeddings").is_claimed
    fail_dead_runs(instance)
    after = instance.get_run_by_id(run.run_id)
    assert after is not None
    assert (after.status == dg.DagsterRunStatus.FAILURE) == freed
    assert pools.claim_concurrency_slot("gpu", "next", "image__clip__embeddings").is_claimed == freed


def test_a_run_that_was_marked_failed_before_its_pool_was_freed_lets_go_of_it(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.FAILURE)
    pools = instance.event_log_storage
    pools.initialize_concurrency_limit_to_default("milvus")
    assert pools.claim_concurrency_slot("milvus", run.run_id, "image__clip__collection").is_claimed
    fail_dead_runs(instance)
    assert pools.claim_concurrency_slot("milvus", "next", "image__clip__collection").is_claimed
