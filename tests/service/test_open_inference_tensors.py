"""The codec of tensors: what clients write is read, what it writes clients read, and nothing breaks it."""

from __future__ import annotations

import json
import os
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from models.errors import ClassmithError
from service.api.errors import status_of
from service.api.open_inference_tensors import DATATYPES, decode, encode
from service.settings import Settings

SETTINGS = Settings(max_images_per_predict=8, max_image_bytes=1_000)
N_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
THOROUGH = settings(max_examples=N_EXAMPLES, derandomize=True, deadline=None, database=None)
HUGE = 2**31 - 1


def message(header: Any, binary: bytes = b"") -> tuple[bytes, str]:
    """A body and the length of its JSON."""
    data = json.dumps(header).encode()
    return data + binary, str(len(data))


def tensor(name: str, shape: list[int], size: int | None, **more: Any) -> dict[str, Any]:
    parameters = {} if size is None else {"binary_data_size": size}
    return {"name": name, "datatype": DATATYPES[name], "shape": shape, "parameters": parameters, **more}


def outcome(body: bytes, length: str | None) -> int:
    """200, or the status of the refusal; anything else raised fails the test."""
    try:
        decode(body, length, SETTINGS)
    except ClassmithError as error:
        return status_of(error)[0]
    return 200


@THOROUGH
@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=8))
def test_images_are_read_as_clients_write_them(images: list[bytes]) -> None:
    binary = serialize_byte_tensor(np.array(images, dtype=object)).item()
    asked = decode(*message({"inputs": [tensor("image", [len(images)], len(binary))]}, binary), SETTINGS)
    assert list(asked.images) == images


@THOROUGH
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_pixels_are_read_alike_in_every_form(n: int, size: int, seed: int, flat: bool) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    floats = (values / 255).astype("<f4")
    shape = list(values.shape)
    data = values.ravel().tolist() if flat else values.tolist()
    for header, binary in [
        (tensor("pixels", shape, values.nbytes), values.tobytes()),
        (tensor("pixels", shape, None, data=data), b""),
        (tensor("pixels_fp32", shape, floats.nbytes), floats.tobytes()),
        (tensor("pixels_fp32", shape, None, data=floats.tolist()), b""),
    ]:
        read = decode(*message({"inputs": [header]}, binary), SETTINGS).images
        np.testing.assert_array_equal(np.stack([np.asarray(image) for image in read]), values)


@THOROUGH
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), min_size=n, max_size=n),
            st.lists(st.text("aé\u4e2d: 0", max_size=9), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    ),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_clients_read_what_is_written(values: tuple[list[Any], list[str], list[bool]], binary: Any) -> None:
    probabilities, labels, abstain = np.array(values[0]), np.array(values[1], dtype=object), np.array(values[2])
    arrays = {"probabilities": probabilities, "labels": labels, "abstain": abstain}
    outputs = {name: (array, is_binary) for (name, array), is_binary in zip(arrays.items(), binary, strict=True)}
    body, n_header = encode({"model_name": "m"}, outputs)
    read = triton.InferResult.from_response_body(body, header_length=n_header)
    np.testing.assert_array_equal(read.as_numpy("probabilities"), probabilities.astype(np.float32))
    assert read.as_numpy("abstain").tolist() == values[2]
    texts = [t.decode() if isinstance(t, bytes) else t for t in read.as_numpy("labels").tolist()]
    assert texts == values[1]


def test_little_endian_whatever_the_machine() -> None:
    body, n_header = encode({}, {"p": (np.array([[1.0]]), True), "l": (np.array(["ab"], dtype=object), True)})
    assert body[n_header:] == b"\x00\x00\x80\x3f" + b"\x02\x00\x00\x00ab"


@THOROUGH
@given(st.binary(max_size=300), st.none() | st.text(max_size=12) | st.integers(-5, 400).map(str))
@example(b"", "0")
@example(b"", None)
@example(b"{}", "2")
def test_any_bytes_are_refused_or_read(body: bytes, length: str | None) -> None:
    assert outcome(body, length) in (200, 400, 413)


SIZES = st.none() | st.integers(-9, 2**70) | st.booleans() | st.floats() | st.text(max_size=3) | st.lists(st.none())
NUMBERS = st.integers(-HUGE, HUGE) | st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(NUMBERS | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=12)
SHAPES = st.lists(st.integers(-1, 4) | st.sampled_from([HUGE, 2**31, 2**63, 10**30]), max_size=9)
NAMES, TYPES = st.sampled_from([*DATATYPES, "", "x"]), st.sampled_from([*DATATYPES.values(), "FP64", ""])
TENSORS = st.fixed_dictionaries(
    {"name": NAMES, "shape": SHAPES | NUMBERS, "datatype": TYPES},
    optional={"parameters": st.fixed_dictionaries({}, optional={"binary_data_size": SIZES}) | VALUES, "data": VALUES},
)
HEADERS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | VALUES},
    optional={"id": VALUES, "parameters": VALUES, "outputs": VALUES, "more": VALUES},
)


@THOROUGH
@given(HEADERS, st.binary(max_size=64), st.integers(-3, 3))
def test_any_header_is_refused_or_read(header: Any, binary: bytes, off_by: int) -> None:
    body, length = message(header, binary)
    for declared in (length, str(int(length) + off_by), None):
        assert outcome(body, declared) in (200, 400, 413)


@THOROUGH
@given(
    st.sampled_from(list(DATATYPES)),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.binary(max_size=200),
    st.data(),
)
def test_lengths_that_lie_are_refused(name: str, shape: list[int], binary: bytes, data: st.DataObject) -> None:
    """A size, a shape and bytes that do not belong together: read only where all three agree."""
    size = data.draw(st.integers(0, len(binary) + 2))
    status = outcome(*message({"inputs": [tensor(name, shape, size)]}, binary))
    if size != len(binary) or 0 in shape:
        assert status == 400
    if status == 200 and name != "image":
        assert int(np.prod(shape)) * (4 if name == "pixels_fp32" else 1) == len(binary)


@pytest.mark.parametrize(("header", "binary"), [
    ({"inputs": [tensor("pixels", [HUGE, HUGE, HUGE, HUGE], 4)]}, b"abcd"),
    ({"inputs": [tensor("pixels", [8, HUGE, HUGE, HUGE], 4)]}, b"abcd"),
    ({"inputs": [tensor("pixels", [8, HUGE, HUGE, HUGE], None, data=[1])]}, b""),
    ({"inputs": [tensor("image", [8], 4)]}, b"\xff\xff\xff\xff"),
    ({"inputs": [tensor("image", [1], 2)]}, b"\xff\xff"),
    ({"inputs": [tensor("image", [1], 4)]}, b"\x00\x00\x00\x00"),
    ({"inputs": [tensor("image", [1], 2000)]}, (1996).to_bytes(4, "little") + bytes(1996)),
    ({"inputs": [tensor("pixels", [1, 1, 1, 1], None, data=[256])]}, b""),
    ({"inputs": [tensor("pixels", [1, 1, 1, 1], None, data=[10**400])]}, b""),
    ({"inputs": [tensor("pixels", [1, 1, 1, 2], None, data=[[[[1], 2]]])]}, b""),
    ({"inputs": [tensor("pixels", [1, 1, 1, 1], None, data=[[[[None]]]])]}, b""),
    ({"inputs": [tensor("pixels_fp32", [1, 1, 1, 1], None, data=["0.5"])]}, b""),
    ({"inputs": [tensor("pixels", [1, 1, 1, 2], None, data=[True, 1])]}, b""),
    ({"inputs": [tensor("pixels_fp32", [1, 1, 1, 1], 4)]}, b"\x00\x00\x80\x7f"),
    ({"inputs": [tensor("image", [1], True)]}, b"a"),
    ({"inputs": [tensor("image", [1], 1.0)]}, b"a"),
    ({"inputs": [tensor("image", [1], 1), tensor("image", [1], 1)]}, b"ab"),
])  # fmt: skip
def test_claims_of_great_size_take_no_memory_and_are_refused(header: Any, binary: bytes) -> None:
    assert outcome(*message(header, binary)) in (400, 413)


@pytest.mark.parametrize("name", ["pixels", "pixels_fp32"])
def test_one_long_text_among_many_takes_no_memory_and_is_refused(name: str) -> None:
    """NumPy's texts are all as long as the longest: 400 MB here, of 103 kB."""
    body, length = message({"inputs": [tensor(name, [1, 1, 1000, 1], None, data=["x" * 100_000] + [""] * 999)]})
    tracemalloc.start()
    try:
        assert outcome(body, length) == 400
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
