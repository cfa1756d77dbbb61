"""The exported generator in ONNX Runtime writes what PyTorch writes, and the order of a listing changes no weight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import metamodel
from models.bundle import Bundle
from models.errors import GenerationFailed
from models.export_hypertransformer import Generator, bundle_names
from models.generator import OnnxGenerator
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import MetaModel
from models.runtime import make_session
from models.task import ClassSpec, TaskSpec, canonical_order
from tests.models import small
from tests.service import prototypes


def answers(meta_model: MetaModel, bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    n_classes = len(bundle.header.class_names)
    skeleton = skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_classes)
    session = make_session(skeleton, {**meta_model.base, **bundle.tensors})
    (logits,) = session.run([LOGITS], {INPUT: pixels})
    return logits


def with_classes(spec: TaskSpec, order: list[int]) -> TaskSpec:
    return replace(spec, classes=tuple(spec.classes[k] for k in order))


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_permuting_the_classes_permutes_the_answers_exactly(exported: MetaModel, order: list[int]) -> None:
    spec, pixels = small.spec(), small.pixels(6)
    one, other = (small.stored(exported, s) for s in (spec, with_classes(spec, order)))
    for name in one.tensors:
        rows = order if name.startswith("logits") else slice(None)
        np.testing.assert_array_equal(other.tensors[name], one.tensors[name][rows])
    np.testing.assert_array_equal(answers(exported, other, pixels), answers(exported, one, pixels)[:, order])
    assert other.header.class_names == tuple(one.header.class_names[k] for k in order)


def test_the_order_of_images_changes_no_bit(exported: MetaModel) -> None:
    spec = small.spec(shots=(3, 2), n_unlabeled=3)
    classes = tuple(replace(c, images=c.images[::-1]) for c in spec.classes)
    turned = TaskSpec(classes, spec.unlabeled[::-1])
    one, other = (small.stored(exported, s) for s in (spec, turned))
    for name in one.tensors:
        np.testing.assert_array_equal(other.tensors[name], one.tensors[name])


def test_it_writes_what_pytorch_writes(exported: MetaModel) -> None:
    """For a task in canonical order, of several sizes, from the model that was exported."""
    model = Generator(small.model(small.EXPORTED))
    for shots, n_unlabeled in [((1, 1), 0), ((2, 1, 3), 2), ((1,) * 12, 5)]:
        spec = small.spec(shots=shots, n_unlabeled=n_unlabeled)
        spec = with_classes(spec, canonical_order(spec))
        images = [image for c in spec.classes for image in c.images] + [*spec.unlabeled]
        labels = [k for k, n in enumerate(len(c.images) for c in spec.classes) for _ in range(n)]
        labels += [small.EXPORTED.max_classes] * n_unlabeled
        with torch.no_grad():
            inputs = torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.arange(len(shots))
            expected = dict(zip(bundle_names(small.EXPORTED), model(*inputs), strict=True))
        written = OnnxGenerator().generate(exported, spec).tensors
        assert written.keys() == expected.keys()
        for name, tensor in expected.items():
            scale = float(tensor.abs().max())
            np.testing.assert_allclose(written[name], tensor.numpy(), atol=1e-4 * scale, err_msg=name)


def test_the_support_decides_the_weights(exported: MetaModel) -> None:
    one, other = (small.stored(exported, small.spec(seed=seed)) for seed in (0, 1))
    assert all((one.tensors[name] != other.tensors[name]).any() for name in one.tensors)


def test_unlabelled_images_change_the_weights(exported: MetaModel) -> None:
    spec = small.spec(n_unlabeled=2)
    one, other = (small.stored(exported, s) for s in (spec, replace(spec, unlabeled=())))
    assert (one.tensors["logits.weight"] != other.tensors["logits.weight"]).any()


def test_unlabelled_images_move_the_logits_layer_alone(exported: MetaModel) -> None:
    spec = small.spec(n_unlabeled=3)
    written, moved = (small.stored(narrower(exported, unlabeled_sharpness=s), spec).tensors for s in (None, 20.0))
    changed = {name for name in written if (written[name] != moved[name]).any()}
    assert changed == {"logits.weight", "logits.bias"}
    without = replace(spec, unlabeled=())
    written, same = (small.stored(narrower(exported, unlabeled_sharpness=s), without).tensors for s in (None, 20.0))
    assert all((written[name] == same[name]).all() for name in written)


def test_they_move_it_by_what_the_generator_sees(exported: MetaModel) -> None:
    """Which is each image where it is and shifted."""
    spec, plain = small.spec(n_unlabeled=3), narrower(exported, unlabeled_sharpness=20.0, shifted_support=0)
    seen = narrower(exported, unlabeled_sharpness=20.0)
    one, other = (small.stored(meta_model, spec).tensors["logits.weight"] for meta_model in (plain, seen))
    assert (one != other).any()


def test_with_unlabelled_images_the_order_of_classes_changes_no_answer(exported: MetaModel) -> None:
    spec, sharp = small.spec(n_unlabeled=3), narrower(exported, unlabeled_sharpness=20.0)
    listed = replace(spec, classes=spec.classes[::-1])
    one, other = (small.stored(sharp, s).tensors for s in (spec, listed))
    np.testing.assert_array_equal(one["logits.weight"], other["logits.weight"][::-1])
    np.testing.assert_array_equal(one["logits.bias"], other["logits.bias"][::-1])


def test_the_header_says_what_the_meta_model_ships(exported: MetaModel) -> None:
    header = small.stored(exported, small.spec()).header
    assert header.class_names == ("class 0", "class 1", "class 2")
    assert (header.meta_model, header.meta_model_digest) == (exported.name, exported.digest)
    assert (header.temperature, header.abstain_below) == (1.5, 0.4)


def test_the_temperature_follows_the_numbers_of_images_and_classes(exported: MetaModel) -> None:
    rising = narrower(exported, temperature_by_images=0.5, temperature_by_classes=-1.0)
    assert small.stored(rising, small.spec(shots=(1, 4, 3, 4))).header.temperature == pytest.approx(1.5 * 2 / 2)
    assert small.stored(rising, small.spec(shots=(1, 1))).header.temperature == pytest.approx(1.5 * 2**0.5)


def narrower(meta_model: MetaModel, **changes: object) -> MetaModel:
    return replace(meta_model, manifest=meta_model.manifest.model_copy(update=changes))


IMAGE = np.zeros((28, 28, 1), np.uint8)


@pytest.mark.parametrize(
    ("spec", "changes", "says"),
    [
        (small.spec(shots=(1,)), {}, "1 classes, not 2 to 12"),
        (small.spec(shots=(1,) * 13), {}, "13 classes"),
        (small.spec(shots=(2, 0)), {}, "a class without images"),
        (small.spec(shots=(3, 3), n_unlabeled=1), {"max_images": 6}, "7 images, over 6"),
        (small.spec(n_unlabeled=1), {"accepts_unlabeled": False}, "unlabelled images"),
        (TaskSpec((ClassSpec("a", images=(IMAGE,)), ClassSpec("b", images=(IMAGE[:27],)))), {}, "images that are not"),
    ],
)
def test_tasks_it_cannot_make_are_refused(exported: MetaModel, spec: TaskSpec, changes: dict, says: str) -> None:
    with pytest.raises(GenerationFailed, match=f"{says}.*create the task again"):
        OnnxGenerator().generate(narrower(exported, **changes), spec)


def test_weights_that_no_number_holds_are_refused(tmp_path: Path) -> None:
    meta_model = prototypes.meta_model(tmp_path, overflow=True)
    with pytest.raises(GenerationFailed, match="no usable weights"):
        OnnxGenerator().generate(meta_model, prototypes.spec())


def test_a_generator_that_cannot_run_says_so(exported: MetaModel, tmp_path: Path) -> None:
    files = {**{name: exported.read(name) for name in exported.manifest.files}, "generator.onnx": b"no graph"}
    broken = metamodel.write(tmp_path / "broken", exported.manifest, files)
    with pytest.raises(GenerationFailed, match="small failed"):
        OnnxGenerator().generate(broken, small.spec())


def test_a_generator_that_was_exported_again_writes_nothing(tmp_path: Path) -> None:
    loaded = prototypes.meta_model(tmp_path)
    files = {name: loaded.read(name) for name in loaded.manifest.files}
    other = {**files, "generator.onnx": prototypes.generator(1, 255.0)}
    newer = metamodel.write(loaded.folder, loaded.manifest, other)
    with pytest.raises(GenerationFailed, match=r"^generator\.onnx of .* was changed .*; restart the service"):
        OnnxGenerator().generate(loaded, prototypes.spec())
    assert OnnxGenerator().generate(newer, prototypes.spec()).header.meta_model_digest == newer.digest


def test_many_threads_share_one_generator(exported: MetaModel) -> None:
    generator, specs = OnnxGenerator(), [small.spec(seed=seed) for seed in range(4)]
    expected = [generator.generate(exported, spec) for spec in specs]
    found: dict[int, Bundle] = {}

    def generate(i: int) -> Callable[[], None]:
        return lambda: found.__setitem__(i, generator.generate(exported, specs[i]))

    threads = [threading.Thread(target=generate(i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, bundle in enumerate(expected):
        for name, tensor in bundle.tensors.items():
            np.testing.assert_array_equal(found[i].tensors[name], tensor)
