"""Networks in 8-bit integers: near those in floats, of this meta-model alone, and what the service runs if told to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models import bundle, metamodel, quantised
from models.errors import InvalidMetaModel
from models.export_n3 import export_files
from models.generator import OnnxGenerator
from models.graph import skeleton_for
from models.metamodel import MetaModel
from models.task import ClassSpec, TaskSpec
from service.catalogue import Catalogue
from service.cli.meta_models import _fault
from service.prediction.sessions import Placement, SharedNetworks, build_session
from tests.models import small_n3
from training import cli, quantise
from training.columns import quantise_trained
from training.data.descriptions import beside, read_descriptions
from training.data.folders import DataError, read_images
from training.described_tasks import Subject
from training.episodes import EpisodeShape


def integers(meta_model: MetaModel) -> Placement:
    return Placement(int8=Catalogue({"cloths": meta_model}).quantised())


@pytest.fixture(scope="module")
def meta_model(cloth_zoo: Path, cloths: Path, tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    """A copy of the exported one, quantised by the command."""
    folder = shutil.copytree(cloth_zoo / "cloths", tmp_path_factory.mktemp("zoo") / "cloths")
    command = ["quantise", str(folder), "--images", str(cloths), "--episodes", "4", "--seed", "1"]
    assert cli.main(command) == 0
    return metamodel.load(folder)


@pytest.fixture(scope="module")
def written(meta_model: MetaModel, cloths: Path) -> bundle.Bundle:
    images = read_images(cloths, meta_model.manifest.preprocess)
    classes = tuple(ClassSpec(images.class_names[k], "", tuple(images.pixels[images.indices[k][:2]])) for k in range(4))
    return bundle.decode(bundle.encode(OnnxGenerator().generate(meta_model, TaskSpec(classes))))


@pytest.fixture
def pixels(meta_model: MetaModel, cloths: Path) -> np.ndarray:
    return read_images(cloths, meta_model.manifest.preprocess).pixels[::5]


def test_answers_are_near_those_in_floats(meta_model: MetaModel, written: bundle.Bundle, pixels: np.ndarray) -> None:
    floats, quick = (build_session(meta_model, written, "t", "id", p) for p in (Placement(), integers(meta_model)))
    expected, found = floats.run(pixels), quick.run(pixels)
    assert 0 < np.abs(found - expected).max() < 0.3 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    assert quick.n_bytes < floats.n_bytes
    shared = SharedNetworks(integers(meta_model)).session(meta_model, written, "t", "id")
    np.testing.assert_array_equal(shared.run(pixels), found)


def test_every_convolution_is_rounded_to_the_nearest_of_255_values(
    meta_model: MetaModel, written: bundle.Bundle
) -> None:
    read = quantised.read(meta_model)
    assert read is not None
    skeleton = skeleton_for(read[0], meta_model.manifest, 4)
    floats = meta_model.weights(written.tensors)
    found = quantised.weights(skeleton, floats)
    graph = onnx.load_model_from_string(skeleton).graph
    assert found.keys() == {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    names = [name.removesuffix("_quantized") for name, array in found.items() if array.dtype == np.int8]
    assert len(names) == sum(node.op_type == "Conv" for node in graph.node) > 10
    for name in names:
        scales = found[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert np.abs(found[f"{name}_quantized"] * scales - floats[name]).max() <= scales.max() / 2 * (1 + 1e-5)
        assert (np.abs(found[f"{name}_quantized"]).reshape(len(scales), -1).max(1) == 127).all()


def test_ranges_are_in_the_file_and_the_exporters_notes_are_not(meta_model: MetaModel) -> None:
    read = quantised.read(meta_model)
    assert read is not None
    graph = onnx.load_model_from_string(read[0]).graph
    scales = [numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("_scale") and not t.external_data]
    assert len(scales) > 10
    assert all((scale > 0).all() for scale in scales)
    assert not any(node.metadata_props or node.doc_string for node in graph.node)


def test_the_facts_are_measured_and_stand_in_the_card(meta_model: MetaModel, cloths: Path) -> None:
    read = quantised.read(meta_model)
    assert read is not None
    facts = read[1]
    assert [(c["shape"]["n_shot"], c["n_episodes"]) for c in facts.columns] == [(0, 4), (1, 4), (5, 4)]
    for column in facts.columns:
        accuracy = {name: figure["mean"] for name, figure in column["accuracy"].items()}
        assert accuracy["difference"] == pytest.approx(accuracy["int8"] - accuracy["float32"], abs=0.02)
        assert accuracy["agreement"] > 80
        assert column["speed_up"] > 0
    card = (meta_model.folder / "CARD.md").read_text()
    assert "## In 8-bit integers" in card
    assert f"`{facts.command}`" in card
    assert facts.command == f"training quantise {meta_model.folder} --episodes 4 --seed 1 --images {cloths}"


def test_quantised_again_it_is_the_same_file(meta_model: MetaModel, cloths: Path) -> None:
    before = (meta_model.folder / quantised.SKELETON).read_bytes()
    quantise_trained(meta_model, images=cloths, n_episodes=2, seed=1)
    assert (meta_model.folder / quantised.SKELETON).read_bytes() == before


def test_an_interruption_leaves_nothing_behind(
    cloth_zoo: Path, cloths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = metamodel.load(shutil.copytree(cloth_zoo / "cloths", tmp_path / "cloths"))
    files = sorted(path.name for path in copy.folder.iterdir())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantise, "_column", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantise_trained(copy, images=cloths)
    assert sorted(path.name for path in copy.folder.iterdir()) == files


@pytest.mark.parametrize("file", [quantised.SKELETON, quantised.FACTS])
def test_files_that_are_changed_lost_or_of_another_export_are_refused(
    meta_model: MetaModel, tmp_path: Path, file: str
) -> None:
    copy = metamodel.load(shutil.copytree(meta_model.folder, tmp_path / "cloths"))
    path = copy.folder / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidMetaModel, match="training quantise"):
        quantised.read(copy)
    assert _fault(copy.folder)
    assert integers(copy) == Placement()  # the service runs it in floats
    path.unlink()
    if file == quantised.FACTS:
        assert quantised.read(copy) is None
    else:
        with pytest.raises(InvalidMetaModel, match="cannot be read"):
            quantised.read(copy)


def test_facts_of_another_meta_model_are_refused(meta_model: MetaModel, tmp_path: Path) -> None:
    copy = metamodel.load(shutil.copytree(meta_model.folder, tmp_path / "cloths"))
    facts = json.loads((copy.folder / quantised.FACTS).read_text())
    (copy.folder / quantised.FACTS).write_text(json.dumps(facts | {"meta_model_digest": "0" * 64}))
    with pytest.raises(InvalidMetaModel, match="of another export"):
        quantised.read(copy)


def test_what_there_is_nothing_to_gain_for_is_refused(exported: MetaModel, meta_model: MetaModel, cloths: Path) -> None:
    images = read_images(cloths, meta_model.manifest.preprocess)
    with pytest.raises(DataError, match="slower in 8-bit integers"):
        quantise.quantise(exported, images, images, {}, command="")
    with pytest.raises(DataError, match="trained on your own images"):
        quantise_trained(meta_model)


def test_images_that_have_changed_since_the_training_are_refused(
    meta_model: MetaModel, cloths: Path, tmp_path: Path
) -> None:
    """A class more shifts which of them validate, so that some were trained on."""
    more = shutil.copytree(cloths, tmp_path / "cloths")
    shutil.copytree(more / "plain red", more / "a new class")
    with pytest.raises(DataError, match="trained on other images"):
        quantise_trained(meta_model, images=more)


def test_one_that_reads_words_alone_is_compared_without_images(
    meta_model: MetaModel, cloths: Path, tmp_path: Path
) -> None:
    files = {name: meta_model.read(name) for name in meta_model.manifest.files}
    manifest = meta_model.manifest.model_copy(update={"accepts_images": False})
    beside = {"evaluation.json": (meta_model.folder / "evaluation.json").read_bytes()}
    words = metamodel.write(tmp_path / "cloths", manifest, files, beside=beside)
    assert [c["given"] for c in quantise_trained(words, images=cloths, n_episodes=2).columns] == ["words"]


def test_whole_networks_are_compared_where_no_layer_is_adapted(cloths: Path, tmp_path: Path) -> None:
    """Elsewhere the classification layer alone is run, on features that the base gave once: they are not asked for."""
    made = small_n3.half_precise(replace(small_n3.EXPLAINED, adapts=()))
    alone = metamodel.write(tmp_path / "small-n3", small_n3.manifest(made), export_files(made))
    assert not alone.manifest.adapts_layers
    images, texts = read_images(cloths, alone.manifest.preprocess), read_descriptions(beside(cloths))
    subject = Subject(alone, images, texts)
    skeleton = quantise._quantised_skeleton(alone, subject, 0)
    column = quantise._column(subject, skeleton, EpisodeShape(3, 0, 4), n_episodes=2, seed=0, progress=False)
    assert "features" not in vars(subject)
    assert column["speed_up"] > 0
    tensors, chosen = subject.write(subject.draw(EpisodeShape(3, 0, 4), 0, 0)[1]), np.arange(6)
    np.testing.assert_allclose(subject.whole_network(tensors)(chosen), subject.network(tensors)(chosen), atol=1e-3)
    assert "features" in vars(subject)


def test_a_processor_is_asked_for_its_instructions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {}
    for name, line in (("old", "flags\t\t: fpu sse2 avx2"), ("new", "flags\t\t: fpu avx512_vnni"),
                       ("arm", "Features\t: fp asimd asimddp")):  # fmt: skip
        (tmp_path / name).write_text(f"processor\t: 0\n{line}\n")
        monkeypatch.setattr(quantised, "CPU_INFO", tmp_path / name)
        found[name] = quantised.is_worthwhile()
    monkeypatch.setattr(quantised, "CPU_INFO", tmp_path / "none")
    assert found == {"old": False, "new": True, "arm": True}
    assert not quantised.is_worthwhile()
