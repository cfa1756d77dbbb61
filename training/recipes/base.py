"""Train a base network from scratch to classify the training classes: what methods then adapt.

    training fit base --config resnet18-tiny

Unseen classes stay unseen: nothing here ever meets them but ``validate``, which measures few-shot accuracy on them.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from models.nn.bases import BaseSpec, Classifier
from training import augment, checkpoint, run_log
from training.baselines import nearest_centroid
from training.configs.base import Config
from training.data.folders import DataError, ImageSet
from training.data.imagenet_text import class_indices
from training.episodes import EpisodeShape, sample, shrink
from training.pretrained import BASE, classifier_rows, read_base
from training.runtime import Runtime
from training.schedule import learning_rate

METHOD = BASE
VALIDATION = EpisodeShape(n_way=5, n_shot=5, n_query=10)
N_VALIDATION_TASKS = 200


def fit(
    config: Config,
    train: ImageSet,
    validation: ImageSet,
    run: Path,
    runtime: Runtime,
    *,
    own_images: bool = False,
    checkpoint_every_s: float = 180.0,
    stop_after: int | None = None,
) -> Classifier:
    """Train to ``config.n_epochs``, resuming from ``run/checkpoint.safetensors`` where there is one.

    ``own_images``: whether they are a user's own, and not those of the config's data set: what is told of the base.
    ``stop_after`` ends (with a checkpoint) after that many further steps, as an interruption would.
    """
    torch.manual_seed(config.seed)
    model, class_rows = _start(config, train, validation)
    model = model.to(runtime.device).to(memory_format=torch.channels_last)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        learned, config.learning_rate, config.momentum, nesterov=True, weight_decay=config.weight_decay
    )
    path, n_batches = run / "checkpoint.safetensors", max(1, len(train.labels) // config.batch_size)
    n_steps = config.n_epochs * n_batches
    shape = shrink(VALIDATION, validation)
    first = _resume(path, config, train, model, optimizer) if path.exists() else 0
    last = n_steps if stop_after is None else min(n_steps, first + stop_after)
    saved, smoothed = time.monotonic(), math.nan
    progress = tqdm(range(first, last), initial=first, total=n_steps, disable=not runtime.is_main, mininterval=5.0)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.learning_rate, step, n_steps, config.warmup_steps)
        loss = _train_step(config, model, optimizer, train, class_rows, runtime, step, n_batches, path)
        smoothed = loss if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * loss
        done = step + 1
        progress.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
        if runtime.is_main and (done % (2 * n_batches) == 0 or done == n_steps):
            accuracy = validate(model, validation, shape)
            run_log.append(run, {"step": done, "loss": round(smoothed, 4), "validation": round(accuracy, 4)})
        if runtime.is_main and (done == last or time.monotonic() - saved > checkpoint_every_s):
            facts = {"train_data_digest": train.digest, "own_images": own_images, "config": asdict(config)}
            facts |= {"method": METHOD, "step": done, "n_classes": len(model.logits.weight)}
            checkpoint.save(path, model, optimizer, facts)
            saved = time.monotonic()
    return model


def _start(config: Config, train: ImageSet, validation: ImageSet) -> tuple[Classifier, NDArray[np.int64]]:
    """The classifier before the first step, and the row of its logits layer of each training class.

    A pretrained one keeps its own rows, fixed, for every class but those of ``validation``: features go on fitting
    classes whose images are not here.
    """
    if not config.pretrained:
        return Classifier(config.base, train.n_classes), np.arange(train.n_classes)
    indices = {c: i for c, i in class_indices().items() if c not in validation.class_names}
    if others := [name for name in train.class_names if name not in indices]:
        remedy = "train these images from scratch, by a config that starts from nothing (resnet18-tiny)"
        raise DataError(f"{config.pretrained} has no row for {others[0]!r}, which is no WordNet id; {remedy}.")
    names = sorted(indices)
    model = Classifier(config.base, len(names), folded=True)
    model.network.load_state_dict(read_base(config.pretrained, config.base).network.state_dict())
    weight, bias = classifier_rows()
    with torch.no_grad():
        model.logits.weight.copy_(torch.from_numpy(weight[[indices[c] for c in names]]))
        model.logits.bias.copy_(torch.from_numpy(bias[[indices[c] for c in names]]))
    model.logits.requires_grad_(False)
    return model, np.array([names.index(c) for c in train.class_names])


@torch.no_grad()
def validate(model: Classifier, images: ImageSet, shape: EpisodeShape = VALIDATION) -> float:
    """Few-shot accuracy (0..1) of nearest centroid on features of unseen classes."""
    model.eval()
    device = next(model.parameters()).device
    runs = torch.from_numpy(images.pixels).split(256)
    features = torch.cat([model.features(run.to(device)).float().cpu() for run in runs]).numpy()
    rng, correct = np.random.default_rng(1), 0.0
    for _ in range(N_VALIDATION_TASKS):
        episode = sample(images, shape, rng)
        found = nearest_centroid(features[episode.support], episode.support_labels, features[episode.query])
        correct += float((found == episode.query_labels).mean())
    model.train()
    return correct / N_VALIDATION_TASKS


def _train_step(
    config: Config,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    class_rows: NDArray[np.int64],
    runtime: Runtime,
    step: int,
    n_batches: int,
    path: Path,
) -> float:
    """One optimiser step on a batch that is a function of (seed, step, rank); returns the loss.

    Raises CheckpointError, the weights and the run's checkpoint ``path`` as they were, where it is not finite.
    """
    epoch, batch = divmod(step, n_batches)
    order = np.random.default_rng([config.seed, epoch, runtime.rank]).permutation(len(images.labels))
    chosen = order[batch * config.batch_size : (batch + 1) * config.batch_size]
    random = torch.Generator().manual_seed(config.seed * 1_000_003 + step * 31 + runtime.rank)
    pixels = torch.from_numpy(images.pixels[chosen]).to(runtime.device)
    labels = torch.from_numpy(class_rows[images.labels[chosen]]).to(runtime.device)
    with runtime.autocast():
        logits = model(augment.distort_pixels(pixels, random, config.augmentation))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # each process met its own images
    runtime.average([*(p.grad for p in model.parameters() if p.grad is not None), *statistics])
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    found = checkpoint.finite_loss(loss, norm, step, path)
    optimizer.step()
    return found


def _resume(path: Path, config: Config, train: ImageSet, model: Classifier, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint; returns the steps done.

    Raises CheckpointError where the run was begun with other images or settings; only how long it goes on may change,
    and the precision of its forward passes.
    """
    header = checkpoint.load(path, model, optimizer)
    settings = {name: value for name, value in asdict(config).items() if name not in ("n_epochs", "bf16")}
    saved = {**asdict(_config_of(header, path)), "images": header["train_data_digest"]}
    checkpoint.refuse_other(path, saved, {**settings, "images": train.digest})
    return int(header["step"])


def _config_of(header: dict[str, Any], path: Path) -> Config:
    """That of a checkpoint; what is newer than it has its default."""
    try:
        return Config(**{**header["config"], "base": BaseSpec.from_json(header["config"]["base"])})
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} is not of this version's bases ({error}); start a new run folder with --run."
        raise checkpoint.CheckpointError(message) from error
