"""Train a base network from scratch to classify the training classes: what methods then adapt.

    training fit base --config resnet18-tiny

Unseen classes stay unseen: nothing here ever meets them but ``validate``, which measures few-shot accuracy on them.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from models.nn.bases import unfolded
from models.nn.conv4 import normalise
from training import augment, checkpoint
from training.baselines import nearest_centroid
from training.configs.base import Config
from training.data.folders import ImageSet
from training.episodes import EpisodeShape, sample
from training.runtime import Runtime

METHOD = "base"
VALIDATION = EpisodeShape(n_way=5, n_shot=5, n_query=10)
N_VALIDATION_TASKS = 200


class Classifier(nn.Module):
    """A base network with a logits layer for the training classes."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: Config, n_classes: int) -> None:
        super().__init__()
        spec = config.base
        self.network, n_features = unfolded(spec.architecture)
        self.logits = nn.Linear(n_features, n_classes)
        self.register_buffer("pixel_mean", torch.tensor(spec.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(spec.pixel_std), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels ``(N, H, W, C)`` uint8 or float of that range -> features ``(N, F)``."""
        images = normalise(pixels, self.pixel_mean, self.pixel_std)
        features: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return features.flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> logits ``(N, n_classes)``."""
        logits: Tensor = self.logits(self.features(pixels))
        return logits


def fit(
    config: Config,
    train: ImageSet,
    validation: ImageSet,
    run: Path,
    runtime: Runtime,
    *,
    checkpoint_every_s: float = 180.0,
    stop_after: int | None = None,
) -> Classifier:
    """Train to ``config.n_epochs``, resuming from ``run/checkpoint.safetensors`` where there is one.

    ``stop_after`` ends (with a checkpoint) after that many further steps, as an interruption would.
    """
    torch.manual_seed(config.seed)
    model = Classifier(config, train.n_classes).to(runtime.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=config.momentum, nesterov=True,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    path, n_batches = run / "checkpoint.safetensors", max(1, len(train.labels) // config.batch_size)
    n_steps = config.n_epochs * n_batches
    first = int(checkpoint.load(path, model, optimizer)["step"]) if path.exists() else 0
    last = n_steps if stop_after is None else min(n_steps, first + stop_after)
    saved, smoothed = time.monotonic(), math.nan
    progress = tqdm(range(first, last), initial=first, total=n_steps, disable=not runtime.is_main, mininterval=5.0)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(config, step, n_steps)
        loss = _train_step(config, model, optimizer, train, runtime, step, n_batches)
        smoothed = loss if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * loss
        done = step + 1
        progress.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
        if runtime.is_main and (done % (2 * n_batches) == 0 or done == n_steps):
            entry = {"step": done, "loss": round(smoothed, 4), "validation": round(validate(model, validation), 4)}
            _log(run, entry)
        if runtime.is_main and (done == last or time.monotonic() - saved > checkpoint_every_s):
            facts = {"train_data_digest": train.digest, "config": asdict(config), "classes": list(train.class_names)}
            checkpoint.save(path, model, optimizer, {"method": METHOD, "step": done, **facts})
            saved = time.monotonic()
    return model


@torch.no_grad()
def validate(model: Classifier, images: ImageSet) -> float:
    """5-way 5-shot accuracy (0..1) of nearest centroid on features of unseen classes."""
    model.eval()
    device = next(model.parameters()).device
    runs = torch.from_numpy(images.pixels).split(256)
    features = torch.cat([model.features(run.to(device)).float().cpu() for run in runs]).numpy()
    rng, correct = np.random.default_rng(1), 0.0
    for _ in range(N_VALIDATION_TASKS):
        episode = sample(images, VALIDATION, rng)
        found = nearest_centroid(features[episode.support], episode.support_labels, features[episode.query])
        correct += float((found == episode.query_labels).mean()) / N_VALIDATION_TASKS
    model.train()
    return correct


def _train_step(
    config: Config,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    runtime: Runtime,
    step: int,
    n_batches: int,
) -> float:
    """One optimiser step on a batch that is a function of (seed, step, rank); returns the loss."""
    epoch, batch = divmod(step, n_batches)
    order = np.random.default_rng([config.seed, epoch, runtime.rank]).permutation(len(images.labels))
    chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
    random = torch.Generator().manual_seed(config.seed * 1_000_003 + step * 31 + runtime.rank)
    pixels = torch.from_numpy(images.pixels[chosen]).to(runtime.device).movedim(-1, 1).float() / 255
    pixels = augment.distort_photographs(pixels, random, config.augmentation).movedim(1, -1) * 255
    labels = torch.from_numpy(images.labels[chosen]).to(runtime.device)
    with runtime.autocast():
        logits = model(pixels)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    runtime.average([p.grad for p in model.parameters() if p.grad is not None])
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return float(loss.detach())


def _learning_rate(config: Config, step: int, n_steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def _log(run: Path, entry: dict[str, object]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
