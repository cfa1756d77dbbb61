"""The estimator on images: every form of X, labels of every kind, in process and by a service, alike."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from models.preprocess import to_pixels
from service.client import RequestFailed
from service.demo.alphabet import drawing
from service.estimator import ClassmithClassifier
from service.estimator.networks import LocalNetwork, RemoteNetwork
from tests.service.live import Live

N_CLASSES, N_HANDS = 4, 3
LABELS = np.repeat([f"character {k}" for k in range(N_CLASSES)], N_HANDS)
FILES = [drawing(k, hand) for k in range(N_CLASSES) for hand in range(N_HANDS)]
OTHERS = [drawing(k, N_HANDS) for k in range(N_CLASSES)]
NAMES = LABELS[::N_HANDS]


def opened(files: list[bytes]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)).convert("L") for data in files]


def stacked(files: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in opened(files)])


@pytest.fixture
def classifier(meta_models: Path) -> ClassmithClassifier:
    """Of a small real meta-model, nearest centroid."""
    return ClassmithClassifier("centroids", meta_models=meta_models)


def test_it_classifies_drawings_with_a_shipped_meta_model() -> None:
    fitted = ClassmithClassifier().fit(FILES, LABELS)
    assert fitted.meta_model_.startswith("omniglot")
    assert fitted.score(OTHERS, NAMES) == 1.0
    np.testing.assert_array_equal(fitted.classes_, sorted(NAMES))


def test_digits_of_scikit_learn_in_both_their_forms() -> None:
    digits = load_digits()
    shown, asked = slice(0, 300), slice(300, 600)
    as_images = ClassmithClassifier("omniglot-8").fit(digits.images[shown], digits.target[shown])
    as_rows = ClassmithClassifier("omniglot-8").fit(digits.data[shown], digits.target[shown])
    assert as_images.score(digits.images[asked], digits.target[asked]) > 0.5  # guessing: 0.1
    assert as_rows.n_features_in_ == 64
    np.testing.assert_array_equal(
        as_rows.predict_proba(digits.data[asked]), as_images.predict_proba(digits.images[asked])
    )


def test_every_form_of_x_is_the_same_classifier(classifier: ClassmithClassifier, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(len(FILES))]
    for path, data in zip(paths, FILES, strict=True):
        path.write_bytes(data)
    pixels = stacked(FILES)
    forms = [
        FILES, paths, list(map(str, paths)), np.array(list(map(str, paths))), np.array(list(map(str, paths)))[:, None],
        opened(FILES), list(pixels), pixels, pixels[..., None], pixels.reshape(len(FILES), -1), pixels.tolist(),
    ]  # fmt: skip
    expected = classifier.fit(FILES, LABELS).predict_proba(OTHERS)
    for X in forms:
        fitted = clone(classifier).fit(X, LABELS)
        asked = OTHERS if not isinstance(X, np.ndarray) or X.ndim != 2 or X.shape[1] == 1 else stacked(OTHERS)
        np.testing.assert_allclose(fitted.predict_proba(asked), expected, atol=1e-6)


def test_images_of_many_sizes_are_a_list(classifier: ClassmithClassifier) -> None:
    arrays = [np.asarray(image.resize((40 + 3 * i, 50))) for i, image in enumerate(opened(FILES))]
    assert classifier.fit(arrays, LABELS).predict(arrays[:2]).tolist() == [LABELS[0]] * 2
    colour = np.repeat(stacked(FILES)[..., None], 3, axis=3)
    np.testing.assert_array_equal(clone(classifier).fit(colour, LABELS).predict(colour[::N_HANDS]), NAMES)


def test_numbers_are_scaled_by_the_range_seen_in_fit(classifier: ClassmithClassifier) -> None:
    pixels = stacked(FILES)
    expected = clone(classifier).fit(pixels, LABELS).predict_proba(stacked(OTHERS))
    fitted = classifier.fit(pixels / 255.0 - 3.0, LABELS)
    assert (fitted.scale_.low, fitted.scale_.high) == (-3.0, -2.0)
    np.testing.assert_allclose(fitted.predict_proba(stacked(OTHERS) / 255.0 - 3.0), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [
    np.repeat([30, 10, 20, -1], N_HANDS), np.repeat([True, False, True, False], N_HANDS),
    np.array(list("ddd") + list("ccc") + list("bbb") + list("aaa"), dtype=object),
])  # fmt: skip
def test_labels_of_any_kind(classifier: ClassmithClassifier, labels: np.ndarray) -> None:
    fitted = classifier.fit(FILES, labels)
    np.testing.assert_array_equal(fitted.classes_, np.unique(labels))
    found = fitted.predict_proba(OTHERS)
    assert found.shape == (N_CLASSES, len(fitted.classes_))
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_array_equal(fitted.predict(OTHERS), fitted.classes_[found.argmax(axis=1)])
    np.testing.assert_array_equal(fitted.predict(FILES), labels)


def test_each_answer_depends_on_its_own_image_alone(classifier: ClassmithClassifier) -> None:
    fitted = classifier.fit(FILES, LABELS)
    together = fitted.predict_proba(OTHERS)
    np.testing.assert_allclose(np.vstack([fitted.predict_proba([image]) for image in OTHERS]), together, atol=1e-7)


def test_of_many_images_some_are_shown_and_support_says_which(classifier: ClassmithClassifier) -> None:
    fitted = classifier.set_params(max_shots=2, random_state=3).fit(FILES, LABELS)
    assert np.unique(LABELS[fitted.support_], return_counts=True)[1].tolist() == [2] * N_CLASSES
    chosen = [FILES[i] for i in fitted.support_]
    again = clone(classifier).fit(chosen, LABELS[fitted.support_])
    np.testing.assert_array_equal(again.predict_proba(OTHERS), fitted.predict_proba(OTHERS))


def test_a_fitted_one_is_pickled_whole_and_its_network_runs_anywhere(classifier: ClassmithClassifier) -> None:
    fitted = classifier.fit(FILES, LABELS)
    expected = fitted.predict_proba(OTHERS)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict_proba(OTHERS), expected)
    network = fitted.network_
    assert isinstance(network, LocalNetwork)
    assert network.abstain_below == 0.2
    pixels = np.stack([to_pixels(image, network.preprocess) for image in OTHERS])
    assert pixels.shape[1:] == (8, 8, 1)


def test_a_service_answers_as_this_process_does(classifier: ClassmithClassifier, service: Live) -> None:
    here = classifier.fit(FILES, LABELS)
    there = ClassmithClassifier("centroids", url=service.url).fit(FILES, LABELS)
    np.testing.assert_allclose(there.predict_proba(OTHERS), here.predict_proba(OTHERS), atol=1e-5)
    np.testing.assert_array_equal(there.predict(OTHERS), here.predict(OTHERS))
    assert isinstance(there.network_, RemoteNetwork)
    assert service.http.get(f"/tasks/{there.network_.task_id}").json()["meta_model"] == there.meta_model_ == "centroids"
    with pytest.raises(RequestFailed, match="no meta-model"):
        clone(there).set_params(meta_model="nonsense").fit(FILES, LABELS)


def test_descriptions_are_a_parameter_and_reach_the_task(service: Live, meta_models: Path) -> None:
    texts = {NAMES[0]: "a long stroke"}
    classifier = ClassmithClassifier("centroids", descriptions=texts, url=service.url)
    with pytest.warns(UserWarning, match="reads images only"):
        fitted = classifier.fit(FILES, LABELS)
    with pytest.warns(UserWarning, match="reads images only"):
        clone(classifier).set_params(url=None, meta_models=meta_models).fit(FILES, LABELS)
    assert isinstance(fitted.network_, RemoteNetwork)
    classes = service.http.get(f"/tasks/{fitted.network_.task_id}").json()["classes"]
    assert {c["name"]: c["description"] for c in classes} == {**dict.fromkeys(NAMES, ""), **texts}


@pytest.mark.parametrize(("labels", "key"), [(range(N_CLASSES), "0"), ("0123", 0)], ids=["numbers", "texts"])
def test_labels_of_two_kinds_are_refused(
    classifier: ClassmithClassifier, labels: Sequence[object], key: object
) -> None:
    with pytest.raises(ValueError, match="Some labels are texts, like '0', and others are not, like 0"):
        classifier.set_params(descriptions={key: "a circle"}).fit(FILES, np.repeat(list(labels), N_HANDS))


@pytest.mark.parametrize("samples", [FILES, stacked(FILES)], ids=["list", "array"])
def test_what_an_earlier_fit_learned_of_its_rows_is_forgotten(classifier: ClassmithClassifier, samples: object) -> None:
    fitted = classifier.fit(stacked(FILES).reshape(len(FILES), -1) / 100.0, LABELS).fit(samples, LABELS)
    assert not hasattr(fitted, "n_features_in_")
    assert (fitted.scale_.low, fitted.scale_.high) == (0.0, 255.0)
    assert fitted.predict(np.zeros((2, 16), np.uint8)).shape == (2,)


def test_descriptions_alone_need_a_meta_model_that_reads(classifier: ClassmithClassifier) -> None:
    with pytest.raises(
        ValueError, match=r"no meta-model here takes descriptions|has no image|takes descriptions alone"
    ):
        classifier.set_params(descriptions={"zebra": "stripes", "horse": "none"}).fit()


def test_it_works_with_scikit_learns_tools(classifier: ClassmithClassifier) -> None:
    images = stacked(FILES)
    assert cross_val_score(classifier, images, LABELS, cv=3).mean() > 0.5  # guessing: 0.25
    search = GridSearchCV(classifier, {"max_shots": [1, 2]}, cv=3).fit(images, LABELS)
    assert search.best_params_["max_shots"] in (1, 2)
    assert make_pipeline(classifier).fit(FILES, LABELS).score(OTHERS, NAMES) > 0.5


@pytest.mark.parametrize(("X", "y", "words"), [
    (FILES, LABELS[:-1], "inconsistent numbers"),
    (FILES, None, "requires y"),
    (None, LABELS, "descriptions"),
    (FILES[:3], LABELS[:3], "two classes"),
    (FILES, np.linspace(0, 1, len(FILES)), "Unknown label type"),
    (np.zeros((12, 7)), LABELS, "image_shape"),
    (np.zeros((12, 8, 8, 2)), LABELS, "should be"),
    (np.full((12, 8, 8), np.nan), LABELS, "NaN"),
    ([*FILES[:-1], "nowhere.png"], LABELS, "nowhere.png"),
    ([b"no image"] * 12, LABELS, "not a JPEG"),
    (FILES, np.repeat(["a", "b ", "b", "c"], N_HANDS), "both named"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_a_value_error_in_words(
    classifier: ClassmithClassifier, X: object, y: np.ndarray | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        classifier.fit(X, y)


@pytest.mark.parametrize("broken", [FILES[0][:200], b"no image", Image.new("F", (4, 3))], ids=["cut", "none", "deep"])
def test_of_many_samples_the_broken_one_is_named(classifier: ClassmithClassifier, broken: object) -> None:
    fitted = classifier.fit(FILES, LABELS)
    with pytest.raises(ValueError, match="Sample 300: "):
        fitted.predict([*OTHERS * 75, broken])


def test_names_that_the_service_keeps_otherwise(service: Live) -> None:
    labels = np.repeat(["cafe\u0301", "b  c", "d ", "e"], N_HANDS)
    fitted = ClassmithClassifier("centroids", url=service.url).fit(FILES, labels)
    np.testing.assert_array_equal(fitted.predict(OTHERS), labels[::N_HANDS])


def test_wrong_parameters_and_an_unfitted_one(classifier: ClassmithClassifier) -> None:
    with pytest.raises(NotFittedError):
        classifier.predict(OTHERS)
    with pytest.raises(ValueError, match="max_shots"):
        classifier.set_params(max_shots=0).fit(FILES, LABELS)
    with pytest.raises(ValueError, match="There is no meta-model"):
        classifier.set_params(max_shots=5, meta_model="nonsense").fit(FILES, LABELS)
