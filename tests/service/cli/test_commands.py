"""Commands against a running service, called as functions: what they send, print and end with."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.cli import main
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.e2e.processes import COMMAND, ROOT, environment
from tests.service import centroids
from tests.service.client.scripted import as_json, serving
from tests.service.live import Live, held_generations, live

N_CLASSES = 3
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(service: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command's status, output and complaints; CLASSMITH_URL names the service."""
    for name in [name for name in os.environ if name.startswith("CLASSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLASSMITH_URL", service.url)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse's way out
            status = left.code if isinstance(left.code, int) else -1
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """shown/character K/1.png of each class, and asked/K.png."""
    for k in range(N_CLASSES):
        for hand, path in ((0, f"shown/character {k}/1.png"), (1, f"asked/{k}.png")):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(drawing(k, hand))
    return tmp_path


@pytest.fixture
def task(service: Live) -> dict[str, Any]:
    return service.task(centroids.task_json())


def made(run: Run, *arguments: object) -> Any:
    status, output, complaint = run("task", "create", *arguments, "--json")
    assert status == 0, complaint
    return json.loads(output)


def test_classes_are_patterns_folders_files_and_words(run: Run, pictures: Path) -> None:
    shown = pictures / "shown"
    task = made(
        run, "--class", f"one={shown}/character 0/*.png", f"--class=two={shown / 'character 1'}",
        "--class", f"three={shown / 'character 2' / '1.png'}", "--class", f"three={pictures / 'asked' / '2.png'}",
        "--describe", "two: round, like a = b", "--describe", "three=the third: last",
        "--unlabeled", pictures / "asked",
    )  # fmt: skip
    found = [(c["name"], c["n_images"], c["description"]) for c in task["classes"]]
    assert found == [("one", 1, ""), ("two", 1, "round, like a = b"), ("three", 2, "the third: last")]
    assert task["n_unlabeled"] == N_CLASSES


def test_a_folder_may_be_named_either_way_and_be_added_to(run: Run, pictures: Path) -> None:
    by_option = made(run, "--folder", pictures / "shown")
    assert made(run, pictures / "shown")["id"] == by_option["id"]
    more = made(run, pictures / "shown", "--class", f"character 0={pictures / 'asked' / '0.png'}")
    assert [c["n_images"] for c in more["classes"]] == [2, 1, 1]


def test_without_waiting_the_task_is_shown_as_it_stands(run: Run, pictures: Path) -> None:
    assert made(run, pictures / "shown", "--wait", 0)["state"] in ("queued", "generating", "ready")


def test_a_class_that_is_only_described_is_sent_and_judged_by_the_service(run: Run, pictures: Path) -> None:
    status, output, complaint = run("task", "create", pictures / "shown", "--describe", "okapi: striped legs")
    assert (status, output) == (1, "")
    assert "okapi" in complaint
    assert complaint.count("\n") == 1


def test_every_answer_comes_as_json_too(run: Run, task: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    ident = task["id"]
    assert json.loads(run("task", "show", ident, "--json")[1]) == task
    assert task in json.loads(run("task", "list", "--json")[1])
    status, output, _ = run("predict", ident, f"{pictures}/asked/*.png", "--top-k", 1, "--json")
    found = json.loads(output)["predictions"]
    assert [answer["path"] for answer in found] == [str(pictures / "asked" / f"{k}.png") for k in range(N_CLASSES)]
    assert [answer["label"] for answer in found] == [f"character {k}" for k in range(N_CLASSES)]
    assert all(list(answer["probabilities"]) == [answer["label"]] for answer in found)
    path = tmp_path / "model.onnx"
    assert json.loads(run("task", "export", ident, "-o", path, "--json")[1]) == {"path": str(path)}
    ort.InferenceSession(path)
    assert json.loads(run("task", "delete", ident, "--json")[1]) == {"deleted": ident}
    status, output, complaint = run("task", "delete", ident, "--json")
    assert (status, output, "There is no task" in complaint) == (1, "", True)


def test_an_image_that_is_refused_is_named_by_its_file(run: Run, task: dict[str, Any], pictures: Path) -> None:
    broken = pictures / "asked" / "1.png"
    broken.write_text("no image")
    status, output, complaint = run("predict", task["id"], *[pictures / "asked" / "0.png"] * 101, pictures / "asked")
    assert (status, output) == (1, "")
    assert "not a JPEG" in complaint
    assert complaint.endswith(f"({broken})\n")


def test_a_file_named_in_another_encoding_is_classified_and_shown(
    run: Run, task: dict[str, Any], pictures: Path
) -> None:
    latin = pictures / os.fsdecode(b"caf\xe9.png")
    (pictures / "asked" / "0.png").rename(latin)
    status, output, _ = run("predict", task["id"], latin)
    assert (status, output.split("\t")[0]) == (0, f"{pictures}/caf\\udce9.png")
    assert json.loads(run("predict", task["id"], latin, "--json")[1])["predictions"][0]["path"] == str(latin)


def test_a_creation_is_waited_for_as_long_as_was_said(run: Run, pictures: Path) -> None:
    with held_generations():
        began_at = time.monotonic()
        status, output, complaint = run(
            "task", "create", pictures / "shown", "--describe", "character 0: new", "--wait", 1
        )
        assert (status, output, "goes on being made" in complaint) == (1, "", True)
        assert time.monotonic() - began_at < 15  # the service would wait for 30 s


def test_the_release_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"classmith {metadata.version('classmith')}\n", "")


def test_verify_says_of_each_folder_whether_it_is_whole(run: Run, meta_models: Path) -> None:
    status, output, complaint = run("metamodel", "verify", *sorted(meta_models.iterdir()), "--json")
    found = {Path(entry["folder"]).name: entry["whole"] for entry in json.loads(output)}
    assert (status, found) == (1, {"centroids": True, "photos": True, "half-written": False})
    assert "half-written" in complaint


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_folder_without_meta_models_is_said(run: Run, tmp_path: Path, options: list[str]) -> None:
    for folder in (tmp_path, tmp_path / "misspelt"):
        status, output, complaint = run("metamodel", "list", folder, *options)
        assert (status, output) == (1, "")
        assert f"no whole meta-model in {folder}" in complaint


def test_something_else_that_answers_json_is_said(run: Run) -> None:
    with serving(*[as_json({"status": "ok"})] * 3) as script:
        for action in (["list"], ["show", "0" * 32], ["create", "--describe", "a: b"]):
            status, output, complaint = run("task", *action, "--url", script.url)
            assert (status, output, "not Classmith" in complaint) == (1, "", True)


@pytest.mark.parametrize(("arguments", "words"), [
    (["task", "create"], "Name the classes"),
    (["task", "create", "one", "--folder", "other"], "--folder: not allowed with argument FOLDER"),
    (["task", "create", "--class", "zebra"], "'zebra' should be NAME=IMAGES"),
    (["task", "create", "--class", "=1.png"], "should be NAME=IMAGES"),
    (["task", "create", "--describe", "okapi"], "should be 'NAME: TEXT'"),
    (["task", "create", "--describe", "okapi:  "], "should be 'NAME: TEXT'"),
    (["task", "create", "--class", "a=nowhere/*.jpg"], "No file matches nowhere/*.jpg"),
    (["task", "create", "--wait", "soon"], "'soon' is not a number of seconds"),
    (["predict", "0" * 32, "x.png", "--top-k", "0"], "'0' is not a whole number"),
    (["predict", "0" * 32, "nowhere.png"], "There is no file nowhere.png"),
    (["task", "list", "--url", "localhost:8137"], "'localhost:8137' does not begin with http:// or https://"),
    (["task", "export", "0" * 32], None),
    (["completion", "cmd"], "invalid choice"),
])  # fmt: skip
def test_wrong_use_is_said_in_a_line(run: Run, arguments: list[str], words: str | None) -> None:
    status, output, complaint = run(*arguments)
    assert (status, output) == (2 if words else 1, "")
    assert (words or "There is no task") in complaint
    assert "Traceback" not in complaint


def test_an_export_that_cannot_be_written_is_said(run: Run, task: dict[str, Any]) -> None:
    status, _, complaint = run("task", "export", task["id"], "-o", "/nowhere/model.onnx")
    assert (status, "cannot be written" in complaint) == (2, True)


def test_the_key_has_two_names(meta_models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(meta_models=meta_models, state_dir=tmp_path, api_keys={"k": "ann"})
    with live(settings) as guarded:
        assert run("task", "list", "--url", guarded.url)[0] == 1
        assert run("task", "list", "--url", guarded.url, "--api-key", "k")[0] == 0
        assert run("task", "list", "--url", guarded.url, "--key", "k")[0] == 0
        monkeypatch.setenv("CLASSMITH_API_KEY", "k")
        assert run("task", "list", "--url", guarded.url)[0] == 0


def test_bench_measures_each_number_of_connections(run: Run, task: dict[str, Any], pictures: Path) -> None:
    options = ["--seconds", 0.3, "--connections", 1, "--connections", 3]
    status, output, complaint = run("bench", task["id"], *options, "--json")
    assert status == 0, complaint
    runs = json.loads(output)["runs"]
    assert [r["n_connections"] for r in runs] == [1, 3]
    for r in runs:
        assert r["n_answers"] >= 1
        assert r["n_errors"] == 0
        assert 0 < r["p50_ms"] <= r["p95_ms"] <= r["p99_ms"]
        assert r["answers_per_s"] == pytest.approx(r["n_answers"] / r["seconds"], rel=0.05)
    _, table, _ = run("bench", task["id"], pictures / "asked", *options)
    assert [line.split()[0] for line in table.splitlines()] == ["connections", "1", "3"]


def test_bench_says_what_is_wrong_before_it_measures(run: Run, task: dict[str, Any], pictures: Path) -> None:
    assert run("bench", "0" * 32)[0] == 1
    (pictures / "text.png").write_text("no image")
    status, output, complaint = run("bench", task["id"], pictures / "text.png")
    assert (status, output, "not a JPEG" in complaint) == (1, "", True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_line_for_the_shell(run: Run, shell: str) -> None:
    status, output, _ = run("completion", shell)
    assert status == 0
    assert "classmith" in output


def completions(line: str, out: Path, **settings: object) -> list[str]:
    """What the shell would be told could follow a line."""
    asking = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
              "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}  # fmt: skip
    subprocess.run(COMMAND, cwd=ROOT, env=environment(**settings) | asking, check=True, timeout=240)
    return [found.strip() for found in out.read_text().split("\n") if found]


def test_completion_knows_commands_options_and_task_ids(service: Live, task: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "completions"
    assert completions("classmith met", out) == ["metamodel"]
    assert "--describe" in completions("classmith task create --d", out)
    assert completions(f"classmith task show {task['id'][:8]}", out, url=service.url) == [task["id"]]
    without = completions("classmith task show ", out, url="http://127.0.0.1:1")
    assert all(found.startswith("-") for found in without)


def test_a_terminal_sees_progress_and_a_pipe_does_not(service: Live, pictures: Path) -> None:
    command = [*COMMAND, "task", "create", str(pictures / "shown"), "--class", f"more={pictures / 'asked' / '0.png'}"]
    env = environment(url=service.url)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # a terminal without a width is shown nothing
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "wb") as stderr:
        seen = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=stderr, check=True, timeout=240
        )
        shown = b""
        while b"4 classes: ready" not in shown:
            assert select.select([terminal], [], [], 60)[0], shown
            shown += terminal.read(10_000)
    assert b"classes" not in seen.stdout
    piped = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True, timeout=240)
    assert piped.stderr == b""
