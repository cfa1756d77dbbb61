"""Train a HyperTransformer: episodes in, cross-entropy of the queries under the written networks out.

    training fit hypertransformer --config omniglot-8 --run runs/omniglot-8

Where the paper takes 4 million one-episode steps of plain SGD, this takes thousands of steps of many episodes with
AdamW, warm-up, cosine decay and clipping (section 5.1, Appendix C; the paper reports instability without these).
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.methods.hypertransformer import HyperTransformer, HyperTransformerConfig
from training import augment, checkpoint, run_log
from training.configs.hypertransformer import Config
from training.data.folders import ImageSet, with_rotations
from training.episodes import Episode, EpisodeShape, sample
from training.losses import among_training_classes, of_queries
from training.runtime import Runtime
from training.schedule import learning_rate

METHOD = "hypertransformer"
N_VALIDATION_STEPS, N_VALIDATION_TASKS = 8, 16


class Trained(HyperTransformer):
    """A HyperTransformer, and a row for each training class where a share of the loss is among them (``dense``)."""

    rows: nn.Parameter | None

    def __init__(self, config: HyperTransformerConfig, n_classes: int = 0) -> None:
        super().__init__(config)
        rows = nn.Parameter(torch.randn(n_classes, config.feature_dim)) if n_classes else None
        self.register_parameter("rows", rows)


def fit(
    config: Config,
    train: ImageSet,
    validation: ImageSet,
    run: Path,
    runtime: Runtime,
    *,
    own_images: bool = False,
    checkpoint_every_s: float = 120.0,
    validate_every: int = 250,
    stop_after: int | None = None,
) -> HyperTransformer:
    """Train to ``config.n_steps``, resuming from ``run/checkpoint.safetensors`` where there is one.

    ``own_images``: whether they are a user's own, and not those of the config's data set: what is told of the run.
    ``stop_after`` ends (with a checkpoint) after that many further steps, as an interruption would. Losses and
    validation accuracies are appended to ``run/log.jsonl``.
    """
    torch.manual_seed(config.seed)
    classes = with_rotations(train) if config.turned else train
    n_rows = classes.n_classes if config.dense else 0
    model = Trained(config.model, n_rows).to(runtime.device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    path, first = run / "checkpoint.safetensors", 0
    if path.exists():
        first = _resume(path, config, train, model, optimizer)
    last = config.n_steps if stop_after is None else min(config.n_steps, first + stop_after)
    progress = tqdm(
        range(first, last), initial=first, total=config.n_steps, disable=not runtime.is_main, mininterval=1.0
    )
    saved, smoothed, accuracy = time.monotonic(), math.nan, math.nan
    for step in progress:
        loss = _train_step(config, model, optimizer, classes, runtime, step, path)
        smoothed = loss if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * loss
        done = step + 1
        if runtime.is_main and (done % validate_every == 0 or done == config.n_steps):
            accuracy = validate(model, config, validation, runtime)
            run_log.append(run, {"step": done, "loss": round(smoothed, 4), "validation_accuracy": round(accuracy, 4)})
        progress.set_postfix(loss=f"{smoothed:.3f}", validation=f"{100 * accuracy:.1f}%", refresh=False)
        if runtime.is_main and (done == last or time.monotonic() - saved > checkpoint_every_s):
            facts = {"train_data_digest": train.digest, "own_images": own_images, "config": asdict(config)}
            facts |= {"method": METHOD, "step": done, "n_rows": n_rows}
            checkpoint.save(path, model, optimizer, facts)
            saved = time.monotonic()
    return model


def load_model(path: Path) -> tuple[HyperTransformer, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the checkpoint's header."""
    header = checkpoint.read_header(path)
    try:
        model = Trained(HyperTransformerConfig(**header["config"]["model"]), header.get("n_rows", 0))
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} is not of this version's HyperTransformer ({error}); fit again."
        raise checkpoint.CheckpointError(message) from error
    checkpoint.load(path, model)
    model.rows = None  # nothing is written with them
    return model.eval(), header


@torch.no_grad()
def validate(
    model: HyperTransformer, config: Config, images: ImageSet, runtime: Runtime, n_steps: int = N_VALIDATION_STEPS
) -> float:
    """Query accuracy (0..1) on ``n_steps * N_VALIDATION_TASKS`` fixed validation episodes."""
    model.eval()
    rng, correct = np.random.default_rng(config.seed + 1), 0.0
    for _ in range(n_steps):
        episodes = [sample(images, config.validation, rng) for _ in range(N_VALIDATION_TASKS)]
        support, labels, slots, queries, targets = assemble(config.model, images, episodes, runtime.device, rng)
        with runtime.autocast():
            network = model.generate(support, labels, slots)
            features = model.features(network, queries)
        logits = network.classify(features.float())
        correct += (logits.argmax(-1) == targets).float().mean().item()
    model.train()
    return correct / n_steps


def assemble(
    config: HyperTransformerConfig,
    images: ImageSet,
    episodes: list[Episode],
    device: torch.device,
    rng: np.random.Generator,
    *,
    random: torch.Generator | None = None,
    augmentation: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Episodes of one shape -> support ``(B, S, C, H, W)``, labels ``(B, S)``, slots ``(B, K)``, queries, targets.

    Queries ``(B, Q, C, H, W)``, targets ``(B, Q)``. Each task gets random label slots, so that all of them are trained.
    ``random`` switches augmentation on; without it, images have the size that the network takes.
    """
    slots = np.stack([rng.permutation(config.max_classes)[: len(e.classes)] for e in episodes])
    labels = np.stack(
        [
            np.concatenate([s[e.support_labels], np.full(len(e.unlabeled), config.max_classes)])
            for s, e in zip(slots, episodes, strict=True)
        ]
    )
    indices = np.stack([np.concatenate([e.support, e.unlabeled, e.query]) for e in episodes])
    pixels = torch.from_numpy(images.pixels[indices]).to(device).movedim(-1, 2).float() / 255
    if random is not None:
        pixels = _augment(pixels, _class_numbers(episodes), random, augmentation, config.image_size)
    pixels = (pixels - config.pixel_mean) / config.pixel_std
    n_support = labels.shape[1]
    targets = np.stack([e.query_labels for e in episodes])
    on_device = [torch.from_numpy(array).to(device) for array in (labels, slots, targets)]
    return pixels[:, :n_support], on_device[0], on_device[1], pixels[:, n_support:], on_device[2]


def _resume(
    path: Path, config: Config, train: ImageSet, model: HyperTransformer, optimizer: torch.optim.Optimizer
) -> int:
    """Load the checkpoint; returns the steps done.

    Raises CheckpointError where the run was begun with other images or settings; only how long it goes on may change,
    and the precision of its forward passes.
    """
    header = checkpoint.load(path, model, optimizer)
    begun = _config_of(header, path)
    checkpoint.refuse_other(path, asdict(begun.model), asdict(config.model))
    settings = {name: value for name, value in asdict(config).items() if name not in ("model", "n_steps", "bf16")}
    checkpoint.refuse_other(path, asdict(begun), settings)
    checkpoint.refuse_other(path, header, {"train_data_digest": train.digest})
    return int(header["step"])


def _config_of(header: dict[str, Any], path: Path) -> Config:
    """That of a checkpoint; what is newer than it has its default."""
    try:
        fields = dict(header["config"])
        read = {
            "model": HyperTransformerConfig(**fields["model"]),
            "shapes": tuple((weight, EpisodeShape(**shape)) for weight, shape in fields["shapes"]),
            "validation": EpisodeShape(**fields["validation"]),
        }
        return Config(**{**fields, **read})
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} is not of this version's HyperTransformer ({error}); start a new run folder with --run."
        raise checkpoint.CheckpointError(message) from error


def _train_step(
    config: Config,
    model: Trained,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    runtime: Runtime,
    step: int,
    path: Path,
) -> float:
    """One optimiser step on episodes that are a function of (seed, step, rank); returns the loss.

    Raises CheckpointError, the weights and the run's checkpoint ``path`` as they were, where it is not finite.
    """
    shape = _shape_of(config, step)
    rng = np.random.default_rng([config.seed, step, runtime.rank])
    random = torch.Generator().manual_seed(int(rng.integers(2**62)))
    episodes = [
        sample(images, shape, rng, within_group=bool(rng.random() < config.within_group))
        for _ in range(max(1, round(config.images_per_step / shape.n_images)))
    ]
    support, labels, slots, queries, targets = assemble(
        config.model, images, episodes, runtime.device, rng, random=random, augmentation=config.augmentation
    )
    with runtime.autocast():
        network = model.generate(support, labels, slots)
        features = model.features(network, queries)
    # Not in half precision: logits are small differences of large numbers, a dot product and a squared length.
    features = features.float()
    loss = of_queries(network, features, targets, episodes, config.across_tasks)
    if model.rows is not None:
        loss = (1 - config.dense) * loss + config.dense * among_training_classes(
            model.rows, features, targets, episodes
        )
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    parameters = [p for p in model.parameters() if p.grad is not None]
    # Running statistics, too: each process met tasks of its own.
    runtime.average([*(p.grad for p in parameters if p.grad is not None), *model.buffers()])
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.learning_rate, step, config.n_steps, config.warmup_steps)
    found = checkpoint.finite_loss(loss, norm, step, path)
    optimizer.step()
    return found


def _shape_of(config: Config, step: int) -> EpisodeShape:
    """The kind of episode of a step: the same on every process."""
    weights = np.array([weight for weight, _ in config.shapes])
    choice = np.random.default_rng([config.seed, step]).choice(len(weights), p=weights / weights.sum())
    return config.shapes[choice][1]


def _class_numbers(episodes: list[Episode]) -> Tensor:
    """A number for each class of each task, for every image of ``assemble``: ``(B, N)``, on the CPU."""
    n_way = len(episodes[0].classes)
    positions = [
        np.concatenate([e.support_labels, np.repeat(np.arange(n_way), len(e.unlabeled) // n_way), e.query_labels])
        for e in episodes
    ]
    return torch.from_numpy(np.stack(positions) + n_way * np.arange(len(episodes))[:, None])


def _augment(pixels: Tensor, classes: Tensor, random: torch.Generator, strength: float, size: int) -> Tensor:
    """Distort each image ``(B, N, C, H, W)`` in 0..1 to ``size``; drawings are one-channel, dark on white."""
    images = pixels.flatten(0, 1)
    if images.shape[1] == 1:
        images = 1 - augment.distort_strokes(1 - images, classes.flatten(), random, strength, size=size)
    else:
        images = augment.distort_photographs(images, random, strength)
    distorted: Tensor = images.unflatten(0, pixels.shape[:2])
    return distorted
