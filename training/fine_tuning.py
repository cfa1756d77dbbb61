"""Fine-tuning: what gradient descent on a task's own images makes of the same base, and how long that takes.

Every layer of the base learns, and a new classification layer that starts at zero, so that it does not disturb the base
before it knows the classes. Batch normalisation is folded into the base, so its statistics stay: a few images have none
to speak of. Each query is answered on its own. Words are not read.

The settings were chosen by a quick look: 4 to 6 tasks of 5 of n3-mobilenet's training classes, with 1 and with 5 images
each. Of rates of the base from 1e-5 to 3e-4 the smallest was best with either, and from 1e-4 on accuracy fell with the
rate; with 5 images it was better than the new layer alone, with 1 no better. Starting from logistic regression's rows
gained nothing over starting at zero. The base has met these classes, which favours a small rate: for images of another
kind a larger one may be better.

Shapes: S support images, Q queries, K classes.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from models.nn.bases import Base
from training import metrics
from training.augment import distort_pixels
from training.described_tasks import Subject
from training.episodes import EpisodeShape
from training.pretrained import base_of
from training.schedule import learning_rate

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Logits = NDArray[np.float32]
N_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """How a task is fine-tuned: AdamW, its rates decaying along a cosine."""

    n_steps: int = 50
    """With 25 images each, some 20 s of one core for a MobileNetV2 of 128 px."""
    batch_size: int = 25
    """At most; a task of fewer images has all of them in each step."""
    base_rate: float = 1e-5
    head_rate: float = 1e-2
    weight_decay: float = 0.01
    augmentation: float = 0.5
    """Strength of changes of brightness and contrast; images are mirrored and shifted, too."""


@dataclass(frozen=True)
class FineTuned:
    """A network of one task, pixels -> logits ``(N, K)``, and the seconds that its training took."""

    network: nn.Module
    seconds: float

    @torch.no_grad()
    def answer(self, queries: Pixels) -> Logits:
        """Pixels ``(Q, H, W, C)`` -> logits ``(Q, K)``."""
        runs = torch.from_numpy(queries).split(N_AT_ONCE)
        return torch.cat([self.network(run) for run in runs]).numpy()


def fine_tune(
    base: Base, support: Pixels, labels: Labels, *, settings: Settings | None = None, seed: int = 0
) -> FineTuned:
    """Train a copy of ``base`` on ``support`` ``(S, H, W, C)``, whose classes are ``labels`` 0..K-1.

    A function of its arguments: the same seed gives the same network, and ``base`` stays as it is.
    """
    started = time.perf_counter()
    network = _fit(base, torch.from_numpy(support), torch.from_numpy(labels), settings or Settings(), seed)
    return FineTuned(network, time.perf_counter() - started)


def compare(
    subject: Subject,
    shape: EpisodeShape,
    *,
    n_episodes: int,
    seed: int,
    settings: Settings | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy of the written and of the fine-tuned network on the first tasks of a column; mean seconds to make each.

    ``images_alone`` is written without the descriptions, which fine-tuning does not read either. Raises DataError where
    the meta-model has no base.
    """
    settings, base = settings or Settings(), base_of(subject.meta_model.folder)
    subject.write(subject.draw(shape, seed, n_episodes)[1])  # its sessions are made before any time is taken
    tasks = tqdm(range(n_episodes), disable=not progress, desc="fine-tuning", mininterval=5.0)
    tried = [_try(subject, base, shape, settings, seed, number) for number in tasks]
    accuracy, seconds = zip(*tried, strict=True)
    return {
        "n_episodes": n_episodes,
        "accuracy": {name: metrics.figure([one[name] for one in accuracy]) for name in accuracy[0]},
        "seconds": {name: round(float(np.mean([one[name] for one in seconds])), 4) for name in seconds[0]},
        "n_threads": torch.get_num_threads(),
        "settings": asdict(settings),
    }


def _try(
    subject: Subject, base: Base, shape: EpisodeShape, settings: Settings, seed: int, number: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies (0..1) and seconds of one task, by name."""
    episode, specs, _ = subject.draw(shape, seed, number)
    pixels, query = subject.images.pixels, episode.query
    started = time.perf_counter()
    written = subject.write(specs)
    seconds = time.perf_counter() - started
    tuned = fine_tune(base, pixels[episode.support], episode.support_labels, settings=settings, seed=number)
    silent = subject.write([replace(spec, description="") for spec in specs])
    logits = {
        "generated": subject.network(written)(query),
        "images_alone": subject.network(silent)(query),
        "fine_tuned": tuned.answer(pixels[query]),
    }
    accuracy = {name: float((z.argmax(-1) == episode.query_labels).mean()) for name, z in logits.items()}
    return accuracy, {"generated": seconds, "fine_tuned": tuned.seconds}


def _fit(base: Base, pixels: Tensor, labels: Tensor, settings: Settings, seed: int) -> nn.Module:
    """Pixels -> logits ``(N, K)``; K is one more than the largest label."""
    own, head = copy.deepcopy(base).requires_grad_(True), nn.Linear(base.n_features, int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    rates = ((own, settings.base_rate), (head, settings.head_rate))
    groups = [{"params": list(part.parameters()), "peak": rate} for part, rate in rates]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    random = torch.Generator().manual_seed(seed)
    network, order = nn.Sequential(own, head), _batches(len(labels), settings, random)
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(group["peak"], step, settings.n_steps, 1)
        distorted = distort_pixels(pixels[chosen], random, settings.augmentation)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(distorted), labels[chosen]))
        optimizer.step()
    return network


def _batches(n_images: int, settings: Settings, random: torch.Generator) -> list[Tensor]:
    """``n_steps`` batches: all images in a random order, again and again."""
    size = min(settings.batch_size, n_images)
    n_rounds = -(-settings.n_steps * size // n_images)
    order = torch.cat([torch.randperm(n_images, generator=random) for _ in range(n_rounds)])
    return list(order.split(size)[: settings.n_steps])
