"""docker-compose.yml against the Compose schema and, word by word, against the code."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from jobs.settings import Settings
from local.processes import redis_command, worker_command

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES = COMPOSE["services"]
DOCKERFILES = ["service/Dockerfile", "worker/Dockerfile"]


def instructions(dockerfile: str, word: str) -> list[str]:
    text = (ROOT / dockerfile).read_text().replace("\\\n", " ")
    return [line.removeprefix(word).strip() for line in text.splitlines() if line.startswith(word)]


def command_of(dockerfile: str) -> list[str]:
    [command] = instructions(dockerfile, "CMD ")
    return yaml.safe_load(command)


def test_the_file_follows_the_compose_schema():
    check = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(ROOT / "docker-compose.yml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert check.returncode == 0, check.stdout


def test_every_part_is_there_and_only_the_gpu_worker_waits_for_its_profile():
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "redis": None,
        "service": None,
        "front": None,
        "worker": None,
        "worker-gpu": ["gpu"],
    }


def test_every_variable_is_a_setting():
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert name.lower() in Settings.model_fields


def test_every_value_is_one_that_the_settings_take(monkeypatch):
    for name in ("service", "worker", "worker-gpu"):
        for variable, value in SERVICES[name]["environment"].items():
            monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)}", r"\1", value))

        settings = Settings()

        assert settings.redis == "redis://redis:6379/0"
        assert str(settings.data_dir) == "/data"


def test_whatever_may_be_substituted_has_a_default():
    text = (ROOT / "docker-compose.yml").read_text()

    assert re.findall(r"\$\{\w+(?!\w*:-)", text) == []


def test_redis_keeps_what_it_is_given_as_under_make_up(tmp_path):
    ours = redis_command(Settings(data_dir=tmp_path), tmp_path)
    options = dict(zip(ours[1::2], ours[2::2], strict=True))
    for local in ("--port", "--unixsocket", "--unixsocketperm", "--dir"):
        del options[local]

    program, *command = SERVICES["redis"]["command"]

    assert program == "redis-server"
    assert dict(zip(command[::2], command[1::2], strict=True)) == options
    assert re.fullmatch(r"redis:7\.\d+-alpine", SERVICES["redis"]["image"])


def test_the_worker_starts_as_under_make_up():
    _, _, *ours = worker_command()

    assert command_of("worker/Dockerfile") == ours


@pytest.mark.parametrize(
    "command",
    [
        command_of("service/Dockerfile"),
        SERVICES["worker"]["healthcheck"]["test"][1:],
    ],
    ids=" ".join,
)
def test_every_module_that_is_started_exists(command):
    program, flag, module = command

    assert (program, flag) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None


def test_the_health_check_asks_a_route_that_exists():
    paths = yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"]
    test = shlex.join(SERVICES["service"]["healthcheck"]["test"])

    [path] = re.findall(r"127\.0\.0\.1:8000(/\w+)", test)

    assert path in paths
    assert SERVICES["service"]["environment"]["PORT"] == "8000"


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_dockerfile_copies_and_installs_what_exists(dockerfile):
    for line in instructions(dockerfile, "COPY "):
        *sources, _ = line.split()
        assert [name for name in sources if not (ROOT / name).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    copied = {line.split()[0] for line in instructions(dockerfile, "COPY ")}
    assert set(packages) <= copied
    [extra] = re.findall(r"'\.\[(\w+)\]'", (ROOT / dockerfile).read_text())
    assert extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_container_runs_as_somebody_without_rights(dockerfile):
    assert instructions(dockerfile, "USER ") == ["modelpress"]
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]


def test_the_services_image_has_no_torch():
    names = {
        re.split(r"[\[<>=,]", requirement)[0]
        for extra in ("service", "jobs")
        for requirement in PROJECT["optional-dependencies"][extra]
    } | {re.split(r"[\[<>=,]", requirement)[0] for requirement in PROJECT["dependencies"]}

    assert names.isdisjoint({"torch", "numpy", "numba", "transformers"})


def test_nothing_but_the_front_is_published_and_that_on_loopback_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    [port] = published.pop("front")
    assert published == {}
    assert port.startswith("127.0.0.1:")


def test_the_front_is_the_one_that_is_tested_and_leads_to_the_service():
    [mounted] = SERVICES["front"]["volumes"]
    source, _, options = mounted.partition(":")
    conf = (ROOT / source).read_text()

    assert options == "/etc/nginx/nginx.conf:ro"
    assert f"server service:{SERVICES['service']['environment']['PORT']};" in conf
    assert f"listen {SERVICES['front']['ports'][0].rpartition(':')[2]};" in conf


def test_every_volume_that_is_mounted_is_declared():
    mounted = {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    files = {source for source in mounted if source.startswith("./")}

    assert mounted - files == set(COMPOSE["volumes"])
    assert all((ROOT / source).is_file() for source in files)


@pytest.mark.parametrize("room", ["service", "worker"])
def test_an_image_holds_every_package(room):
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / room / "Dockerfile").read_text(), re.MULTILINE)

    assert sorted(copied) == sorted(packages)
