"""Tasks of described classes: what they are drawn from, made once before a training, and drawing them.

Shapes: N images, C training classes with images, A of them and further ones with texts alone, V documents a class, F
features; K classes, Q queries, S support images a class of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.feeds import padded
from models.methods.n3 import N3
from models.nn.bases import Base
from training import closed_forms as forms
from training.configs.n3 import Config
from training.data import descriptions
from training.data.folders import ImageSet
from training.data.imagenet_text import class_indices
from training.encoded import EncodedTexts, encode_texts, read_encoder
from training.pretrained import classifier_rows
from training.runtime import Runtime

N_REMEMBERED = 4
"""Documents of each class that the regression remembers."""


@dataclass(frozen=True)
class Material:
    """All that tasks are drawn from. The first C of the A classes are those of ``images``, in their order."""

    images: ImageSet
    features: NDArray[np.float32]
    """Of every image, by the base as it is, projected, and scattered as those of unseen classes are: ``(N, F)``."""
    texts: EncodedTexts
    means: NDArray[np.float32]
    """Of each class's features ``(A, F)``: true ones, or those that a classifier's row implies."""
    priors: NDArray[np.float32]
    """What a regression that does not know the class makes of each of its documents: ``(A, V, F)``."""
    spread: float
    """Standard deviation of a feature within a class."""


@dataclass(frozen=True)
class Task:
    """What a generator is given of K classes, and who they are among the A."""

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    """Which images ``features`` are of; none where these are imagined."""
    tokens: Tensor
    token_mask: Tensor
    features: Tensor
    feature_mask: Tensor
    prior: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``N3.generate`` takes them."""
        return self.tokens, self.token_mask, self.features, self.feature_mask


@torch.no_grad()
def raw_features(base: Base, pixels: NDArray[np.uint8], runtime: Runtime) -> NDArray[np.float32]:
    """Pixels ``(N, H, W, C)`` -> the base's own features ``(N, G)``."""
    base = base.to(runtime.device).eval()
    runs = torch.from_numpy(pixels).split(128)
    return torch.cat([base(run.to(runtime.device)).float().cpu() for run in runs]).numpy()


def prepare(
    config: Config,
    base: Base,
    train: ImageSet,
    texts: dict[str, descriptions.ClassTexts],
    unseen: set[str],
    runtime: Runtime,
    *,
    projection: forms.Projection | None = None,
) -> tuple[Material, N3]:
    """The material, and a model in which all that has a closed form is fitted. ``unseen`` classes are in neither.

    ``projection``: of a run that goes on. Its axes are found up to sign, and anew on each machine.
    """
    known = known_texts(config, train, texts, unseen)
    raw = raw_features(base, train.pixels, runtime)
    projection = projection or forms.fit_projection(raw, train.labels, config.model.n_features).rounded
    features = projection(raw)
    means = forms.class_means(features, train.labels)
    if config.classifier_rows:
        means = _means_by_rows(raw, train, _further_classes(train, unseen), projection)
    encoder = read_encoder(config.text_encoder)
    encoded = encode_texts(known, encoder, config.n_documents, embeddings=config.embeddings, seed=config.seed)
    priors, true = _cross_fitted(encoded.means, means)
    strength = forms.slope(priors[: train.n_classes, 0], true[: train.n_classes])
    middles = means[train.labels]
    scattered = middles + config.scatter * (features - middles)
    material = Material(
        images=train,
        features=scattered.astype(np.float32),
        texts=encoded,
        means=means.astype(np.float32),
        priors=(strength * priors).astype(np.float32),
        spread=float((scattered - middles).std()),
    )
    return material, _fitted_model(config, base, projection, material, strength)


def known_texts(
    config: Config, train: ImageSet, texts: dict[str, descriptions.ClassTexts], unseen: set[str]
) -> list[descriptions.ClassTexts]:
    """All that is written about the A classes, those with images first; raises DataError where a class has no text."""
    known = [*descriptions.in_order(train.class_names, texts)]
    if config.classifier_rows:
        known += descriptions.in_order(_further_classes(train, unseen), descriptions.of_dataset("imagenet-text"))
    return known


def draw_task(material: Material, config: Config, rng: np.random.Generator, *, imagined: bool) -> Task:
    """A task of classes with images, or (``imagined``) of any, whose images are drawn around the classes' means."""
    n_classes = len(material.means) if imagined else material.images.n_classes
    n_most = min(config.ways[1], n_classes)
    classes = rng.permutation(n_classes)[: int(rng.integers(min(config.ways[0], n_most), n_most + 1))]
    shots = _shots(material, config, classes, rng, imagined=imagined)
    silent = (shots > 0) & (rng.random() < config.without_text)
    documents = rng.integers(config.n_documents, size=len(classes))
    chosen = [None if mute else (int(k), int(v)) for k, v, mute in zip(classes, documents, silent, strict=True)]
    if imagined:
        support, rows = [], [imagine(material, np.full(n, k), rng).numpy() for k, n in zip(classes, shots, strict=True)]
    else:
        support = [rng.permutation(material.images.indices[k])[:n] for k, n in zip(classes, shots, strict=True)]
        rows = [material.features[own] for own in support]
    arrays = (
        *material.texts.padded(chosen),
        *padded(rows, material.means.shape[1]),
        material.priors[classes, documents],
    )
    return Task(classes, np.concatenate([np.zeros(0, np.int64), *support]), *map(torch.from_numpy, arrays))


def draw_queries(material: Material, task: Task, n_queries: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices ``(Q,)`` of images of the task's classes, as many of each, none of them in its support."""
    per_class = max(1, n_queries // len(task.classes))
    others = [np.setdiff1d(material.images.indices[k], task.support) for k in task.classes]
    return np.concatenate([rng.choice(own, per_class, replace=len(own) < per_class) for own in others])


def imagine(material: Material, classes: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Features ``(Q, F)`` drawn around the means of classes ``(Q,)``."""
    noise = rng.standard_normal((len(classes), material.means.shape[1]), dtype=np.float32)
    return torch.from_numpy(material.means[classes] + np.float32(material.spread) * noise)


def _shots(
    material: Material, config: Config, classes: NDArray[np.int64], rng: np.random.Generator, *, imagined: bool
) -> NDArray[np.int64]:
    """Images of each class, the same in most tasks; as many at most as leave one to ask about."""
    n_drawn = len(classes) if rng.random() < 0.25 else 1
    shots = np.resize(rng.choice(config.shots, n_drawn), len(classes))
    return shots if imagined else np.minimum(shots, [len(material.images.indices[k]) - 1 for k in classes])


def _further_classes(train: ImageSet, unseen: set[str]) -> list[str]:
    """Those with a text and a row in the pretrained classifier, and without images here."""
    return sorted(set(class_indices()) - unseen - set(train.class_names))


def _means_by_rows(
    raw: NDArray[np.float32], train: ImageSet, further: Sequence[str], projection: forms.Projection
) -> NDArray[np.float64]:
    """Means ``(A, F)`` of the training classes and, by their rows in the pretrained classifier, of further ones."""
    indices, (rows, _) = class_indices(), classifier_rows()
    chosen = rows[[indices[name] for name in (*train.class_names, *further)]].astype(np.float64)
    return projection.means_of_rows(chosen, raw, train.labels)


def _cross_fitted(texts: NDArray[np.float64], means: NDArray[np.float64]) -> tuple[forms.Array, forms.Array]:
    """Every document's class mean by a regression of the other folds' classes ``(A, V, F)``; the true ones ``(A, F)``.

    Both from the middle of those others. The means of all sum to zero: from the middle of all, those of the others
    point away from the class that is left out, and with few classes that outweighs what texts say.
    """
    found, true = np.empty((*texts.shape[:2], means.shape[1])), np.empty_like(means)
    folds = np.random.default_rng(0).permutation(len(texts)) % forms.N_FOLDS
    for fold in range(forms.N_FOLDS):
        kept = folds != fold
        centred = means - means[kept].mean(axis=0)
        regression = forms.fit_regression(texts[kept, :N_REMEMBERED], centred[kept])
        found[~kept] = regression(texts[~kept].reshape(-1, texts.shape[-1])).reshape(-1, texts.shape[1], means.shape[1])
        true[~kept] = centred[~kept]
    return found, true


def _fitted_model(config: Config, base: Base, projection: forms.Projection, material: Material, strength: float) -> N3:
    """``strength``: by what the regression's means are multiplied; where 0, images alone say how long a row is."""
    regression = forms.fit_regression(material.texts.means[:, :N_REMEMBERED], material.means.astype(np.float64))
    n_remembered, token_dim = regression.texts.shape
    model = N3(replace(config.model, n_remembered=n_remembered, token_dim=token_dim))
    model.target.base.load_state_dict(base.state_dict())
    model.start_decoders()
    n_real, labels = material.images.n_classes, material.images.labels
    unexplained = (material.means - material.priors[:, 0])[:n_real]
    known = material.priors[:n_real, 0] if strength else material.means[:n_real]
    variances = [forms.variance(found.astype(np.float64)) for found in (material.means[:n_real], unexplained)]
    fitted = {
        "target.center": projection.center,
        "target.projection.weight": projection.matrix,
        "target.projection.bias": projection.bias,
        "regression.middle": regression.middle,
        "regression.texts": regression.texts,
        "regression.coefficients": strength * regression.coefficients,
        "regression.sharpness": forms.SHARPNESS,
        "fusion.log_variance": np.log(np.stack(variances) / (config.assumed_scatter * material.spread) ** 2),
        "log_scale": np.log(forms.best_scale(material.features[::7], known, labels[::7])),
    }
    model.load_state_dict({name: torch.as_tensor(v, dtype=torch.float32) for name, v in fitted.items()}, strict=False)
    return model
