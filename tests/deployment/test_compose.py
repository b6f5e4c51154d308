"""The compose file and the image agree with the code; no container engine is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import AliasChoices

from owl_celery import __version__
from owl_celery.cli import owl
from owl_celery.installation import namespace_of
from owl_celery.settings import Settings
from workers.app import app
from workers.entrypoint import fill

ROOT = Path(__file__).parents[2]


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


COMPOSE: dict[str, Any] = load_yaml(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
OTHERS_READ = ("FLOWER_", "NVIDIA_")

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
each_of_ours = pytest.mark.parametrize("service", OURS.values(), ids=list(OURS))


def environment_names() -> set[str]:
    """Every name of an environment variable that Settings reads."""
    names = set()
    for field, info in Settings.model_fields.items():
        names.add(f"OWL_{field.upper()}")
        if isinstance(info.validation_alias, AliasChoices):
            names.update(str(choice) for choice in info.validation_alias.choices)
    return names


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make secrets`` makes."""
    folder = tmp_path_factory.mktemp("compose")
    subprocess.run(
        ["make", "--silent", "-f", ROOT / "Makefile", "secrets", f"PYTHON={sys.executable}"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / "secrets"


def run_tool(*command: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command] if command[0] == "check_jsonschema" else command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_is_valid() -> None:
    run_tool("check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]], ids=["virtual", "gpu"])
def test_podman_compose_reads_it_as_we_do(profile: list[str], tmp_path: Path) -> None:
    # It reads the file itself, and asks podman for nothing but the version.
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o700)
    command = Path(sys.executable).with_name("podman-compose")
    done = subprocess.run(
        [command, "--podman-path", podman, *profile, "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    read = yaml.safe_load(done.stdout)["services"]
    expected = {
        name for name, service in SERVICES.items() if profile or not service.get("profiles")
    }

    assert set(read) == expected
    for service in read.values():
        assert "${" not in str(service)


def test_everything_that_users_look_at_has_its_port() -> None:
    published = {
        name: [port.replace("}", "").partition(":-")[2] for port in service.get("ports", [])]
        for name, service in SERVICES.items()
    }

    assert published == {
        "redis": ["6379:6379"],
        "postgres": ["5432:5432"],
        "owl": ["8080:8080", "9090:9090"],
        "worker": [],
        "worker-gpu": [],
        "flower": ["5555:5555"],
        "prometheus": ["9091:9090"],
        "grafana": ["3002:3000"],
    }


@each_service
def test_what_is_mounted_is_there_and_cannot_be_written(service: dict[str, Any]) -> None:
    for volume in service.get("volumes", []):
        source, _, options = volume.partition(":")
        if source.startswith("./"):
            assert (ROOT / source).is_dir()
            assert options.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]
    assert service["read_only"] is True


@each_service
def test_a_service_waits_for_what_it_needs(service: dict[str, Any]) -> None:
    for name, dependency in service.get("depends_on", {}).items():
        assert dependency == {"condition": "service_healthy"}
        assert name in SERVICES


def test_the_dockerfile_has_no_complaints() -> None:
    run_tool(Path(sys.executable).with_name("hadolint"), "workers/Dockerfile")


@each_service
def test_ports_are_on_loopback_only(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@each_service
def test_no_service_runs_as_root(service: dict[str, Any]) -> None:
    user = str(service.get("user"))
    if "build" in service:
        (user,) = re.findall(r"^USER (\S+)$", (ROOT / "workers/Dockerfile").read_text(), re.M)

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert service["cap_drop"] == ["ALL"]


@each_service
def test_images_have_an_exact_version(service: dict[str, Any]) -> None:
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)?$", service["image"])


def test_images_that_ours_is_built_from_have_an_exact_version() -> None:
    images = re.findall(r"^FROM (\S+)", (ROOT / "workers/Dockerfile").read_text(), re.M)

    assert images
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in images)


@each_of_ours
def test_our_image_has_the_version_of_the_package(service: dict[str, Any]) -> None:
    assert service["image"].removesuffix("-torch") == f"owl-celery:{__version__}"


@each_service
def test_every_service_says_whether_it_is_well_and_how_it_stops(service: dict[str, Any]) -> None:
    assert service["healthcheck"]["test"]
    assert re.fullmatch(r"\d+s", service["stop_grace_period"])
    assert service["restart"] == "unless-stopped"


@each_of_ours
def test_every_variable_is_read_by_somebody(service: dict[str, Any]) -> None:
    names = {name for name in service["environment"] if not name.startswith(OTHERS_READ)}

    assert names <= environment_names()


@each_of_ours
def test_the_settings_of_a_service_can_be_used(
    service: dict[str, Any], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fill(service["environment"], secrets).items():
        monkeypatch.setenv(name, value)

    settings = Settings.load()

    for url in (settings.redis_url, settings.database_url):
        assert url is not None
        parts = urlsplit(url.get_secret_value())
        assert parts.hostname in service["depends_on"]
        (published,) = SERVICES[str(parts.hostname)]["ports"]
        assert published.endswith(f":{parts.port}")
        assert parts.password == (secrets / f"{parts.hostname}_password").read_text().strip()


def settings_of(name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings with which a service of ours starts."""
    for variable, value in fill(OURS[name]["environment"], secrets).items():
        monkeypatch.setenv(variable, value)
    return Settings.load()


def test_api_and_exporter_can_be_reached_from_outside_their_container(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("owl", secrets, monkeypatch)

    assert (settings.api_host, settings.metrics_host) == ("0.0.0.0", "0.0.0.0")
    inside = [port.rpartition(":")[2] for port in SERVICES["owl"]["ports"]]
    assert inside == [str(settings.api_port), str(settings.metrics_port)]
    assert settings.enable_metrics
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == (secrets / "api_token").read_text().strip()
    (check,) = re.findall(r"http://127\.0\.0\.1:(\d+)/readyz", str(SERVICES["owl"]["healthcheck"]))
    assert check == str(settings.api_port)


def test_one_process_learns_and_it_is_not_a_worker(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS:
        assert settings_of(name, secrets, monkeypatch).embed_controller is False


def test_prometheus_scrapes_the_exporter_of_our_application() -> None:
    volume = SERVICES["prometheus"]["volumes"][0].split(":")[0]
    config = load_yaml(ROOT / volume / "prometheus.yml")
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "owl"]
    (scraped,) = job["static_configs"]
    (target,) = scraped["targets"]

    host, _, port = target.partition(":")
    assert host in SERVICES
    assert port == SERVICES[host]["environment"]["METRICS_PORT"]
    assert scraped["labels"]["app"] == namespace_of(app)
    for pattern in config["rule_files"]:
        assert list((ROOT / volume).glob(pattern))


def test_grafana_finds_its_datasource_and_its_dashboards() -> None:
    grafana = SERVICES["grafana"]
    mounted = dict(reversed(volume.split(":")[:2]) for volume in grafana["volumes"])
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]
    (provider,) = load_yaml(provisioning / "dashboards/dashboards.yml")["providers"]
    (source,) = load_yaml(provisioning / "datasources/prometheus.yml")["datasources"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    dashboards = ROOT / mounted[provider["options"]["path"]]
    assert str(home.parent) == provider["options"]["path"]
    dashboard = json.loads((dashboards / home.name).read_text())
    assert dashboard["uid"] == "continuous-learning-dashboard"
    url = urlsplit(source["url"])
    assert url.hostname in grafana["depends_on"]
    assert SERVICES[str(url.hostname)]["ports"][0].endswith(f":{url.port}")
    assert grafana["ports"][0].endswith(f":{grafana['environment']['GF_SERVER_HTTP_PORT']}")


@each_service
def test_secrets_are_files_that_make_secrets_makes(service: dict[str, Any], secrets: Path) -> None:
    for name in service.get("secrets", []):
        assert COMPOSE["secrets"][name] == {"file": f"./secrets/{name}"}
        assert len((secrets / name).read_text().strip()) >= 32


@each_service
def test_every_secret_that_a_service_uses_is_given_to_it(service: dict[str, Any]) -> None:
    used = set(re.findall(r"\{(\w+_(?:password|token))\}|/run/secrets/(\w+)", str(service)))

    assert {first or second for first, second in used} == set(service.get("secrets", []))


def test_secrets_are_never_committed() -> None:
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")


def test_make_secrets_keeps_those_there_are(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}

    subprocess.run(
        ["make", "--silent", "-f", ROOT / "Makefile", "secrets", f"PYTHON={sys.executable}"],
        cwd=secrets.parent,
        check=True,
        stdout=subprocess.DEVNULL,
    )

    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700


@each_of_ours
@pytest.mark.parametrize("of", ["command", "healthcheck"])
def test_commands_of_ours_exist_and_take_these_options(service: dict[str, Any], of: str) -> None:
    words = service["command"] if of == "command" else service["healthcheck"]["test"]
    if "owl" not in words:
        return  # Flower's.
    name, *arguments = words[words.index("owl") + 1 :]
    command = owl.get_command(owl.make_context("owl", [], resilient_parsing=True), name)

    assert command is not None
    command.make_context(name, list(arguments))


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_a_worker_has_time_to_drain(name: str) -> None:
    seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert seconds >= Settings.model_fields["drain_timeout_seconds"].default + 30


def test_flower_asks_for_a_password() -> None:
    assert SERVICES["flower"]["environment"]["FLOWER_BASIC_AUTH"] == "owl:{flower_password}"


def test_grafana_is_the_one_in_whose_schema_the_dashboard_is_checked() -> None:
    packages = json.loads((ROOT / "tests/observability/schema/package.json").read_text("utf-8"))
    version = packages["dependencies"]["@grafana/schema"]

    assert SERVICES["grafana"]["image"] == f"grafana/grafana:{version}"


def test_grafana_has_a_password_of_its_own_and_asks_nobody_outside() -> None:
    environment = SERVICES["grafana"]["environment"]

    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_password"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_ANALYTICS_REPORTING_ENABLED"] == "false"
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_real_gpus_are_reserved_only_in_their_profile() -> None:
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in SERVICES["worker"]
