"""N3's plots: what is added to each layer, features before and after, and which classes are taken for others.

All of tasks of words alone, of classes unseen in training. Drawing is in plots.py, what is computed in n3_probes.py.
"""

from __future__ import annotations

import numpy as np

from training import n3_probes, plots, probes
from training.described_tasks import Subject as Network
from training.page import Plot
from training.subjects import Options, Subject

WAYS, N_TASKS, N_IMAGES, N_CONFUSIONS = 10, 20, 30, 5


def magnitudes(subject: Subject, options: Options) -> Plot:
    """The magnitude of adaptation of each layer and kind of layer (N3, Appendix C, Figure 6)."""
    network = _network(subject, options)
    found = n3_probes.magnitudes(network, N_TASKS, WAYS, options.seed)
    mean, deviation = 100 * found.relative.mean(axis=0), 100 * found.relative.std(axis=0)
    kinds = np.array(found.kinds)
    said = ", ".join(f"{kind} {mean[kinds == kind].mean():.2f} %" for kind in dict.fromkeys(found.kinds))
    most = int(mean.argmax())
    caption = (
        "Length (L2) of what is added to each layer's weight, in percent of the length of gamma times it. Thin lines: "
        f"standard deviation over {N_TASKS} tasks. Below, the mean of each kind of layer: {said}. Most changes "
        f"{found.layers[most]}: {mean[most]:.2f} %. The paper draws the lengths themselves. "
        f"{_drawn_from(network, options, N_TASKS)}"
    )
    figure = plots.magnitudes(found.layers, found.kinds, mean, deviation)
    return Plot("Magnitude of adaptation", plots.to_svg(figure), f"Change of the layers: {said}.", caption)


def before_and_after(subject: Subject, options: Options) -> Plot:
    """The penultimate activations before and after the adaptation (N3, section 5)."""
    network = _network(subject, options)
    found = n3_probes.before_and_after(network, WAYS, N_IMAGES, options.seed)
    spreads = [n3_probes.spread(features, found.labels) for features in (found.before, found.after)]
    said = f"{spreads[0]:.3f} before, {spreads[1]:.3f} after"
    caption = (
        "Each point is an image of one task: what the classification layer sees of it, by the base as it is and by "
        "the network written from words, each laid out by scikit-learn's t-SNE. Mean squared distance to the class's "
        f"mean over that to the mean of all (smaller: classes lie apart): {said}. The written network answers "
        f"{100 * found.accuracy:.1f} % of these images rightly. {_drawn_from(network, options, 1)}"
    )
    positions = [probes.flatten_map(features, options.seed) for features in (found.before, found.after)]
    figure = plots.before_and_after(positions[0], positions[1], found.labels, found.names)
    alt = f"Maps of features before and after the adaptation; spread within classes {said}."
    return Plot("Features before and after", plots.to_svg(figure), alt, caption)


def confusion(subject: Subject, options: Options) -> Plot:
    """The confusion matrix of unseen classes, words alone (N3, section 5)."""
    network = _network(subject, options)
    found = n3_probes.confusion(network, N_IMAGES, options.seed)
    wrong = found.shares - np.diag(np.diag(found.shares))
    worst = [divmod(int(i), len(wrong)) for i in np.argsort(-wrong, axis=None, kind="stable")[:N_CONFUSIONS]]
    pairs = [f"{found.names[i]} called {found.names[j]} {100 * wrong[i, j]:.0f} %" for i, j in worst if wrong[i, j]]
    said = f"Most often: {', '.join(pairs)}." if pairs else "None is taken for another."
    caption = (
        f"Answers to {found.n_images} images of {len(found.names)} classes by one network written from words alone; "
        f"{100 * np.diag(found.shares).mean():.1f} % are right. White is none of a class's images, the darkest "
        "all of them; classes that are taken for one another are neighbours. "
        f"{said} {_drawn_from(network, options, 1)}"
    )
    figure = plots.confusion(found.shares, found.names)
    return Plot("Confusion matrix", plots.to_svg(figure), f"Confusion of {len(found.names)} classes. {said}", caption)


def _network(subject: Subject, options: Options) -> Network:
    """The exported network with the images and texts of the report."""
    images = options.images.unseen_by(subject)
    return Network(subject.meta_model, images, options.images.texts_of(subject.dataset))


def _drawn_from(network: Network, options: Options, n_tasks: int) -> str:
    images = network.images
    tasks = f"{n_tasks} task{'s' if n_tasks != 1 else ''}"
    return f"{tasks}, seed {options.seed}, data digest {images.digest} ({images.n_classes} classes)."
