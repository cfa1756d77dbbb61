"""N3's exported files: the graphs are PyTorch's, and codes with the float16 base give the network that it adapted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import metamodel
from models.bundle import Bundle, BundleHeader, Tensors, decode, encode
from models.errors import InvalidMetaModel
from models.export import relative_error, to_array
from models.export_n3 import Generator, bundle_names, check_parity, export_files, tensor_specs
from models.generator import OnnxGenerator
from models.graph import FEATURES, INPUT, LOGITS, PROBABILITIES, self_contained, skeleton_for
from models.metamodel import CODES, HEAD, MetaModel
from models.methods.n3 import N3
from models.refine import refine
from models.runtime import make_session
from models.task import ClassSpec, TaskSpec
from tests.models import small_n3
from tests.models.small_n3 import CONFIG, adapt, pixels, task
from tests.once import once

HALF_PRECISION = 5e-3
"""Of logits, relative to the largest: the base, its bases, codes and rows each rounded to 11 bits."""


@pytest.fixture(scope="module")
def made() -> N3:
    return small_n3.model()


@pytest.fixture(scope="module")
def exported(made: N3, tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    def make(folder: Path) -> None:
        metamodel.write(folder / "small-n3", small_n3.manifest(made), export_files(made))

    return metamodel.load(once(tmp_path_factory, "exported-n3", make) / "small-n3")


@pytest.fixture(scope="module")
def files(exported: MetaModel) -> dict[str, bytes]:
    return {name: exported.read(name) for name in exported.manifest.files}


def stored(made: N3, exported: MetaModel, given: small_n3.Task) -> Bundle:
    """What a task keeps, by PyTorch, as read back from its bytes."""
    with torch.no_grad():
        written = [to_array(tensor) for tensor in Generator(made)(*given)]
    names = tuple(f"class {k}" for k in range(len(given.tokens)))
    header = BundleHeader(names, exported.name, exported.digest, temperature=1.5, abstain_below=0.4)
    return decode(encode(Bundle(header, dict(zip(bundle_names(made), written, strict=True)))))


def test_the_graphs_are_pytorchs_for_any_number_of_classes_tokens_and_images(made: N3, files: dict[str, bytes]) -> None:
    errors = check_parity(made, files, small_n3.manifest(made))
    assert {"generator", "logits"} <= errors.keys()
    assert all(error < 1e-4 for error in errors.values())


def test_files_that_are_not_the_models_are_refused(files: dict[str, bytes]) -> None:
    other = small_n3.model(seed=1)
    with pytest.raises(InvalidMetaModel, match="do not ship this export"):
        check_parity(other, files, small_n3.manifest(other))


def test_a_stored_task_gives_the_networks_logits_to_half_precision(made: N3, exported: MetaModel) -> None:
    given, images = task(), pixels(5)
    bundle = stored(made, exported, given)
    skeleton = skeleton_for(exported.read("skeleton.onnx"), exported.manifest, 4)
    session = make_session(skeleton, exported.weights(bundle.tensors))
    (logits,) = session.run([LOGITS], {INPUT: images.numpy()})
    with torch.no_grad():
        adaptation = adapt(made, given)
        reference = to_array(made.classify(adaptation, images))
        by_the_base = to_array(made.logits(adaptation, made.target.base(images)))
    assert relative_error(logits, reference) < HALF_PRECISION
    assert relative_error(by_the_base, reference) > 5 * HALF_PRECISION, "the adaptation must be seen"


def test_features_of_support_images_are_the_bases_before_any_task(made: N3, exported: MetaModel) -> None:
    """With no layer's gamma in them: so the generator met them in training."""
    images = pixels(4)
    skeleton = skeleton_for(exported.read("skeleton.onnx"), exported.manifest, exported.manifest.min_classes)
    (features,) = make_session(skeleton, exported.weights_before_tasks()).run([FEATURES], {INPUT: images.numpy()})
    assert abs(float(made.decoder(made.layers[0]).gamma.detach()) - 1) > 0.01
    with torch.no_grad():
        assert relative_error(features, to_array(made.target.project(made.target.base(images)))) < HALF_PRECISION


def test_a_classifier_is_exported_whole(made: N3, exported: MetaModel) -> None:
    given, images = task(), pixels(3)
    bundle = stored(made, exported, given)
    session = make_session(self_contained(exported, bundle.header, bundle.tensors), {})
    (found,) = session.run([PROBABILITIES], {INPUT: images.numpy()})
    with torch.no_grad():
        logits = made.classify(adapt(made, given), images)
    np.testing.assert_allclose(found, (logits / 1.5).softmax(-1), atol=0.02)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_a_task_keeps_codes_not_weights(made: N3, exported: MetaModel) -> None:
    kept = sum(tensor.size for tensor in stored(made, exported, task()).tensors.values())
    adapted = sum(np.prod(spec.shape) for spec in exported.manifest.tensors.values() if spec.source == "adapted")
    assert kept < adapted / 10
    halves = {name: tensor.dtype for name, tensor in exported.base.items()}
    assert set(halves.values()) == {np.dtype(np.float32)}, "as read; half as wide in the file"
    assert len(exported.read("base.safetensors")) < 2.2 * sum(tensor.size for tensor in exported.base.values())


def test_where_no_layer_is_adapted_a_task_keeps_its_classification_layer() -> None:
    specs = tensor_specs(small_n3.model(replace(CONFIG, adapts=())))
    assert {name for name, spec in specs.items() if spec.source == "bundle"} == {"logits.weight", "logits.bias"}
    assert not any(spec.source == "adapted" for spec in specs.values())


def test_nothing_of_this_machine_is_in_the_files(files: dict[str, bytes]) -> None:
    assert not any(__file__.partition("/tests/")[0].encode() in data for data in files.values())


# --- the classification layer fitted to the images

SHOWN = TaskSpec(tuple(ClassSpec(f"class {k}", "", tuple(pixels(3, seed=k).numpy())) for k in range(3)))
LABELS = np.repeat(np.arange(3), 3)


@pytest.fixture(scope="module")
def refining(made: N3, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    manifest = small_n3.manifest(made, refinement=0.7)
    return metamodel.write(tmp_path_factory.mktemp("zoo") / "small-n3", manifest, files)


def features_by(meta_model: MetaModel, tensors: Tensors | None) -> np.ndarray:
    """Of the images of ``SHOWN`` in their order, by the network with these tensors, or before any task."""
    n_classes = 2 if tensors is None else 3
    weights = meta_model.weights_before_tasks() if tensors is None else meta_model.weights(tensors)
    skeleton = skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_classes)
    shown = np.stack([image for c in SHOWN.classes for image in c.images])
    return make_session(skeleton, weights).run([FEATURES], {INPUT: shown})[0]


@pytest.mark.parametrize("codes", [None, {}], ids=["every layer adapted", "none"])
def test_the_layer_is_fitted_to_what_the_adapted_network_sees(
    exported: MetaModel, refining: MetaModel, codes: dict[str, np.ndarray] | None
) -> None:
    before = OnnxGenerator().generate(exported, SHOWN, codes=codes).tensors
    after = OnnxGenerator().generate(refining, SHOWN, codes=codes).tensors
    features = features_by(exported, before if codes is None else None)
    expected = refine(*(before[name] for name in HEAD), features, LABELS, trust=0.7)
    for name, rows in zip(HEAD, expected, strict=True):
        assert np.abs(rows - before[name]).max() > 1e-3
        np.testing.assert_allclose(after[name], rows, rtol=1e-3, atol=1e-4)
    for name in before.keys() - set(HEAD):
        np.testing.assert_array_equal(after[name], before[name])


def test_codes_can_be_given(exported: MetaModel, refining: MetaModel) -> None:
    own = OnnxGenerator().generate(exported, SHOWN).tensors
    given = {name: np.zeros_like(tensor) for name, tensor in own.items() if name.endswith(CODES)}
    tensors = OnnxGenerator().generate(refining, SHOWN, codes=given).tensors
    assert tensors.keys() == own.keys()
    assert not any(tensors[name].any() for name in given)
    assert OnnxGenerator().generate(refining, SHOWN, codes={}).tensors.keys() == set(HEAD)


def test_a_fitted_layer_is_the_same_to_the_bit_in_any_order(refining: MetaModel) -> None:
    turned = TaskSpec(tuple(replace(c, images=c.images[::-1]) for c in SHOWN.classes[::-1]))
    one, again, other = (OnnxGenerator().generate(refining, spec).tensors for spec in (SHOWN, SHOWN, turned))
    for name in HEAD:
        np.testing.assert_array_equal(again[name], one[name])
        np.testing.assert_array_equal(other[name], one[name][::-1])
