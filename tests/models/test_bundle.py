"""Bundles read back as they were written, the same bytes each time, and nothing damaged is ever taken for weights."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from models.bundle import Bundle, BundleHeader, decode, encode
from models.errors import CorruptBundle

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
HEADERS = st.builds(
    BundleHeader,
    class_names=st.lists(TEXTS, max_size=4).map(tuple),
    meta_model=TEXTS,
    meta_model_digest=TEXTS,
    temperature=st.floats(0.01, 100),
    abstain_below=st.floats(0, 1),
)
HALVES = st.floats(-65504, 65504, width=16)
TENSORS = st.dictionaries(
    TEXTS.filter(lambda name: name != "__metadata__"),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), elements=HALVES),
    max_size=4,
)


def example() -> Bundle:
    rng = np.random.default_rng(0)
    header = BundleHeader(("Śnieg", "b"), "omniglot-8", "d" * 64, 1.25, 0.5)
    tensors = {"conv1.weight": rng.normal(size=(3, 2, 3, 3)), "logits.bias": rng.normal(size=2)}
    return Bundle(header, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


@given(HEADERS, TENSORS)
@settings(max_examples=100)
def test_a_bundle_reads_back_as_it_was_written(header: BundleHeader, tensors: dict[str, np.ndarray]) -> None:
    data = encode(Bundle(header, tensors))
    read = decode(data)
    assert read.header == header
    assert read.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
        assert read.tensors[name].dtype == np.float32
    assert encode(read) == data


def test_equal_bundles_are_equal_bytes_whatever_the_order_of_their_tensors() -> None:
    bundle = example()
    turned = Bundle(bundle.header, dict(reversed(bundle.tensors.items())))
    assert encode(turned) == encode(bundle)


def test_weights_are_kept_as_halves_and_biases_in_full() -> None:
    bundle = example()
    stored = load(encode(bundle))
    assert {name: str(tensor.dtype) for name, tensor in stored.items()} == {
        "conv1.weight": "float16", "logits.bias": "float32",
    }  # fmt: skip
    read = decode(encode(bundle))
    np.testing.assert_array_equal(read.tensors["logits.bias"], bundle.tensors["logits.bias"])
    np.testing.assert_allclose(read.tensors["conv1.weight"], bundle.tensors["conv1.weight"], rtol=1e-3)


def test_tensors_need_not_be_contiguous() -> None:
    bundle = example()
    turned = Bundle(bundle.header, {"w": bundle.tensors["conv1.weight"].transpose(3, 1, 2, 0)})
    assert decode(encode(turned)).tensors["w"].shape == (3, 2, 3, 3)


@given(st.data())
@settings(max_examples=300)
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    """Only the padding of the file's own header may change: then the bundle is still the same."""
    whole = encode(example())
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[place] ^= data.draw(st.integers(1, 255))
    with suppress(CorruptBundle):
        assert encode(decode(bytes(broken))) == whole


@given(st.integers(0, len(encode(example())) - 1))
@settings(max_examples=60)
def test_a_truncated_bundle_is_refused(length: int) -> None:
    with pytest.raises(CorruptBundle):
        decode(encode(example())[:length])


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptBundle):
        decode(data)


def test_a_pickle_is_never_opened() -> None:
    with pytest.raises(CorruptBundle):
        decode(pickle.dumps({"conv1.weight": np.zeros(3)}))


@pytest.mark.parametrize("envelope", ["7", "[]", "null", "{}", '{"header": 7, "sha256": "x"}', '"text"', "["])
def test_an_envelope_of_another_shape_is_refused(envelope: str) -> None:
    with pytest.raises(CorruptBundle):
        decode(save({"w": np.zeros(2, np.float32)}, metadata={"classmith": envelope}))


def test_a_header_of_another_bundle_is_refused() -> None:
    """Class names swapped under the same weights: the checksum covers the header too."""
    data = encode(example())
    tensors, length = load(data), int.from_bytes(data[:8], "little")
    envelope = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["classmith"])
    envelope["header"] = envelope["header"].replace("omniglot-8", "omniglot-9")
    with pytest.raises(CorruptBundle, match="checksum"):
        decode(save(tensors, metadata={"classmith": json.dumps(envelope)}))


def test_another_format_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("models.bundle.FORMAT_VERSION", 2)
        data = encode(example())
    with pytest.raises(CorruptBundle, match="format version"):
        decode(data)
