"""The examples in deploy/, as far as they can be checked without a Docker daemon and without systemd at work."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from embedding_platform_tests.ports import free_port
from embedding_platform_tests.postgres_server import PASSWORD, PostgresServer

DEPLOY = Path(__file__).parents[1] / "deploy"
BIN = Path(sys.executable).parent

PATIENCE_SECONDS = 600.0


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(compose["services"])


def variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{([A-Z_]+)", text))


def test_every_service_has_a_version_a_health_check_and_a_restart_policy(services) -> None:
    assert set(services) == {"code", "webserver", "daemon", "search", "postgres", "milvus", "etcd", "minio"}
    for name, service in services.items():
        _, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d+\.\d+|\d{4}-\d\d-\d\d", tag), f"{name}: {service['image']} names no version"
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name


def test_services_start_after_healthy_ones_that_are_there(services) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            assert how == {"condition": "service_healthy"}, name


def test_each_volume_is_declared_and_used(compose, services) -> None:
    mounts = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", [])]
    named = {mount for mount in mounts if re.fullmatch(r"[a-z]+", mount)}
    assert named == set(compose["volumes"])
    assert {"../embedding_platform.yaml"} == {mount for mount in mounts if mount.startswith(".")}
    assert (DEPLOY / "../embedding_platform.yaml").exists()


def test_only_the_web_ui_and_the_search_page_can_be_reached_and_from_this_machine_alone(services) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "webserver": ["127.0.0.1:${WEB_PORT:-3000}:3000"],
        "search": ["127.0.0.1:${SEARCH_PORT:-8000}:8000"],
    }


def test_no_secret_stands_in_the_files_and_none_may_be_left_out() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert set(example) == variables(text)
    for name in ("POSTGRES_PASSWORD", "MILVUS_PASSWORD", "MINIO_PASSWORD", "SEARCH_TOKEN"):
        assert example[name] == ""
        places = re.findall(rf"\$\{{{name}([^}}]*)}}", text)
        assert places
        assert all(place.startswith(":?") for place in places), f"{name} may be empty"
    for line in text.splitlines():
        if re.search(r"PASSWORD|SECRET|TOKEN", line) and "AUTHORIZATION" not in line:
            assert "${" in line, line


def test_the_settings_in_the_containers_are_settings(services, monkeypatch) -> None:
    from embedding_platform.settings import load_settings

    for name, value in services["code"]["environment"].items():
        if name.startswith("EMBEDDING_PLATFORM_"):
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
    settings = load_settings(DEPLOY / "../embedding_platform.yaml")
    assert settings.milvus_uri == "http://milvus:19530"
    assert settings.model_set == "hub"
    assert (settings.media_url, settings.store_url) == ("/media", "/var/lib/embedding_platform/store")


def test_the_search_page_has_the_settings_of_the_runs_and_a_token_of_its_own(services) -> None:
    runs, search = services["code"]["environment"], services["search"]["environment"]
    own = {name for name in search if name.startswith("EMBEDDING_PLATFORM_SERVING__")}
    assert own == {"EMBEDDING_PLATFORM_SERVING__TOKEN", "EMBEDDING_PLATFORM_SERVING__DAGSTER_URL"}
    assert {name: search[name] for name in search.keys() - own} == {
        name: value for name, value in runs.items() if not name.startswith("DAGSTER_")
    }
    command = services["search"]["command"]
    assert command[0] == "embedding-platform"
    from embedding_platform.cli import main

    main.commands["serve"].make_context("serve", command[2:])


@pytest.mark.parametrize("command", [("docker", "compose"), ("docker-compose",)], ids=" ".join)
def test_compose_itself_takes_the_file(command, tmp_path) -> None:
    if not shutil.which(command[0]) or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip(f"no {' '.join(command)} here")
    for name in ("compose.yaml", "Dockerfile"):
        shutil.copy(DEPLOY / name, tmp_path)
    values = {"MEDIA_ROOT": "/media", "POSTGRES_PASSWORD": "a", "MILVUS_PASSWORD": "b", "MINIO_PASSWORD": "c"}
    values["SEARCH_TOKEN"] = "d"
    config = [*command, "-f", "compose.yaml", "config"]
    told = subprocess.run(config, cwd=tmp_path, env={**os.environ, **values}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "root:b" in told.stdout
    refused = subprocess.run(config, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "write it into .env" in refused.stderr


def test_the_image_copies_what_the_context_lets_through_and_runs_without_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    let_through = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if word[0] != "-"]
    assert set(copied) == let_through
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert re.fullmatch(r"FROM python:3\.1[1-9]\.\d+-slim-\w+", next(line for line in lines if line.startswith("FROM")))
    assert [line for line in lines if line.startswith("USER")] == ["USER platform"]
    torch = next(line for line in lines if line.endswith(" torch"))
    assert "--constraint constraints.txt" in torch
    assert re.search(r"^torch==\d", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)


def test_systemd_outlasts_a_database_that_comes_later_and_gives_up_at_last() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "embedding-platform.service")
    assert "postgresql.service" in unit["Unit"]["After"].split()
    assert unit["Service"]["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in unit["Service"], "a database that is not there yet is status 2 too"
    starts, seconds = int(unit["Unit"]["StartLimitBurst"]), int(unit["Service"]["RestartSec"])
    assert 60 <= starts * seconds < int(unit["Unit"]["StartLimitIntervalSec"]) / 2


def test_systemd_takes_the_unit(tmp_path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    unit = (DEPLOY / "embedding-platform.service").read_text()
    command = re.search(r"^ExecStart=(\S+) up$", unit, re.MULTILINE)
    assert command is not None
    assert command[1].startswith(re.search(r"^WorkingDirectory=(\S+)$", unit, re.MULTILINE)[1])
    # What it runs is installed where the unit says, on another machine than this.
    (tmp_path / "embedding-platform.service").write_text(unit.replace(command[1], sys.executable))
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "embedding-platform.service")]
    told = subprocess.run(verify, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    (tmp_path / "embedding-platform.service").write_text(unit.replace("KillMode=mixed", "KillMode=gently"))
    assert "gently" in subprocess.run(verify, capture_output=True, text=True).stderr, "and would notice a mistake"


@pytest.fixture(scope="module")
def code_server(services, tmp_path_factory) -> Iterator[int]:
    """The port of the code location's server, started by the command that compose gives it."""
    folder = tmp_path_factory.mktemp("container")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_PLATFORM_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "DAGSTER_CODE_SERVER_PORT": str(port)}
    (folder / "embedding_platform.yaml").write_text("spaces: [text/minilm]\n")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            services["code"]["command"], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    health = [part.replace("4000", str(port)) for part in services["code"]["healthcheck"]["test"][1:]]
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run(health, env=environment, capture_output=True).returncode:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.long
def test_web_server_and_daemon_find_the_code_location_with_postgresql(
    code_server: int, postgres: PostgresServer, services, tmp_path, monkeypatch
) -> None:
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    assert services["code"]["environment"]["DAGSTER_CODE_SERVER_PORT"] == "4000"
    workspace = (DEPLOY / "workspace.yaml").read_text()
    assert "host: code\n      port: 4000\n" in workspace
    there = workspace.replace("host: code", "host: 127.0.0.1").replace("port: 4000", f"port: {code_server}")
    (tmp_path / "workspace.yaml").write_text(there)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.new_database())
    with (
        dg.DagsterInstance.from_config(str(DEPLOY)) as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget(["workspace.yaml"])) as context,
    ):
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        assert PASSWORD not in instance.info_str()
        location = context.create_request_context().get_code_location("embedding_platform")
        (repository,) = location.get_repositories().values()
        assert {job.name for job in repository.get_all_jobs()} >= {"text_sync"}


def test_the_containers_instance_is_the_projects_but_for_its_storage() -> None:
    project = yaml.safe_load((DEPLOY / "../dagster.yaml").read_text())
    containers = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    assert containers.pop("storage") == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}
    project.pop("storage")
    assert containers["concurrency"]["runs"].pop("max_concurrent_runs") >= 4
    project["concurrency"]["runs"].pop("max_concurrent_runs")
    assert containers == project
