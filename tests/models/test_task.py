"""Recipes are canonical and read back as they were; damaged ones are refused; ids name content."""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from models.errors import ImpossibleTask, InvalidRequest
from models.task import (
    ClassSpec,
    TaskSpec,
    canonical_order,
    canonical_text,
    check_classes,
    class_text,
    decode_recipe,
    digest_of,
    encode_recipe,
    task_id,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Any text that UTF-8 can carry."""


@st.composite
def specs(draw: st.DrawFn) -> TaskSpec:
    """Any task: texts of any script, images of any number and one shape."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 3])))
    images = st.lists(hnp.arrays(np.uint8, shape), max_size=3).map(tuple)
    classes = st.lists(st.builds(ClassSpec, name=TEXTS, description=TEXTS, images=images), max_size=4).map(tuple)
    return TaskSpec(draw(classes), draw(images))


def equal(one: TaskSpec, other: TaskSpec) -> bool:
    return digest(one) == digest(other) and [len(c.images) for c in one.classes] == [
        len(c.images) for c in other.classes
    ]


def digest(spec: TaskSpec) -> str:
    texts = [text for c in spec.classes for text in (c.name, c.description)]
    images = [image for c in spec.classes for image in c.images] + [*spec.unlabeled]
    return digest_of([*texts, *(f"{image.shape} {image.dtype}" for image in images), *(i.tobytes() for i in images)])


def example(*, names: tuple[str, ...] = ("Zebra", "Śnieg"), value: int = 7) -> TaskSpec:
    images = tuple(np.full((4, 4, 1), value + i, np.uint8) for i in range(2))
    return TaskSpec(tuple(ClassSpec(name, f"the {name}", images[: k + 1]) for k, name in enumerate(names)), images[:1])


@pytest.mark.parametrize(
    ("name", "description", "text"),
    [
        ("okapi", "It has striped legs.", "okapi. It has striped legs."),
        ("okapi", "", "okapi"),
        ("17", "It has striped legs.", "It has striped legs."),
        ("17", "", "17"),
        ("Boeing 747", "A large aeroplane.", "Boeing 747. A large aeroplane."),
    ],
)
def test_the_text_of_a_class_is_its_name_and_its_description(name: str, description: str, text: str) -> None:
    assert class_text(name, description) == text


@given(specs())
@settings(max_examples=100)
def test_a_recipe_reads_back_as_the_task_it_was_made_of(spec: TaskSpec) -> None:
    recipe = encode_recipe(spec)
    read = decode_recipe(recipe)
    assert equal(read, spec)
    assert encode_recipe(read) == recipe


def test_equal_tasks_give_equal_bytes_and_ids_and_any_difference_gives_others() -> None:
    def ident(spec: TaskSpec, *, tenant: str = "ann", digest: str = "d", preprocessing: str = "1") -> str:
        recipe = encode_recipe(spec)
        return task_id(recipe, tenant=tenant, meta_model_digest=digest, preprocessing=preprocessing)

    assert ident(example()) == ident(example())
    assert len(ident(example())) == 32
    others = {
        ident(example(value=8)),
        ident(example(names=("Zebra", "snow"))),
        ident(example(names=("Śnieg", "Zebra"))),
        ident(example(), tenant="bob"),
        ident(example(), digest="e"),
        ident(example(), preprocessing="2"),
        ident(TaskSpec(example().classes)),
    }
    assert len(others | {ident(example())}) == 8


def test_parts_do_not_run_together_in_a_digest() -> None:
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of(["a", ""]) != digest_of(["a"])
    assert digest_of(["a"]) == digest_of([b"a"])


@given(st.data())
@settings(max_examples=150)
def test_a_changed_byte_is_another_task_or_refused_and_never_a_crash(data: st.DataObject) -> None:
    recipe = bytearray(encode_recipe(example()))
    place = data.draw(st.integers(0, len(recipe) - 1))
    recipe[place] ^= data.draw(st.integers(1, 255))
    with suppress(InvalidRequest):
        read = decode_recipe(bytes(recipe))
        assert all(image.dtype == np.uint8 for c in read.classes for image in c.images)


@given(st.integers(0, len(encode_recipe(example())) - 1))
@settings(max_examples=60)
def test_a_truncated_recipe_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest):
        decode_recipe(encode_recipe(example())[:length])


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="create the task again"):
        decode_recipe(data)


@pytest.mark.parametrize("classes", ["{}", "7", "[7]", '[{"name": "a"}]', "null", "[", '"text"'])
def test_a_header_of_another_shape_is_refused(classes: str) -> None:
    made = save({"format": np.array([1], np.uint8)}, metadata={"classes": classes})
    if classes == "{}":
        assert decode_recipe(made) == TaskSpec(())
        return
    with pytest.raises(InvalidRequest):
        decode_recipe(made)


@pytest.mark.parametrize("version", [np.array([], np.uint8), np.array([2], np.uint8)])
def test_a_recipe_of_another_format_is_refused(version: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match="create the task again"):
        decode_recipe(save({"format": version}, metadata={"classes": "[]"}))


def test_a_recipe_is_plain_safetensors() -> None:
    recipe = encode_recipe(example())
    tensors = load(recipe)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "class0": (1, 4, 4, 1), "class1": (2, 4, 4, 1), "unlabeled": (1, 4, 4, 1), "format": (1,),
    }  # fmt: skip
    header = json.loads(recipe[8 : 8 + int.from_bytes(recipe[:8], "little")])
    assert json.loads(header["__metadata__"]["classes"])[1] == {"name": "Śnieg", "description": "the Śnieg"}


@given(st.text(max_size=30))
def test_canonical_text_is_settled_after_one_pass(text: str) -> None:
    once = canonical_text(text)
    assert canonical_text(once) == once
    assert once == unicodedata.normalize("NFC", once).strip()
    assert not any(unicodedata.category(ch) in {"Cc", "Cs"} for ch in once)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\t\nb  ", "a b"),
        ("e\u0301", "é"),
        ("a\u202eb", "a b"),
        ("x\x00y", "x y"),
        ("a\u2028b\u00a0c", "a b c"),
        ("\ud800", ""),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("an \U0001f469\u200d\U0001f680", "an \U0001f469\u200d\U0001f680"),
        ("\u200ca\u200d \u200c b\u200d", "a b"),
        ("\u200d\u200c", ""),
        ("a\u00ad\ufeffb", "a b"),
        ("", ""),
    ],
)
def test_canonical_text(text: str, expected: str) -> None:
    assert canonical_text(text) == expected


def named(*names: str) -> TaskSpec:
    return TaskSpec(tuple(ClassSpec(name) for name in names))


@pytest.mark.parametrize(
    ("spec", "where", "says"),
    [
        (named("a"), "classes", "between 2 and 3"),
        (named(), "classes", "0 classes"),
        (named(*"abcd"), "classes", "between 2 and 3"),
        (named("a", ""), "classes[1].name", "empty name"),
        (named("a", "b", "a"), "classes[2].name", "0 and 2"),
        (named("ab", "c", "a\u200db"), "classes[2].name", "0 and 2"),
    ],
)
def test_impossible_classes_are_refused_with_their_place(spec: TaskSpec, where: str, says: str) -> None:
    with pytest.raises(ImpossibleTask, match=says) as refusal:
        check_classes(spec, min_classes=2, max_classes=3)
    assert refusal.value.where == where


def test_possible_classes_pass() -> None:
    check_classes(named("a", "A"), min_classes=2, max_classes=3)


@given(specs(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_canonical_order_depends_on_content_alone(spec: TaskSpec, random: object) -> None:
    unique = {(c.name, c.description, tuple(i.tobytes() for i in c.images)): c for c in spec.classes}
    classes = list(unique.values())
    shuffled = [ClassSpec(c.name, c.description, c.images[::-1]) for c in classes]
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def in_order(given: list[ClassSpec]) -> list[tuple[str, str]]:
        return [(given[k].name, given[k].description) for k in canonical_order(TaskSpec(tuple(given)))]

    assert sorted(canonical_order(TaskSpec(tuple(classes)))) == list(range(len(classes)))
    assert in_order(classes) == in_order(shuffled)


def test_images_are_counted_with_the_unlabelled_ones() -> None:
    assert example().n_images == 4
    assert example().class_names == ("Zebra", "Śnieg")
