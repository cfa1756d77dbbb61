"""ClassmithClassifier: `fit` has a meta-model write a small network for the classes; there is no training loop."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state, check_X_y, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from models.metamodel import ZOO
from service.estimator.networks import Network, Shown, fit_here, fit_remotely
from service.estimator.samples import WHITE, Scale, from_array, from_list, is_list_of_images, n_dimensions, scale_of

MAX_IMAGES = 512
"""As many support images do the shipped meta-models take together."""


class ClassmithClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A few-shot image classifier: a meta-model writes its weights from the images given to ``fit``.

    X is a list of images (paths, files' bytes, Pillow images, uint8 arrays of any sizes); or an array ``(N, H, W)`` or
    ``(N, H, W, C)``; or rows ``(N, n_features)`` of flattened images. uint8 is taken as pixels; of other numbers
    the range seen in ``fit`` becomes black to white.

    Args:
        meta_model: the name of one, or "auto": chosen by what the images look like.
        descriptions: label -> what the class looks like, in words; read by meta-models that read text. Labels that are
            not in ``y`` become classes without images; with descriptions alone call ``fit()``.
        image_shape: of rows: ``(H, W)`` or ``(H, W, C)``, one of them may be -1. By default rows are grey squares.
        max_shots: of more images of a class only so many are shown to the meta-model, drawn at random (fewer with many
            classes); ``support_`` says which. A meta-model gains little from more, and takes a limited number.
        random_state: for that draw.
        url: of a service that makes and keeps the classifier; by default it is made in this process.
        api_key: of that service. It is a parameter like the others: pickles hold it, and ``repr`` shows it.
        meta_models: a folder of meta-model folders, for classifiers made in this process; by default those shipped.

    Attributes:
        classes_: the labels, sorted.
        support_: the samples that were shown to the meta-model.
        meta_model_: the meta-model that wrote the network.
        network_: the network: its ONNX file is ``network_.onnx``; or, with ``url``, its task is ``network_.task_id``.
        scale_: the numbers that are black and white.
        n_features_in_: of rows.

    It never abstains: to do so compare ``predict_proba(X).max(axis=1)`` with ``network_.abstain_below``, which a
    classifier made in this process has. With ``url`` the service has it: ask for the task by the client, whose
    predictions say ``abstain``.
    """

    def __init__(
        self,
        meta_model: str = "auto",
        *,
        descriptions: Mapping[Hashable, str] | None = None,
        image_shape: Sequence[int] | None = None,
        max_shots: int = 32,
        random_state: int | np.random.RandomState | None = 0,
        url: str | None = None,
        api_key: str | None = None,
        meta_models: str | PathLike[str] | None = None,
    ) -> None:
        self.meta_model = meta_model
        self.descriptions = descriptions
        self.image_shape = image_shape
        self.max_shots = max_shots
        self.random_state = random_state
        self.url = url
        self.api_key = api_key
        self.meta_models = meta_models

    def fit(self, X: Any = None, y: ArrayLike | None = None) -> Self:
        """Make the classifier of images and labels, of ``descriptions``, or of both.

        Raises ValueError where none can be made of them, with the reason; with ``url``, the client's errors too. Warns
        of descriptions that were not read, or not whole.
        """
        if self.max_shots < 1:
            raise ValueError(f"max_shots is {self.max_shots}; show at least one image of a class.")
        texts = dict(self.descriptions or {})
        if X is None and not texts:
            raise ValueError("fit needs images and labels, or descriptions: ClassmithClassifier(descriptions={...}).")
        self._forget_samples()
        images, labels = self._training_samples(X, y) if X is not None else ([], np.array([]))
        seen = np.unique(labels).tolist()
        found = [*seen, *(label for label in texts if label not in seen)]
        _check_alike(found)
        self.classes_ = np.unique(np.array(found))
        if len(self.classes_) < 2:
            raise ValueError(
                f"A classifier needs at least two classes, not only 1 class, {self.classes_.tolist()[0]!r}."
            )
        drawn = self._drawn(labels)
        self.support_ = np.sort(np.concatenate(drawn))
        shown = [
            Shown(str(label), texts.get(label, ""), tuple(images[i] for i in members))
            for label, members in zip(self.classes_.tolist(), drawn, strict=True)
        ]
        self.network_ = self._written(shown)
        self.meta_model_ = self.network_.meta_model
        for note in self.network_.notes:
            warnings.warn(note, stacklevel=2)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities ``(N, K)`` of ``classes_``; each row depends on its own image alone.

        Raises ValueError where a sample is no image, with its number; with ``url``, the client's errors too.
        """
        check_is_fitted(self)
        return self.network_.probabilities(self._samples(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each sample."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _forget_samples(self) -> None:
        """Undo what an earlier ``fit``, perhaps of another kind of X, learned of it."""
        self.scale_ = Scale(0.0, WHITE)
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)

    def _training_samples(self, X: Any, y: ArrayLike | None) -> tuple[list[bytes], NDArray[Any]]:
        """Encoded images and their labels; learns the range of numbers that are no pixels."""
        if y is None:
            raise ValueError("ClassmithClassifier requires y to be passed, but the target y is None.")
        if is_list_of_images(X):
            images, labels = from_list(X), column_or_1d(y, warn=True)
            check_consistent_length(images, labels)
        else:
            if n_dimensions(X) > 2:
                values, labels = check_X_y(X, y, allow_nd=True)
            else:
                values, labels = validate_data(self, X, y)
            self.scale_ = self.scale_ if values.dtype == np.uint8 else scale_of(values)
            images = from_array(values, self.scale_, self.image_shape)
        check_classification_targets(labels)
        return images, labels

    def _samples(self, X: Any) -> list[bytes]:
        """Encoded images to classify."""
        if is_list_of_images(X):
            return from_list(X)
        values = check_array(X, allow_nd=True) if n_dimensions(X) > 2 else validate_data(self, X, reset=False)
        return from_array(values, self.scale_, self.image_shape)

    def _drawn(self, labels: NDArray[Any]) -> list[NDArray[np.intp]]:
        """For each class the samples that are shown to the meta-model."""
        random = check_random_state(self.random_state)
        n_shots = max(1, min(self.max_shots, MAX_IMAGES // len(self.classes_)))
        members = [np.flatnonzero(labels == label) for label in self.classes_]
        return [np.sort(random.permutation(found)[:n_shots]) for found in members]

    def _written(self, shown: Sequence[Shown]) -> Network:
        if self.url is not None:
            return fit_remotely(shown, self.meta_model, self.url, self.api_key)
        return fit_here(shown, self.meta_model, Path(self.meta_models or ZOO))

    def __sklearn_tags__(self) -> Any:
        """Arrays of images are taken as well as rows."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _check_alike(labels: Sequence[Hashable]) -> None:
    """Raises ValueError for texts among numbers: as an array all would be texts, and no label of ``y`` be found."""
    texts = [label for label in labels if isinstance(label, str)]
    others = [label for label in labels if not isinstance(label, str)]
    if texts and others:
        remedy = "write them alike in y and in descriptions"
        raise ValueError(f"Some labels are texts, like {texts[0]!r}, and others are not, like {others[0]!r}; {remedy}.")
