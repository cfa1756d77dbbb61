"""The command line as users run it: real processes against a real service."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from models.device import starts
from models.runtime import CUDA
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.e2e.processes import COMMAND, ROOT, environment
from tests.service import centroids
from tests.service.live import Live, live

N_CLASSES = 3


@pytest.fixture(scope="module")
def guarded(meta_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    settings = Settings(meta_models=meta_models, state_dir=tmp_path_factory.mktemp("state"), api_keys={"k": "ann"})
    with live(settings) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of class folders, and one of images to classify."""
    for k in range(N_CLASSES):
        for hand, part in ((0, f"made-from/character {k}"), (1, "others")):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / f"{k}.png").write_bytes(drawing(k, hand))
    return tmp_path


def run(*arguments: object, url: str = "", **settings: object) -> subprocess.CompletedProcess[str]:
    env = environment(**({"url": url} if url else {}), **settings)
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_the_life_of_a_task(service: Live, pictures: Path, tmp_path: Path) -> None:
    made = run("task", "create", pictures / "made-from", "--json", url=service.url)
    assert made.returncode == 0, made.stderr
    task = json.loads(made.stdout)
    assert [c["name"] for c in task["classes"]] == [f"character {k}" for k in range(N_CLASSES)]

    listed = run("task", "list", url=service.url)
    assert task["id"] in listed.stdout
    shown = run("task", "show", task["id"], "--json", url=service.url)
    assert json.loads(shown.stdout) == task

    images = [pictures / "others" / f"{k}.png" for k in range(N_CLASSES)]
    predicted = run("predict", task["id"], *images, "--top-k", 2, "--json", url=service.url)
    answers = json.loads(predicted.stdout)["predictions"]
    assert [len(answer["probabilities"]) for answer in answers] == [2] * N_CLASSES
    in_words = run("predict", task["id"], *images, url=service.url).stdout.splitlines()
    assert [line.split("\t")[0] for line in in_words] == [str(image) for image in images]
    assert all(answer["label"] in line for answer, line in zip(answers, in_words, strict=True))

    exported = run("task", "export", task["id"], "-o", tmp_path / "model.onnx", url=service.url)
    assert exported.returncode == 0, exported.stderr
    assert ort.InferenceSession(tmp_path / "model.onnx").get_outputs()[0].name == "probabilities"

    assert run("task", "delete", task["id"], url=service.url).returncode == 0
    gone = run("task", "show", task["id"], url=service.url)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "There is no task" in gone.stderr


def test_a_task_from_single_files_with_words(service: Live, pictures: Path) -> None:
    files = [f"--image=class {k}={pictures / 'others' / f'{k}.png'}" for k in range(2)]
    more = ["--describe", "class 1=the second", "--unlabeled", pictures / "others" / "2.png", "--wait", 60]
    made = run("task", "create", *files, *more, "--generator", "centroids", "--json", url=service.url)
    assert made.returncode == 0, made.stderr
    task = json.loads(made.stdout)
    assert {c["name"]: c["description"] for c in task["classes"]} == {"class 0": "", "class 1": "the second"}
    assert (task["n_unlabeled"], task["meta_model"]) == (1, "centroids")


def test_a_refusal_is_the_services_own_words(service: Live, pictures: Path) -> None:
    shutil.rmtree(pictures / "made-from" / "character 0")
    shutil.rmtree(pictures / "made-from" / "character 1")
    refused = run("task", "create", pictures / "made-from", url=service.url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("classmith: Impossible task: A task of 1 class cannot be made")
    assert "Traceback" not in refused.stderr


def test_the_key_comes_from_the_environment_or_an_option(guarded: Live) -> None:
    without = run("task", "list", url=guarded.url)
    assert (without.returncode, "needs a key" in without.stderr) == (1, True)
    assert run("task", "list", url=guarded.url, key="k").returncode == 0
    assert run("task", "list", "--url", guarded.url, "--key", "k").returncode == 0


@pytest.mark.parametrize("arguments", [
    ["task", "create", "nowhere"], ["task", "create", "--image", "nonsense"], ["predict", "0" * 32, "nowhere.png"],
    ["task", "create", "--image", "a=nowhere.png"], [], ["task"], ["nonsense"], ["predict", "x"],
])  # fmt: skip
def test_wrong_use_has_a_status_of_its_own(service: Live, arguments: list[str]) -> None:
    answer = run(*arguments, url=service.url)
    assert answer.returncode == 2
    assert answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[broken"])
def test_no_service_is_said_with_the_remedy(url: str) -> None:
    answer = run("task", "list", url=url)
    assert answer.returncode == 3
    assert "classmith serve" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_meta_models_are_listed_and_verified(meta_models: Path, tmp_path: Path) -> None:
    listed = run("metamodel", "list", meta_models)
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ["centroids", "photos"]
    as_json = json.loads(run("metamodel", "list", "--json", meta_models=meta_models).stdout)
    assert as_json[0]["max_classes"] == centroids.MAX_CLASSES

    whole = centroids.meta_model(tmp_path).folder
    assert run("metamodel", "verify", whole).returncode == 0
    skeleton = whole / "skeleton.onnx"
    skeleton.write_bytes(skeleton.read_bytes()[:-1])
    broken = run("metamodel", "verify", whole)
    assert broken.returncode == 1
    assert "skeleton.onnx was changed" in broken.stderr
    half = run("metamodel", "verify", meta_models=meta_models)
    assert half.returncode == 1
    assert "half-written" in half.stderr


@pytest.mark.parametrize(("arguments", "settings", "words"), [
    (["serve", "--host", "0.0.0.0"], {}, "CLASSMITH_API_KEYS"),
    (["serve", "--host", "0.0.0.0"], {"api_keys": "nope"}, "api_keys"),
    (["serve", "--port", "70000"], {}, "CLASSMITH_PORT"),
    (["serve"], {"port": "x"}, "CLASSMITH_PORT"),
    (["serve"], {"device": "tpu"}, "CLASSMITH_DEVICE"),
    (["serve", "--port", "70000"], {"max_task": "3"}, "warning: CLASSMITH_MAX_TASK is no setting"),
    (["serve", "--state-dir", "/dev/null/state"], {}, "CLASSMITH_STATE_DIR"),
    (["serve"], {"api_keys_file": "/nowhere.json"}, "nowhere.json"),
    (["worker"], {}, "CLASSMITH_REDIS_URL"),
    (["recover"], {}, "There is no store"),
    (["recover"], {"redis_url": "redis://127.0.0.1:1"}, "append-only file"),
    (["worker", "--redis-url", "redis://127.0.0.1:1"], {"meta_models": "/nowhere"}, "CLASSMITH_META_MODELS"),
])  # fmt: skip
def test_a_service_that_cannot_start_says_why(
    arguments: list[str], settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    answer = run(*arguments, **{"state_dir": tmp_path, **settings})
    assert answer.returncode == 2
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.skipif(starts(CUDA), reason="there is a GPU")
@pytest.mark.parametrize("command", [["serve"], ["worker", "--redis-url", "redis://127.0.0.1:1"]], ids=" ".join)
def test_a_gpu_that_is_not_there_is_not_silently_done_without(command: list[str], tmp_path: Path) -> None:
    answer = run(*command, state_dir=tmp_path, device="cuda")
    assert answer.returncode == 2
    assert "CLASSMITH_DEVICE is cuda" in answer.stderr
    assert "use the processor" in answer.stderr


def test_a_busy_port_is_said(service: Live, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    answer = run("serve", "--port", port, state_dir=tmp_path)
    assert answer.returncode == 2
    assert "choose another with --port" in answer.stderr


@pytest.mark.parametrize("command", ["", "serve", "worker", "task", "task create", "predict", "metamodel"])
def test_every_command_explains_itself(command: str) -> None:
    answer = run(*command.split(), "--help")
    assert answer.returncode == 0
    assert "usage: classmith" in answer.stdout


def test_help_comes_without_the_servers_imports() -> None:
    code = "import sys, service.cli; print([m for m in ('fastapi', 'onnxruntime', 'uvicorn') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
