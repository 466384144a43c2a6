"""What people click in the web UI, by its GraphQL, against a real web server, daemon and local Milvus."""

from collections.abc import Iterable, Iterator

import pytest

from embedding_platform.defs.jobs import FRESH
from embedding_platform.platform import Platform
from embedding_platform.reconcile.files import reconcile_files
from embedding_platform.reconcile.segments import reconcile_segments
from embedding_platform.settings import load_settings
from embedding_platform_tests.running_platform import (
    LOCATION,
    RunningPlatform,
    running_project,
    specified_assets,
    wait_until,
)

pytestmark = pytest.mark.long

SENSOR = {**LOCATION, "sensorName": "text_media"}
SPACE = [["text", "minilm", stage] for stage in ("embeddings", "collection", "published")]
SOURCES = [f"archive{number}" for number in range(5)]
TEXTS = 3
LETTERS = {
    "storm.txt": "A storm tore the roof from the lighthouse.",
    "lamp.txt": "The lamp of the lighthouse has a new lens.",
    "soup.txt": "Simmer the lentils for half an hour.",
}
"""As many as a map and neighbours want."""


@pytest.fixture(scope="module")
def web_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A running web UI without media, whose sensor was stopped by hand."""
    with running_project(tmp_path_factory.mktemp("project"), batch="{chunk: 64}") as running:
        set_sensor(running, running=False)
        yield running


def sensor_state(web_ui: RunningPlatform) -> dict[str, str]:
    answer = web_ui.ask(
        """query ($one: SensorSelector!) { sensorOrError(sensorSelector: $one) {
            ... on Sensor { sensorState { id status } } } }""",
        one=SENSOR,
    )
    return dict(answer["sensorState"])


def set_sensor(web_ui: RunningPlatform, running: bool) -> None:
    if running:
        query = """mutation ($one: SensorSelector!) { startSensor(sensorSelector: $one) {
            ... on Sensor { sensorState { status } } } }"""
        answer = web_ui.ask(query, one=SENSOR)
        assert answer["sensorState"]["status"] == "RUNNING"
        return
    query = """mutation ($id: String!) { stopSensor(id: $id) {
        ... on StopSensorMutationResult { instigationState { status } } } }"""
    answer = web_ui.ask(query, id=sensor_state(web_ui)["id"])
    assert answer["instigationState"]["status"] == "STOPPED"


def add_source(web_ui: RunningPlatform, source: str) -> None:
    answer = web_ui.ask(
        """mutation ($where: RepositorySelector!, $key: String!) { addDynamicPartition(
            repositorySelector: $where, partitionsDefName: "text_sources", partitionKey: $key) { __typename } }""",
        where=LOCATION,
        key=source,
    )
    assert answer["__typename"] == "AddDynamicPartitionSuccess"


def test_all_definitions_are_there_and_run_by_themselves(web_ui: RunningPlatform) -> None:
    (repository,) = web_ui.ask(
        """{ repositoriesOrError { ... on RepositoryConnection { nodes {
            name jobs { name } sensors { name sensorState { status } } schedules { name defaultStatus }
        } } } }"""
    )["nodes"]
    jobs = {job["name"] for job in repository["jobs"]}
    assert jobs >= {"text_sync", "probe", "maintenance"}
    sensors = {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]}
    assert sensors == {"text_media": "STOPPED", "run_failures": "RUNNING"}
    schedules = {schedule["name"]: schedule["defaultStatus"] for schedule in repository["schedules"]}
    assert schedules == dict.fromkeys(("text_nightly", "hourly_probe", "weekly_maintenance"), "RUNNING")


def test_the_assets_their_dependencies_and_checks_are_those_of_the_definitions(web_ui: RunningPlatform) -> None:
    nodes = web_ui.ask(
        """{ assetNodes { assetKey { path } groupName dependencyKeys { path } isPartitioned
            assetChecksOrError { ... on AssetChecks { checks { name } } } } }"""
    )
    shown = {
        "/".join(node["assetKey"]["path"]): (
            node["groupName"],
            {"/".join(key["path"]) for key in node["dependencyKeys"]},
            {check["name"] for check in node["assetChecksOrError"].get("checks", ())},
        )
        for node in nodes
    }
    specified = specified_assets(web_ui.folder)
    assert shown == {key: (asset.group, asset.depends_on, asset.checks) for key, asset in specified.items()}
    assert {"/".join(node["assetKey"]["path"]) for node in nodes if node["isPartitioned"]} == {
        key for key, asset in specified.items() if asset.group == "text" and not key.endswith("published")
    }


def test_a_run_of_one_source_finishes_with_numbers_pictures_and_checks_and_can_be_searched(
    web_ui: RunningPlatform,
) -> None:
    for name, text in LETTERS.items():
        web_ui.write("letters", name, text)
    add_source(web_ui, "letters")
    run = web_ui.await_run(web_ui.launch("text_sync", "letters"))
    assert run["status"] == "SUCCESS", web_ui.log()[-3000:]
    made = {"/".join(one["assetKey"]["path"]): one for one in run["assetMaterializations"]}
    assert set(made) == {"text/files", "text/segments", *("/".join(path) for path in SPACE)}
    assert {key: one["partition"] for key, one in made.items() if not key.endswith("published")} == dict.fromkeys(
        ("text/files", "text/segments", "text/minilm/embeddings", "text/minilm/collection"), "letters"
    )
    numbers = {entry["label"]: entry.get("intValue") for entry in made["text/minilm/embeddings"]["metadataEntries"]}
    assert (numbers["new"], numbers["embedded"], numbers["dimension"]) == (len(LETTERS), len(LETTERS), 384)
    pictures = {
        (key, entry["label"]): entry["mdStr"]
        for key, one in made.items()
        for entry in one["metadataEntries"]
        if "mdStr" in entry
    }
    assert set(pictures) == {
        ("text/segments", "excerpts"),
        ("text/minilm/embeddings", "norms"),
        ("text/minilm/collection", "map"),
        ("text/minilm/collection", "neighbours"),
    }
    for (_, name), picture in pictures.items():
        # A text is shown by its beginning, all else is drawn.
        is_words = name in ("excerpts", "neighbours")
        assert ("lighthouse" in picture) if is_words else ("](data:image/svg+xml;base64," in picture)
    for key, asset in specified_assets(web_ui.folder).items():
        of_runs = asset.checks - asset.probed
        assert verdicts(web_ui, key, of_runs) == dict.fromkeys(of_runs, ("SUCCEEDED", run["runId"])), key
    assert "letters/storm.txt" in web_ui.search("damage by wind")


def verdicts(web_ui: RunningPlatform, asset: str, checks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Status and run of the last execution of each check; one that was never executed has none."""
    found = {}
    for check in checks:
        executions = web_ui.ask(
            """query ($key: AssetKeyInput!, $check: String!) {
                assetCheckExecutions(assetKey: $key, checkName: $check, limit: 1) { status runId } }""",
            key={"path": asset.split("/")},
            check=check,
        )
        for execution in executions:
            found[check] = (execution["status"], execution["runId"])
    return found


def test_one_space_of_one_source_can_be_launched_alone(web_ui: RunningPlatform) -> None:
    web_ui.write("diaries", "may.txt", "It rained all of May, and the cellar stood under water.")
    list_and_cut(web_ui, "diaries")
    add_source(web_ui, "diaries")
    run = web_ui.await_run(web_ui.launch("__ASSET_JOB", "diaries", SPACE))
    assert run["status"] == "SUCCESS", web_ui.log()[-3000:]
    assert {"/".join(one["assetKey"]["path"]) for one in run["assetMaterializations"]} == {
        "/".join(path) for path in SPACE
    }


def test_a_probe_can_be_launched_and_leaves_its_verdicts_on_the_published_asset(web_ui: RunningPlatform) -> None:
    run_id = web_ui.ask(
        """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
            ... on LaunchRunSuccess { run { runId } } } }""",
        params={
            "selector": {
                "repositoryName": "__repository__",
                "repositoryLocationName": "embedding_platform",
                "pipelineName": "probe",
            },
            "mode": "default",
        },
    )["run"]["runId"]
    assert web_ui.await_run(run_id)["status"] == "SUCCESS", web_ui.log()[-3000:]
    published = "/".join(SPACE[2])
    probes = specified_assets(web_ui.folder)[published].probed
    assert probes
    assert verdicts(web_ui, published, probes) == dict.fromkeys(probes, ("SUCCEEDED", run_id))


def test_a_sensor_that_is_started_makes_a_new_file_searchable_with_no_click(web_ui: RunningPlatform) -> None:
    web_ui.write("hives", "bees.txt", "Bees dance to tell where the flowers are.")
    set_sensor(web_ui, running=True)
    by_sensor = {"key": "dagster/sensor_name", "value": "text_media"}
    wanted = {"tags": [by_sensor, {"key": "dagster/partition", "value": "hives"}]}
    wait_until(lambda: bool(web_ui.runs(**wanted)), "the sensor has requested a run")
    (run,) = web_ui.runs(**wanted)
    assert web_ui.await_run(run["runId"])["status"] == "SUCCESS"
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert (tags["dagster/priority"], tags["modality"]) == ("10", "text")
    assert "hives/bees.txt" in web_ui.search("insects")
    set_sensor(web_ui, running=False)
    assert len(web_ui.runs(**wanted)) == 1


def test_a_backfill_lets_fresh_files_pass_and_is_cancelled_at_once_and_taken_up_without_embedding_twice(
    web_ui: RunningPlatform,
) -> None:
    for source in SOURCES:
        for number in range(TEXTS):
            web_ui.write(source, f"{number}.txt", f"Shelf {number} of {source} holds the maps of that year.")
        list_and_cut(web_ui, source)
        add_source(web_ui, source)

    first = backfill(web_ui)
    of_first = {"tags": [{"key": "dagster/backfill", "value": first}]}
    wait_until(lambda: any(run["status"] == "STARTED" for run in web_ui.runs(**of_first)), "it has begun", every=0.5)
    web_ui.write("news", "today.txt", "The ferry runs again since this morning.")
    add_source(web_ui, "news")
    assert web_ui.await_run(web_ui.launch("text_sync", "news", priority=FRESH))["status"] == "SUCCESS"
    statuses = [run["status"] for run in web_ui.runs(**of_first)]
    assert statuses.count("SUCCESS") < len(SOURCES), "the backfill is not through"
    assert statuses.count("STARTED") <= 1, "one run of it at a time"
    wait_until(
        lambda: any(run["status"] == "SUCCESS" for run in web_ui.runs(**of_first)), "one source is through", every=0.5
    )
    with web_ui.pool_closed("gpu"):
        cancelled = web_ui.ask(
            "mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }", id=first
        )
        assert cancelled["__typename"] == "CancelBackfillSuccess"
        wait_until(lambda: backfill_status(web_ui, first) == "CANCELED", "the backfill is cancelled")
    statuses = [run["status"] for run in web_ui.runs(**of_first)]
    assert set(statuses) <= {"SUCCESS", "CANCELED"}, "nothing of it goes on"
    assert statuses.count("SUCCESS") < len(SOURCES)

    second = backfill(web_ui)
    wait_until(lambda: backfill_status(web_ui, second).startswith("COMPLETED"), "the backfill ends")
    assert backfill_status(web_ui, second) == "COMPLETED_SUCCESS"
    stored = {source: web_ui.stored("text/minilm", source) for source in (*SOURCES, "news")}
    assert stored == {**dict.fromkeys(SOURCES, TEXTS), "news": 1}, "each text once"
    assert SOURCES[-1] in web_ui.search(f"maps of {SOURCES[-1]}")


def test_a_run_is_cancelled_in_the_middle_of_embedding_and_keeps_what_it_has_embedded(
    web_ui: RunningPlatform,
) -> None:
    lines = (f"Ledger line {number}: {number * 7} sacks of flour went to the mill.\n" for number in range(10_000))
    web_ui.write("ledger", "flour.txt", "".join(lines))
    platform = list_and_cut(web_ui, "ledger")
    add_source(web_ui, "ledger")

    def missing() -> int:
        return platform.live(platform.space("text/minilm"), "ledger").missing

    segments, before = missing(), web_ui.count(SPACE[0], "embedded")
    run_id = web_ui.launch("__ASSET_JOB", "ledger", SPACE)
    wait_until(lambda: missing() < segments, "some of it is embedded", every=0.1)
    answer = web_ui.ask("mutation ($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
    assert answer["__typename"] == "TerminateRunSuccess"
    wait_until(lambda: web_ui.run(run_id)["status"] == "CANCELED", "the run has ended")
    left = missing()
    assert 0 < left < segments
    assert web_ui.count(SPACE[0], "embedded") == before

    again = web_ui.await_run(web_ui.launch("__ASSET_JOB", "ledger", SPACE))
    assert again["status"] == "SUCCESS", web_ui.log()[-3000:]
    assert missing() == 0
    assert web_ui.count(SPACE[0], "embedded") - before == left, "the rest alone"


def list_and_cut(web_ui: RunningPlatform, source: str) -> Platform:
    """Do what comes before the assets of a space; returns the platform that the web UI shows."""
    platform = Platform(load_settings(web_ui.folder / "embedding_platform.yaml"))
    reconcile_files(platform.store, platform.settings.media_url, "text", source)
    reconcile_segments(platform.store, "text", source, platform.cutting)
    return platform


def backfill(web_ui: RunningPlatform) -> str:
    """Launch a backfill of the space over all sources; its id."""
    answer = web_ui.ask(
        """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
        params={"assetSelection": [{"path": path} for path in SPACE], "partitionNames": SOURCES},
    )
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return str(answer["backfillId"])


def backfill_status(web_ui: RunningPlatform, backfill_id: str) -> str:
    answer = web_ui.ask(
        "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }",
        id=backfill_id,
    )
    return str(answer["status"])
