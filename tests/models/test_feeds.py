"""What a generator that reads descriptions is fed, and that nothing in it depends on the order of a listing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import encoder_files, generator
from models.bundle import decode, encode
from models.errors import GenerationFailed
from models.feeds import Rows, feature_feeds, padded, text_of, token_feeds
from models.generator import OnnxGenerator
from models.graph import FEATURES, INPUT, skeleton_for
from models.metamodel import MetaModel
from models.runtime import make_session
from models.task import ClassSpec, Pixels, TaskSpec
from models.text import Encoders, load_encoder
from tests.service import described

SHAPE = (described.SIZE, described.SIZE, described.N_CHANNELS)


def images(n: int, *, seed: int = 0) -> tuple[Pixels, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8))


WORDS, SHOWN, BOTH = (
    ClassSpec("okapi", "A brown animal with striped legs."),
    ClassSpec("zebra", "", images(2)),
    ClassSpec("7", "A long-necked animal.", images(3, seed=1)),
)


def lengths(texts: Sequence[str]) -> list[Rows]:
    """Stands in for an encoder: as many rows as the text has letters, all holding that number."""
    return [np.full((len(text), 4), len(text), np.float32) for text in texts]


def sums(pixels: Pixels) -> Rows:
    return np.stack([pixels.sum(axis=(1, 2, 3)), np.ones(len(pixels))], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory: pytest.TempPathFactory) -> MetaModel:
    return described.meta_model(tmp_path_factory.mktemp("described"))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (WORDS, "okapi. A brown animal with striped legs."),
        (BOTH, "A long-necked animal."),
        (ClassSpec("okapi"), "okapi"),
        (ClassSpec("7"), "7"),
        (SHOWN, ""),
    ],
)
def test_the_text_of_a_class(spec: ClassSpec, text: str) -> None:
    assert text_of(spec) == text


def test_tokens_are_padded_with_zeros_and_masked() -> None:
    feeds = token_feeds([ClassSpec("abc"), SHOWN, ClassSpec("abcde")], lengths, 4)
    assert feeds["tokens"].shape == (3, 5, 4)
    np.testing.assert_array_equal(feeds["token_mask"], [[1, 1, 1, 0, 0], [0] * 5, [1] * 5])
    np.testing.assert_array_equal(feeds["tokens"].sum(axis=(1, 2)), [3 * 3 * 4, 0, 5 * 5 * 4])


def test_features_are_padded_with_zeros_and_masked() -> None:
    feeds = feature_feeds([WORDS, SHOWN, BOTH], sums, 2)
    assert feeds["features"].shape == (3, 3, 2)
    np.testing.assert_array_equal(feeds["feature_mask"], [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert sorted(feeds["features"][1, :2, 0]) == sorted(float(image.sum()) for image in SHOWN.images)
    assert not feeds["features"][0].any()


def test_where_a_kind_of_evidence_is_absent_there_is_one_masked_row() -> None:
    feeds = token_feeds([SHOWN, SHOWN], lengths, 4) | feature_feeds([WORDS, WORDS], sums, 2)
    assert feeds["tokens"].shape == (2, 1, 4)
    assert feeds["features"].shape == (2, 1, 2)
    assert not any(feed.any() for feed in feeds.values())


def test_many_images_are_run_in_parts_that_change_nothing(
    meta_model: MetaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TaskSpec((ClassSpec("a", "", images(90)), ClassSpec("b", "", images(50, seed=1))))
    in_two_or_three = OnnxGenerator().generate(meta_model, spec).tensors
    monkeypatch.setattr(generator, "MAX_RUN_IMAGES", 140)
    at_once = OnnxGenerator().generate(meta_model, spec).tensors
    for name, tensor in at_once.items():
        np.testing.assert_allclose(in_two_or_three[name], tensor, rtol=1e-5)


def test_a_generator_writes_from_words_from_images_and_from_both(meta_model: MetaModel) -> None:
    """Against the same means worked out in numpy, from the encoder and the skeleton themselves."""
    spec = TaskSpec((WORDS, SHOWN, BOTH))
    written = OnnxGenerator().generate(meta_model, spec).tensors["logits.weight"]
    encoder = load_encoder(described.ENCODER, encoder_files.find(described.ENCODER))
    okapi, giraffe = (
        e.tokens.mean(axis=0) @ described.PROJECTION for e in encoder.encode([text_of(WORDS), text_of(BOTH)])
    )
    weights = {n: np.zeros(t.shape_for(2), np.float32) for n, t in described.TENSORS.items()} | meta_model.base
    skeleton = make_session(skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, 2), weights)
    shown, both = (skeleton.run([FEATURES], {INPUT: np.stack(c.images)})[0].mean(axis=0) for c in (SHOWN, BOTH))
    np.testing.assert_allclose(written, [okapi, shown, giraffe + both], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_permuting_described_classes_permutes_the_weights_exactly(meta_model: MetaModel, order: list[int]) -> None:
    spec = TaskSpec((WORDS, SHOWN, BOTH))
    turned = TaskSpec(tuple(replace(c, images=c.images[::-1]) for c in (spec.classes[k] for k in order)))
    one, other = (OnnxGenerator().generate(meta_model, s).tensors for s in (spec, turned))
    for name, tensor in one.items():
        np.testing.assert_array_equal(other[name], tensor[order])


def test_a_network_made_again_is_the_same_to_the_bit(meta_model: MetaModel) -> None:
    """Whatever the encoder remembers: bundles are made again from their recipes."""
    spec, encoders = TaskSpec((WORDS, replace(WORDS, name="quagga"), BOTH)), Encoders()
    fresh = encode(OnnxGenerator().generate(meta_model, spec))
    encoders.get(described.ENCODER).encode([text_of(WORDS)])
    again = encode(OnnxGenerator(encoders=encoders).generate(meta_model, spec))
    assert decode(again).tensors.keys() == decode(fresh).tensors.keys()
    assert again == fresh


def test_a_generator_of_words_alone_takes_no_images(tmp_path: Path) -> None:
    words = described.meta_model(tmp_path, accepts_images=False)
    bundle = OnnxGenerator().generate(words, TaskSpec((WORDS, ClassSpec("zebra", "striped"))))
    assert bundle.tensors["logits.weight"].shape == (2, described.N_FEATURES)
    with pytest.raises(GenerationFailed, match="cannot make a task with images"):
        OnnxGenerator().generate(words, TaskSpec((WORDS, BOTH)))


def test_without_the_encoder_s_files_it_is_said_what_to_do(meta_model: MetaModel, tmp_path: Path) -> None:
    lacking = OnnxGenerator(encoders=Encoders(tmp_path))
    with pytest.raises(GenerationFailed, match=r"lacks model\.safetensors"):
        lacking.generate(meta_model, TaskSpec((WORDS, BOTH)))
    bundle = lacking.generate(meta_model, TaskSpec((SHOWN, replace(SHOWN, name="horse"))))  # needs no encoder
    assert bundle.tensors["logits.bias"].shape == (2,)


def test_padding_keeps_every_row_and_marks_it() -> None:
    rows = [np.arange(1, 5, dtype=np.float32).reshape(2, 2), np.zeros((0, 2), np.float32), np.full((1, 2), 9, "f4")]
    values, mask = padded(rows, 2)
    np.testing.assert_array_equal(mask, [[1, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(values, [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[9, 9], [0, 0]]])
    none, nowhere = padded([np.zeros((0, 3), np.float32)] * 2, 3)
    assert (none.shape, nowhere.shape, nowhere.sum()) == ((2, 1, 3), (2, 1), 0)
