"""Evaluate a meta-model that reads descriptions, by the protocol: words, images or both, beside their controls.

Everything runs through the exported graphs, the text encoder, the bundle codec and ONNX Runtime, a task at a time, as
the service does. Classes are unseen ones; every image is answered on its own.

Shapes: K classes, Q queries, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models import bundle, decision, quantised
from models.generator import OnnxGenerator
from models.graph import FEATURES, INPUT, LOGITS, skeleton_for
from models.metamodel import CODES, MetaModel
from models.runtime import make_session
from models.task import ClassSpec, TaskSpec
from training import calibration, metrics
from training.baselines import logistic_regression, nearest_centroid
from training.calibration import Answered, Calibration
from training.data.descriptions import ClassTexts, draw_document, in_order, texts_digest
from training.data.folders import ImageSet
from training.episodes import Episode, EpisodeShape, sample, shrink
from training.evaluate import HARDWARE, column

N_AGNOSTIC, N_UNKNOWN, N_DRAWINGS = 30, 10, 3
WEIGHTS = (0.3, 0.5, 0.7)
"""Of words in the plain sum of two classifiers; the best of them is reported, which favours the sum."""
CALIBRATION = (
    EpisodeShape(10, 0, 3),
    EpisodeShape(5, 0, 5),
    EpisodeShape(5, 1, 5),
    EpisodeShape(5, 5, 5),
    EpisodeShape(20, 5, 2),
    EpisodeShape(5, 20, 5),
)
Tensors = dict[str, NDArray[np.float32]]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Words:
    """What of a class is written: how its document is made of its texts."""

    named: bool = True
    described: bool = True

    def spec(self, texts: ClassTexts, number: int, rng: np.random.Generator) -> tuple[str, str]:
        """The name and description of a class as a user would give them; a random document each time."""
        name = texts.name if self.named else str(number)
        if not self.described:
            return name, ""
        drawn = draw_document(texts, rng, p_name=float(self.named))
        return name, drawn.removeprefix(f"{texts.name}. ")[:2000]


GIVEN = {"generated": Words(), "names_alone": Words(described=False), "names_withheld": Words(named=False)}
NOTHING = np.zeros(0, np.int64)


class Subject:
    """One exported meta-model, and the images and texts of classes it has not seen."""

    def __init__(
        self,
        meta_model: MetaModel,
        images: ImageSet,
        texts: Mapping[str, ClassTexts],
        *,
        within_group: bool = False,
    ) -> None:
        self.meta_model, self.images, self.within_group = meta_model, images, within_group
        self.texts = in_order(images.class_names, texts)
        self._generator = OnnxGenerator()
        self._skeletons: dict[int, bytes] = {}
        self.agnostic: Tensors = {}

    @property
    def adapts_layers(self) -> bool:
        """Whether more than the classification layer differs between tasks."""
        return self.meta_model.manifest.adapts_layers

    def sample(self, shape: EpisodeShape, rng: np.random.Generator) -> Episode:
        """An episode, of one group's classes where it was asked for."""
        return sample(self.images, shape, rng, within_group=self.within_group)

    def draw(self, shape: EpisodeShape, seed: int, number: int) -> tuple[Episode, list[ClassSpec], np.random.Generator]:
        """Task ``number`` of a column, its classes as a user would send them, and what draws further: whoever asks."""
        rng = np.random.default_rng([seed, number])
        episode = self.sample(shape, rng)
        return episode, _specs(self, episode, Words(), rng), rng

    def write(self, classes: Sequence[ClassSpec], *, codes: Tensors | None = None) -> Tensors:
        """The task's tensors, as read back from a stored bundle; ``codes`` as ``OnnxGenerator.generate`` takes them."""
        written = self._generator.generate(self.meta_model, TaskSpec(tuple(classes)), codes=codes)
        stored = bundle.decode(bundle.encode(written))
        return {name: np.asarray(tensor, np.float32) for name, tensor in stored.tensors.items()}

    def network(self, tensors: Tensors) -> Callable[[NDArray[np.int64]], Logits]:
        """The network that was made for the task: images -> logits ``(Q, K)``; without layers of its own, its head."""
        return self.whole_network(tensors) if self.adapts_layers else partial(self.head, tensors)

    def features_for(self, tensors: Tensors) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
        """What ``network`` sees of images, ``(Q, F)``, before its classification layer."""
        return partial(self.features_by, tensors) if self.adapts_layers else lambda chosen: self.features[chosen]

    def whole_network(self, tensors: Tensors, *, int8: bytes | None = None) -> Callable[[NDArray[np.int64]], Logits]:
        """The same from the pixels on, whatever is adapted; by a quantised skeleton, if given."""
        session = self._session(tensors) if int8 is None else self._int8_session(int8, tensors)
        return lambda chosen: np.asarray(session.run([LOGITS], {INPUT: self.images.pixels[chosen]})[0])

    def write_head(self, classes: Sequence[ClassSpec]) -> Tensors:
        """The task's tensors where no layer is adapted but the classification layer."""
        return self.write(classes, codes={})

    def head(self, tensors: Tensors, chosen: NDArray[np.int64]) -> Logits:
        """What ``write_head`` gave, on images -> logits ``(Q, K)``."""
        logits: Logits = self.features[chosen] @ tensors["logits.weight"].T + tensors["logits.bias"]
        return logits

    def learn_agnostic(self, specs: Sequence[Sequence[ClassSpec]]) -> None:
        """The mean of the codes that are written for some tasks."""
        written = [self.write(classes) for classes in specs]
        names = [name for name in written[0] if name.endswith(CODES)]
        self.agnostic = {name: np.mean([tensors[name] for tensors in written], axis=0) for name in names}

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word of every class's texts, as often as it stands there."""
        return [word for own in self.texts for text in (*own.phrases, *own.sentences) for word in text.split()]

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Of every image by the base as it is, ``(N, F)``."""
        return self.features_by(None, np.arange(len(self.images.pixels)))

    def features_by(self, tensors: Tensors | None, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some images, ``(Q, F)``, by the network that was made for the task; None: by the base as it is."""
        n_way = self.meta_model.manifest.min_classes
        if tensors is None:
            session = make_session(self._skeleton(n_way), self.meta_model.weights_before_tasks())
        else:
            session = self._session(tensors)
        runs = [chosen[i : i + 64] for i in range(0, len(chosen), 64)]
        return np.concatenate([session.run([FEATURES], {INPUT: self.images.pixels[run]})[0] for run in runs])

    def _session(self, tensors: Tensors) -> Any:
        return make_session(self._skeleton(len(tensors["logits.bias"])), self.meta_model.weights(tensors))

    def _int8_session(self, int8: bytes, tensors: Tensors) -> Any:
        skeleton = skeleton_for(int8, self.meta_model.manifest, len(tensors["logits.bias"]))
        return make_session(skeleton, quantised.weights(skeleton, self.meta_model.weights(tensors)))

    def _skeleton(self, n_way: int) -> bytes:
        if n_way not in self._skeletons:
            skeleton = self.meta_model.read("skeleton.onnx")
            self._skeletons[n_way] = skeleton_for(skeleton, self.meta_model.manifest, n_way)
        return self._skeletons[n_way]


def evaluate(
    meta_model: MetaModel,
    images: ImageSet,
    texts: Mapping[str, ClassTexts],
    shape: EpisodeShape,
    *,
    n_episodes: int = 1000,
    seed: int = 0,
    within_group: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of one column (classes, images of each; words always given), and all that is needed to repeat it."""
    subject = Subject(meta_model, images, texts, within_group=within_group)
    rng = np.random.default_rng(seed)
    if subject.adapts_layers:
        subject.learn_agnostic([_specs(subject, subject.sample(shape, rng), Words(), rng) for _ in range(N_AGNOSTIC)])
    scores: dict[str, list[float]] = {}
    answered = []
    for number in tqdm(range(n_episodes), disable=not progress, desc=meta_model.name, mininterval=5.0):
        episode, specs, rng = subject.draw(shape, seed, number)
        answers, own, others = _answer(subject, episode, specs, rng)
        for name, predicted in answers.items():
            scores.setdefault(name, []).append(float((predicted == episode.query_labels).mean()))
        answered.append(Answered(len(episode.support), own, episode.query_labels, others))
    accuracy = {name: metrics.figure(values) for name, values in _best_sum(scores).items()}
    figures = {"descriptions_digest": texts_digest(subject.texts), "accuracy": accuracy}
    return {
        "meta_model": meta_model.name,
        "meta_model_digest": meta_model.digest,
        "given": "words and images" if shape.n_shot else "words",
        **column(images, shape, figures, n_episodes=n_episodes, seed=seed, within_group=within_group),
        **calibration.report(answered, meta_model.manifest),
    }


def every_image(
    meta_model: MetaModel, images: ImageSet, texts: Mapping[str, ClassTexts], *, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """The papers' protocol of zero-shot learning: one task of all classes, by words alone, and every image asked about.

    Figures are means of the classes' accuracies (N3, equation 7), over N_DRAWINGS random documents of each class.
    """
    subject, everything = Subject(meta_model, images, texts), np.arange(len(images.labels))
    task = Episode(np.arange(images.n_classes), NOTHING, NOTHING, NOTHING, everything, images.labels)
    scores: dict[str, list[float]] = {}
    for number in tqdm(range(N_DRAWINGS), disable=not progress, desc=meta_model.name):
        rng = np.random.default_rng([seed, number])
        for name, words in GIVEN.items():
            network = subject.network(subject.write(_specs(subject, task, words, rng)))
            logits = np.concatenate([network(everything[i : i + 64]) for i in range(0, len(everything), 64)])
            found = metrics.per_class_accuracy(logits.argmax(-1), images.labels, images.n_classes)
            scores.setdefault(name, []).append(found)
    return {
        "meta_model": meta_model.name,
        "meta_model_digest": meta_model.digest,
        "given": "words",
        "protocol": "every image of every class",
        "n_drawings": N_DRAWINGS,
        "seed": seed,
        "data_digest": images.digest,
        "descriptions_digest": texts_digest(subject.texts),
        "n_classes": images.n_classes,
        "n_images": len(everything),
        "hardware": HARDWARE,
        "per_class_accuracy": {name: metrics.figure(values) for name, values in scores.items()},
        "chance": round(100 / images.n_classes, 2),
    }


def calibrate(
    meta_model: MetaModel, images: ImageSet, texts: Mapping[str, ClassTexts], *, n_episodes: int = 60, seed: int = 1
) -> Calibration:
    """Temperatures and abstention threshold, chosen on validation classes over the kinds of task users bring."""
    rng, subject = np.random.default_rng(seed), Subject(meta_model, images, texts)
    answered = []
    for shape in _calibration_shapes(images, shots=meta_model.manifest.accepts_images):
        for _ in range(n_episodes):
            episode = sample(images, shape, rng)
            network = subject.network(subject.write(_specs(subject, episode, Words(), rng)))
            own, others = network(episode.query), network(_others(images, episode, rng))
            answered.append(Answered(len(episode.support), own, episode.query_labels, others))
    return calibration.fit(answered)


def _calibration_shapes(images: ImageSet, *, shots: bool) -> list[EpisodeShape]:
    """As far as the classes go, with one to spare: its images are the unknown ones."""
    most = max(2, images.n_classes - 1)
    shapes = [shape for shape in CALIBRATION if shots or not shape.n_shot]
    return list(dict.fromkeys(shrink(replace(s, n_way=min(s.n_way, most)), images) for s in shapes))


def _answer(
    subject: Subject, episode: Episode, specs: Sequence[ClassSpec], rng: np.random.Generator
) -> tuple[dict[str, NDArray[np.int64]], Logits, Logits]:
    """One task answered in every way: predictions by name, the logits, and those of images of other classes."""
    query = episode.query
    written = subject.write(specs)
    network = subject.network(written)
    own = network(query)
    found = {"generated": own}
    if subject.adapts_layers:
        alone = subject.write_head(specs) if len(episode.support) else written  # fitted to images, they differ
        found["classification_layer_alone"] = subject.head(alone, query)
        found["task_agnostic_layers"] = subject.network(subject.write(specs, codes=subject.agnostic))(query)
    found["shuffled"] = subject.head(subject.write_head([specs[k] for k in rng.permutation(len(specs))]), query)
    found["random_text"] = subject.head(subject.write_head(_without_sense(specs, subject, rng)), query)
    controls = ("names_withheld",) if len(episode.support) else ("names_alone", "names_withheld")
    for name in controls:  # beside images a name alone is not read
        words = GIVEN[name]
        found[name] = subject.head(subject.write_head(_specs(subject, episode, words, rng)), query)
    predictions = {}
    if len(episode.support):
        found |= _of_either(subject, episode, specs)
        predictions = _closed_forms(episode, subject.features_for(written))
    predictions |= {name: logits.argmax(-1) for name, logits in found.items()}
    return predictions, own, network(_others(subject.images, episode, rng))


def _of_either(subject: Subject, episode: Episode, specs: Sequence[ClassSpec]) -> dict[str, Logits]:
    """Words alone, images alone, one of them for each class, and sums of the first two."""
    query = episode.query
    described, shown = [replace(s, images=()) for s in specs], [replace(s, description="") for s in specs]
    mixed = [both[k % 2] for k, both in enumerate(zip(shown, described, strict=True))]
    words, images = (subject.network(subject.write(given))(query) for given in (described, shown))
    found = {"words_alone": words, "images_alone": images, "mixed": subject.network(subject.write(mixed))(query)}
    temperature = partial(subject.meta_model.manifest.temperature_for, len(specs))
    both = [
        np.log(decision.probabilities(z, temperature(n)) + 1e-12)
        for z, n in ((words, 0), (images, len(episode.support)))
    ]
    for weight in WEIGHTS:
        found[f"sum {weight}"] = (weight * both[0] + (1 - weight) * both[1]).astype(np.float32)
    return found


def _closed_forms(
    episode: Episode, features: Callable[[NDArray[np.int64]], NDArray[np.float32]]
) -> dict[str, NDArray[np.int64]]:
    """The simplest things one can do with the same features."""
    support, queries = features(episode.support), features(episode.query)
    return {
        "nearest_centroid": nearest_centroid(support, episode.support_labels, queries),
        "logistic_regression": logistic_regression(support, episode.support_labels, queries),
    }


def _best_sum(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    """Of the plain sums the best alone."""
    sums = [values for name, values in scores.items() if name.startswith("sum ")]
    kept = {name: values for name, values in scores.items() if not name.startswith("sum ")}
    return {**kept, "weighted_sum": max(sums, key=np.mean)} if sums else kept


def _specs(subject: Subject, episode: Episode, words: Words, rng: np.random.Generator) -> list[ClassSpec]:
    """The classes of an episode as a user would send them."""
    pixels = subject.images.pixels
    return [
        ClassSpec(*words.spec(subject.texts[k], i, rng), tuple(pixels[episode.support[episode.support_labels == i]]))
        for i, k in enumerate(episode.classes)
    ]


def _without_sense(specs: Sequence[ClassSpec], subject: Subject, rng: np.random.Generator) -> list[ClassSpec]:
    """The same images, with numbers for names and as many random words of all classes for descriptions."""
    drawn = [" ".join(rng.choice(subject.vocabulary, len(spec.description.split()) or 1)) for spec in specs]
    return [replace(spec, name=str(i), description=drawn[i]) for i, spec in enumerate(specs)]


def _others(images: ImageSet, episode: Episode, rng: np.random.Generator) -> NDArray[np.int64]:
    """A few images of classes that the task does not have."""
    others = np.flatnonzero(~np.isin(images.labels, episode.classes))
    return rng.choice(others, N_UNKNOWN) if len(others) else others
