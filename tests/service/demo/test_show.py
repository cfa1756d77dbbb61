"""`make demo`, as a user meets it: what it prints is true, its line to paste works, and it stops cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.demo.alphabet import drawing
from service.demo.images import drawings, photographs, words, words_and_photographs
from service.demo.scenes import picture

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "service.demo"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No data at hand, so that the invented alphabet is used everywhere."""
    return {**os.environ, "CLASSMITH_DATASETS": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, left running."""
    running = subprocess.Popen(
        COMMAND, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield running
    running.send_signal(signal.SIGINT)
    running.wait()
    assert running.stdout is not None
    running.stdout.close()


def is_open(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def test_the_demo_makes_a_classifier_and_ends(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env={**environment, "DEMO_ONCE": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = {name: re.search(rf"^  {name} +(.*)$", done.stdout, re.MULTILINE) for name in
             ("task", "made in", "a prediction", "accuracy", "size", "the page")}  # fmt: skip
    assert all(found.values()), done.stdout
    accuracy = re.search(r"([\d.]+)%: (\d+) of (\d+) other images right", done.stdout)
    assert accuracy is not None
    n_right, n_images = int(accuracy[2]), int(accuracy[3])
    assert n_images == 20 * 19
    assert n_right > n_images / 2
    assert abs(float(accuracy[1]) - 100 * n_right / n_images) < 0.1
    url = re.search(r"http://127\.0\.0\.1:\d+", done.stdout)
    assert url is not None
    assert not is_open(url[0])


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_line_to_paste_works_while_the_service_runs_and_ctrl_c_stops_it(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C stops it" in line:
            break
    output = "".join(lines)
    line_to_paste = re.search(r"curl (?:.*\\\n)*.*", output)
    assert line_to_paste is not None, output
    pasted = subprocess.run(line_to_paste[0], shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    (prediction,) = json.loads(pasted.stdout)["predictions"]
    assert len(prediction["probabilities"]) == 3
    url = re.search(r"http://127\.0\.0\.1:\d+", output)
    assert url is not None
    assert is_open(url[0])
    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=240) == 0
    assert "The service is stopped." in demo.stdout.read()
    assert not is_open(url[0])


def test_omniglot_is_used_where_it_is_at_hand_and_only_its_held_out_alphabets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "omniglot"
    folder.mkdir()
    with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
        for alphabet_number in range(12):
            for character in range(10):
                for hand in range(2):
                    name = f"images_background/Alphabet{alphabet_number:02}/character{character:02}/01_{hand:02}.png"
                    archive.writestr(name, drawing(character, hand))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    showcase = drawings()
    names = [example.label for example in showcase.support]
    assert len(set(names)) == len(names) == 20
    assert {name.split()[0] for name in names} == {"Alphabet00", "Alphabet06"}
    assert len(showcase.queries) == 20
    assert not {example.image for example in showcase.support} & {example.image for example in showcase.queries}
    assert [entry["name"] for entry in showcase.request["classes"]] == names


def test_photographs_are_used_where_they_are_at_hand_and_only_classes_kept_out_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny-imagenet"
    folder.mkdir()
    wnids = [f"n{number:08}" for number in range(48)]
    texts = {w: {"name": f"class {w}", "phrases": ["round", "red"], "sentences": ["A.", "B.", "C."]} for w in wnids}
    (folder / "descriptions.json").write_text(json.dumps(texts))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, wnid in enumerate(wnids):
            for k in range(3):
                archive.writestr(f"{wnid}/{wnid}_{k}.JPEG", picture("sea", 3 * number + k))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    described, shown, both = words(), photographs(), words_and_photographs()
    assert len(described.descriptions) == 10
    assert {int(name[-8:]) % 4 for name in described.descriptions} == {3}
    assert described.support == ()
    assert {c["description"] for c in described.request["classes"]} == {"round, red. B. C."}
    assert [len(c["images"]) for c in both.request["classes"]] == [1] * 10
    assert both.queries == shown.queries == described.queries
    assert not {example.image for example in shown.support} & {example.image for example in shown.queries}


def test_painted_landscapes_stand_in_for_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    showcase = words_and_photographs()
    assert len({query.image for query in showcase.queries}) == len(showcase.queries) == 4 * 20
    assert all(c["description"] and len(c["images"]) == 1 for c in showcase.request["classes"])
