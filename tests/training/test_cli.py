"""The ``training`` command on made-up class folders, from drawings to a meta-model that answers; and its refusals."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import metamodel
from models.bundle import decode, encode
from models.generator import OnnxGenerator
from models.graph import INPUT, PROBABILITIES, self_contained
from models.preprocess import to_pixels
from models.task import ClassSpec, TaskSpec
from service.demo.alphabet import drawing
from tests.training import small
from training import checkpoint
from training import evaluate as evaluation
from training.cli import main
from training.columns import COMPARISON
from training.configs.hypertransformer import CONFIGS

CONFIG = replace(small.BASE, model=replace(small.BASE.model, mirrored_support=False), unlabeled_sharpness=5.0)
"""The logits layer alone, on convolutions that go into the base; a drawing is another one mirrored."""


@pytest.fixture(scope="module")
def tiny() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "tiny", lambda: CONFIG)
        patch.setattr(evaluation, "N_AGNOSTIC", 3)
        yield


@pytest.fixture(scope="module")
def run(tiny: object, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert fit(folders, folder) == 0
    return folder


@pytest.fixture(scope="module")
def meta_model(run: Path, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> metamodel.MetaModel:
    folder = tmp_path_factory.mktemp("zoo") / "tiny-drawings"
    arguments = ["export", str(run), "--to", str(folder), "--images", str(folders), "--summary", "Made in a test."]
    assert main(arguments) == 0
    return metamodel.load(folder)


def fit(images: Path, folder: Path, *more: str, config: str = "tiny") -> int:
    arguments = ["fit", "hypertransformer", "--config", config, "--run", str(folder), "--images", str(images)]
    return main([*arguments, "--device", "cpu", *more])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training: ")
    return line


# --- from drawings to answers


def test_fit_leaves_a_run_of_ones_own_images(run: Path) -> None:
    header = checkpoint.read_header(run / "checkpoint.safetensors")
    assert header["step"] == CONFIG.n_steps
    (entry,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert entry["step"] == CONFIG.n_steps


def test_fit_again_resumes(run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert fit(folders, tmp_path / "run", "--steps", str(CONFIG.n_steps + 1)) == 0
    assert checkpoint.read_header(tmp_path / "run" / "checkpoint.safetensors")["step"] == CONFIG.n_steps + 1
    assert "next: training export" in capsys.readouterr().out


def test_export_makes_a_whole_folder_that_tells_where_it_comes_from(meta_model: metamodel.MetaModel) -> None:
    manifest = meta_model.manifest
    assert (manifest.name, manifest.summary, manifest.domain) == ("tiny-drawings", "Made in a test.", "drawings")
    assert manifest.temperature != 1.0
    assert manifest.unlabeled_sharpness == CONFIG.unlabeled_sharpness
    assert meta_model.base.keys() == {
        f"conv{n}.{kind}" for n in range(1, small.MODEL.n_conv_layers + 1) for kind in ("weight", "bias")
    }
    facts = json.loads((meta_model.folder / "evaluation.json").read_text())
    assert facts["training"]["own_images"] is True
    assert facts["training"]["train_classes"] == 11
    assert len(facts["training"]["validation_groups"]) == 3  # by their classes: their alphabets were trained on
    assert max(facts["parity"].values()) < 1e-4
    assert [path.name for path in meta_model.folder.parent.iterdir()] == ["tiny-drawings"]


def test_the_exported_meta_model_answers(meta_model: metamodel.MetaModel) -> None:
    import onnxruntime as ort

    pixels = [[to_pixels(drawing(k, hand), meta_model.manifest.preprocess) for hand in range(2)] for k in range(3)]
    spec = TaskSpec(tuple(ClassSpec(f"character {k}", images=(images[0],)) for k, images in enumerate(pixels)))
    bundle = decode(encode(OnnxGenerator().generate(meta_model, spec)))
    assert bundle.tensors.keys() == {"logits.weight", "logits.bias"}
    session = ort.InferenceSession(self_contained(meta_model, bundle.header, bundle.tensors))
    (found,) = session.run([PROBABILITIES], {INPUT: np.stack([images[0] for images in pixels])})
    assert found.argmax(-1).tolist() == [0, 1, 2]


def test_a_comparison_of_other_runs_is_dropped_and_the_command_that_made_it_told(
    run: Path, meta_model: metamodel.MetaModel, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the run is among them, it stays: ``test_word_baselines``."""
    folder = shutil.copytree(meta_model.folder, tmp_path / "tiny-drawings")
    header = checkpoint.read_header(run / "checkpoint.safetensors")
    of_run = {"steps": header["step"], "train_data_digest": header["train_data_digest"]}
    other = {"config": {**header["config"], "seed": 1}, **of_run}
    table = folder / COMPARISON
    table.write_text(json.dumps({"runs": [other], "command": "training compare-words runs/other"}))
    assert main(["export", str(run), "--to", str(folder), "--images", str(folders)]) == 0
    assert not table.exists()
    assert f"dropped {table}, " in (said := capsys.readouterr().out)
    assert f"training compare-words runs/other --out {table}" in said


def test_evaluate_prints_a_column(
    meta_model: metamodel.MetaModel, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = ["evaluate", str(meta_model.folder), "--images", str(folders), "--ways", "4", "--shots", "2"]
    arguments += ["--queries", "2", "--unlabeled", "1", "--episodes", "3", "--seed", "5", "--within-group"]
    assert main([*arguments, "--out", str(tmp_path / "column.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "column.json").read_text())
    assert printed["shape"] == {"n_way": 4, "n_shot": 2, "n_query": 2, "n_unlabeled": 1, "unbalanced": False}
    assert (printed["n_episodes"], printed["seed"], printed["classes_from"]) == (3, 5, "one group")
    assert printed["meta_model_digest"] == meta_model.digest
    assert main(shlex.split(printed["command"])[1:]) == 0
    assert json.loads(capsys.readouterr().out) == printed


def test_evaluate_writes_the_card_of_a_known_data_set(
    meta_model: metamodel.MetaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the data set's place holds our drawings, in two alphabets: the first validates."""
    for character in range(8):
        alphabet = tmp_path / "data" / "omniglot" / "images_background" / small.ALPHABETS[character % 2]
        (alphabet / f"character{character}").mkdir(parents=True)
        for hand in range(4):
            (alphabet / f"character{character}" / f"{hand}.png").write_bytes(drawing(character, hand))
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path / "data"))
    copy = tmp_path / "tiny-drawings"
    shutil.copytree(meta_model.folder, copy)
    facts = json.loads((copy / "evaluation.json").read_text())
    facts["training"]["own_images"] = False
    monkeypatch.setattr("training.columns.STANDARD", {"omniglot": ((small.CONFIG.validation, False),)})
    for others in (["birch"], ["ash", "birch"]):  # so that what validates now was trained on, or may have been
        facts["training"]["validation_groups"] = others
        (copy / "evaluation.json").write_text(json.dumps(facts))
        assert "are not those that were held out" in refusal(capsys, "evaluate", str(copy))
        assert json.loads((copy / "evaluation.json").read_text()) == facts
        assert not (copy / "CARD.md").exists()
    facts["training"]["validation_groups"] = ["ash"]
    (copy / "evaluation.json").write_text(json.dumps(facts))
    for damaged in ('{"columns": [', '{"runs": []}', "[]"):
        (copy / COMPARISON).write_text(damaged)
        assert "comparison.json holds no comparison" in refusal(capsys, "evaluate", str(copy), "--episodes", "2")
        assert json.loads((copy / "evaluation.json").read_text()) == facts
    (copy / COMPARISON).unlink()
    out = tmp_path / "figures" / "standard.json"
    assert main(["evaluate", str(copy), "--episodes", "2", "--out", str(out)]) == 0
    found = json.loads((copy / "evaluation.json").read_text())
    assert json.loads(out.read_text()) == found
    (column,) = found["columns"]
    assert f"{column['accuracy']['generated']['mean']:.1f} ±" in (copy / "CARD.md").read_text()
    assert metamodel.load(copy).digest == meta_model.digest


def test_a_shipped_configuration_trains_on_folders_smaller_than_its_episodes(folders: Path, tmp_path: Path) -> None:
    """One step of omniglot-8, made for 20 classes of 20 images and more, on 14 classes of 8."""
    assert fit(folders, tmp_path, "--steps", "1", config="omniglot-8") == 0
    header = checkpoint.read_header(tmp_path / "checkpoint.safetensors")
    assert {shape["n_way"] for _, shape in header["config"]["shapes"]} == {11, 5}
    assert header["config"]["validation"]["n_way"] == 3


def test_the_module_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "training", "--help"], capture_output=True, text=True, check=True)
    assert all(command in found.stdout for command in ("data", "fit", "export", "evaluate"))


# --- what is refused, in one line


def test_ones_own_images_must_be_images_of_classes(
    tiny: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("fit", "hypertransformer", "--config", "tiny", "--run", str(tmp_path / "run"), "--images")
    assert "neither a folder nor a ZIP" in refusal(capsys, *command, str(tmp_path / "missing"))
    (tmp_path / "a").mkdir()
    assert "no class folders" in refusal(capsys, *command, str(tmp_path / "a"))
    (tmp_path / "a" / "x").mkdir()
    (tmp_path / "a" / "x" / "1.png").write_bytes(b"no image")
    assert "1.png: This is not a JPEG" in refusal(capsys, *command, str(tmp_path / "a"))
    (tmp_path / "a" / "x" / "1.png").write_bytes(drawing(0, 0))
    assert "7 classes at least" in refusal(capsys, *command, str(tmp_path / "a"))
    (tmp_path / "a" / "2.png").write_bytes(drawing(0, 0))
    assert "2.png is outside of the class folders" in refusal(capsys, *command, str(tmp_path / "a"))
    for k in range(8):
        (tmp_path / "b" / f"class{k}").mkdir(parents=True)
        (tmp_path / "b" / f"class{k}" / "1.png").write_bytes(drawing(k, 0))
    assert "two classes of two images" in refusal(capsys, *command, str(tmp_path / "b"))
    assert not (tmp_path / "run").exists()


def test_export_needs_a_whole_run_its_images_and_a_name(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ("--images", str(folders))
    assert "run `training fit` first" in refusal(capsys, "export", str(tmp_path), "--to", str(tmp_path / "x"), *images)
    assert "cannot name a meta-model" in refusal(
        capsys, "export", str(run), "--to", str(tmp_path / "My Model"), *images
    )
    half = tmp_path / "half"
    half.mkdir()
    whole = (run / "checkpoint.safetensors").read_bytes()
    (half / "checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a whole checkpoint" in refusal(capsys, "export", str(half), "--to", str(tmp_path / "x"), *images)
    other = small.write_folders(tmp_path / "other", n_characters=8)
    line = refusal(capsys, "export", str(run), "--to", str(tmp_path / "x"), "--images", str(other))
    assert "trained on other images; give the images it was trained on" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["export", "compare-words"])
def test_a_run_of_ones_own_images_asks_for_these_and_for_no_data_set(
    command: str, cloth_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    to = {"export": "--to", "compare-words": "--out"}[command]
    line = refusal(capsys, command, str(cloth_run), to, str(tmp_path / "x"))
    assert line == "training: This was trained on your own images; give them with --images."


def test_export_deletes_no_folder_that_is_no_meta_model(
    run: Path, meta_model: metamodel.MetaModel, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images, a whole zoo, or a page of the web, which may have a manifest.json, too."""
    drawings, zoo, page = tmp_path / "my-drawings", tmp_path / "zoo", tmp_path / "page"
    shutil.copytree(folders, drawings)
    shutil.copytree(meta_model.folder, zoo / "tiny-drawings")
    page.mkdir()
    (page / "manifest.json").write_text('{"name": "Page"}')
    for folder in (drawings, zoo, page):
        before = sorted(folder.rglob("*"))
        line = refusal(capsys, "export", str(run), "--to", str(folder), "--images", str(folders))
        assert f"{folder} is there and is no meta-model: an export would delete what it holds; give --to a new" in line
        assert sorted(folder.rglob("*")) == before


def test_what_depends_on_the_other_queries_is_trained_and_not_exported(
    tiny: object, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small.CONFIG, model=replace(small.MODEL, normalisation="query"), n_steps=1)
    monkeypatch.setitem(CONFIGS, "transductive", lambda: config)
    assert fit(folders, tmp_path / "run", config="transductive") == 0
    assert "training export" not in capsys.readouterr().out
    line = refusal(capsys, "export", str(tmp_path / "run"), "--to", str(tmp_path / "x"), "--images", str(folders))
    assert "for comparison in training alone: its answers depend on the other queries" in line


def test_another_seed_is_another_run(run: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("fit", "hypertransformer", "--config", "tiny", "--run", str(run), "--images", str(folders))
    assert "trained with another seed" in refusal(capsys, *command, "--device", "cpu", "--seed", "1")


def test_evaluate_needs_a_whole_meta_model_and_its_own_images(
    meta_model: metamodel.MetaModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no manifest.json" in refusal(capsys, "evaluate", str(tmp_path))
    assert "your own images" in refusal(capsys, "evaluate", str(meta_model.folder))
    copy = tmp_path / "tiny-drawings"
    shutil.copytree(meta_model.folder, copy)
    (copy / "generator.onnx").write_bytes(b"")
    assert "generator.onnx was changed" in refusal(capsys, "evaluate", str(copy))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ways", "5"], "--ways: of a column of your own classes; give these with --images"),
        (["--unlabeled", "2", "--within-group"], "--unlabeled, --within-group: of a column of your own classes"),
        (["--every-image", "--episodes", "9"], "--episodes: of no use with --every-image"),
        (["--every-image", "--images", "x", "--shots", "0"], "--shots: of no use with --every-image"),
    ],
)
def test_evaluate_refuses_options_that_it_would_not_use(
    options: list[str], said: str, meta_model: metamodel.MetaModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, "evaluate", str(meta_model.folder), *options)


def test_classes_without_groups_are_not_said_to_be_of_one(
    meta_model: metamodel.MetaModel, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("evaluate", str(meta_model.folder), "--images", str(folders / small.ALPHABETS[0]), "--ways", "2")
    assert "not in groups (folders above theirs)" in refusal(capsys, *command, "--within-group")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fit", "hypertransformer"],
        ["fit", "hypertransformer", "--config", "no-such"],
        ["fit", "hypertransformer", "--config", "omniglot-8", "--steps", "0"],
        ["evaluate", "folder", "--shots", "-1"],
        ["evaluate", "folder", "--ways", "many"],
        ["evaluate", "folder", "--unlabeled", "-1"],
        ["evaluate", "folder", "--episodes", "1"],
        ["evaluate", "folder", "--fine-tuning", "1"],
        ["evaluate", "folder", "--fine-tuning", "-2"],
        ["evaluate", "folder", "--seed", "-1"],
        ["quantise", "folder", "--seed", "-1"],
        ["compare-words", "run", "--out", "peers.json", "--seed", "-1"],
        ["report", "zoo", "--to", "page.html", "--seed", "-1"],
        ["report", "zoo", "--to", "page.html", "--seed", str(2**32)],
        ["fit", "hypertransformer", "--config", "omniglot-8", "--seed", "-1"],
        ["fit", "base", "--config", "resnet18-tiny", "--seed", "99999999999999999999"],
        ["data", "imagenet"],
    ],
)
def test_wrong_arguments_are_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: training" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_images_are_read(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "hypertransformer", "--config", "omniglot-8", "--images", "nowhere", "--device", device]
    assert f"no device '{device}' here" in refusal(capsys, *command)
