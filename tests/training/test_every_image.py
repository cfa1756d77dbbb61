"""The zero-shot papers' protocol: one task of all classes, by words alone; every image and every class counts."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import metamodel
from models.metamodel import MetaModel
from training import cli, described_tasks
from training.columns import evaluate_every_image
from training.data import DATASETS, zero_shot
from training.data.dataset import Dataset
from training.data.descriptions import beside, in_order, read_descriptions, texts_digest
from training.data.folders import DataError, ImageSet, read_images
from training.described_tasks import N_DRAWINGS, Subject, every_image


@pytest.fixture(scope="module")
def meta_model(cloth_zoo: Path) -> MetaModel:
    return metamodel.load(cloth_zoo / "cloths")


def uneven(images: ImageSet) -> ImageSet:
    """Without all but one image of the first class."""
    kept = np.sort(np.concatenate([images.indices[0][:1], *images.indices[1:]]))
    return ImageSet(images.pixels[kept], images.labels[kept], images.class_names, images.groups)


def test_every_image_is_asked_about_and_every_class_counts_alike(meta_model: MetaModel, cloths: Path) -> None:
    images, texts = uneven(read_images(cloths, meta_model.manifest.preprocess)), read_descriptions(beside(cloths))
    found = every_image(meta_model, images, texts, progress=False)
    assert (found["n_images"], found["n_classes"]) == (len(images.labels), images.n_classes)
    assert len(images.labels) > 64  # more than are run at once
    subject, expected = Subject(meta_model, images, texts), []
    for number in range(N_DRAWINGS):
        rng = np.random.default_rng([0, number])
        specs = []
        for k in range(images.n_classes):
            name, description = described_tasks.Words().spec(subject.texts[k], k, rng)
            specs.append(described_tasks.ClassSpec(name, description, ()))
        network = subject.network(subject.write(specs))
        right = network(np.arange(len(images.labels))).argmax(-1) == images.labels
        expected.append(np.mean([right[images.labels == k].mean() for k in range(images.n_classes)]))
    assert found["per_class_accuracy"]["generated"]["mean"] == pytest.approx(100 * np.mean(expected), abs=0.01)
    assert found == every_image(meta_model, images, texts, progress=False)
    assert found["per_class_accuracy"].keys() == {"generated", "names_alone", "names_withheld"}


def test_the_command_prints_and_writes_it(
    meta_model: MetaModel, cloths: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    given = ["evaluate", str(meta_model.folder), "--every-image", "--images", str(cloths), "--out", str(out)]
    assert cli.main(given) == 0
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["protocol"] == "every image of every class"
    assert "cores" in found["hardware"]
    assert cli.main(shlex.split(found["command"])[1:]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_figures_say_of_which_descriptions_they_are(meta_model: MetaModel, cloths: Path) -> None:
    images, texts = read_images(cloths, meta_model.manifest.preprocess), read_descriptions(beside(cloths))
    digest = texts_digest(in_order(images.class_names, texts))
    columns = json.loads((meta_model.folder / "evaluation.json").read_text())["columns"]
    assert [column["descriptions_digest"] for column in columns] == [digest, digest]
    assert every_image(meta_model, images, texts, progress=False)["descriptions_digest"] == digest
    name = images.class_names[3]
    retold = texts | {name: replace(texts[name], sentences=("Something else.",))}
    assert every_image(meta_model, images, retold, progress=False)["descriptions_digest"] != digest


def test_classes_that_were_trained_on_are_not_tested(
    meta_model: MetaModel, cloths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a data set whose lists of classes may have changed since the training."""
    images = read_images(cloths, meta_model.manifest.preprocess)
    train, validation = DATASETS["tiny-imagenet"].split(cloths, size=meta_model.manifest.preprocess.size)
    parts = {"train": train, "test": validation}
    cub = Dataset("cub", "photographs", zero_shot.SPEC, lambda part, _: parts[part], Path, is_zero_shot=True)
    monkeypatch.setattr("training.columns.DATASETS", {"cub": cub})
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    (tmp_path / "cub").mkdir()
    shutil.copy(cloths / "descriptions.json", tmp_path / "cub")
    copy = metamodel.load(shutil.copytree(meta_model.folder, tmp_path / "zoo" / "cloths"))
    path = copy.folder / "evaluation.json"
    facts = json.loads(path.read_text())
    facts["training"] |= {"own_images": False, "config": facts["training"]["config"] | {"dataset": "cub"}}
    path.write_text(json.dumps(facts))
    found = evaluate_every_image(copy)
    assert (found["data_digest"], found["n_classes"]) == (validation.digest, validation.n_classes)
    parts["test"] = images.where(lambda name, _: name in train.class_names[:2])
    parts["train"] = images.where(lambda name, _: name not in train.class_names[:2])
    with pytest.raises(DataError, match="trained on other images; those that cub tests may be among them"):
        evaluate_every_image(copy)


def test_what_has_no_such_figure_is_refused(meta_model: MetaModel, exported: MetaModel, cloths: Path) -> None:
    with pytest.raises(DataError, match="reads images alone"):
        evaluate_every_image(exported, cloths)
    with pytest.raises(DataError, match="trained on your own images"):
        evaluate_every_image(meta_model)
    small = replace(meta_model, manifest=meta_model.manifest.model_copy(update={"max_classes": 2}))
    with pytest.raises(DataError, match="tells 2 apart at most"):
        evaluate_every_image(small, cloths)


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if not dataset.is_zero_shot])
def test_training_classes_are_never_taken_for_test_classes(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no test classes here"):
        DATASETS[name].load("test")
