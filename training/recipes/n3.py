"""Train N3: tasks of described classes in, cross-entropy of images under the adapted networks out.

    training fit n3 --config words

First what has a closed form, on the features of the base as it is (``training/closed_forms.py``); then the generator,
by gradient. While it trains, no class's text is remembered by the regression that is asked about it (cross-fitting).

Shapes: C training classes with images, A of them and further ones with texts alone, V documents a class, F features.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from models.methods.n3 import N3, N3Config
from models.nn.bases import Base, BaseSpec
from training import augment, checkpoint, run_log
from training.closed_forms import Projection
from training.configs.n3 import Config
from training.data import descriptions
from training.data.folders import DataError, ImageSet
from training.described import Material, Task, draw_queries, draw_task, imagine, known_texts, prepare
from training.encoded import EncodedTexts, encode_texts, read_encoder
from training.episodes import EpisodeShape, shrink
from training.pretrained import origin, read_base
from training.runtime import Runtime
from training.schedule import learning_rate

METHOD = "n3"
VALIDATION_WAYS, N_VALIDATION_TASKS, N_VALIDATION_QUERIES = 10, 12, 10


def fit(
    config: Config,
    train: ImageSet,
    validation: ImageSet,
    run: Path,
    runtime: Runtime,
    *,
    texts: dict[str, descriptions.ClassTexts] | None = None,
    own_images: bool = False,
    checkpoint_every_s: float = 120.0,
    validate_every: int = 100,
    stop_after: int | None = None,
) -> N3:
    """Train to ``config.n_steps``, resuming from ``run/checkpoint.safetensors`` where there is one.

    ``texts``: of the classes (None: those of the config's data set). ``own_images``: whether they are a user's own.
    Raises DataError where a class has no text, and where those for validation are too few to calibrate on.
    """
    torch.manual_seed(config.seed)
    _check_validation(config, validation)
    texts = texts or descriptions.of_dataset(config.dataset)
    path, unseen = run / "checkpoint.safetensors", set(validation.class_names)
    base, projection, known = _begun(path, config, train) if path.exists() else _base_of(config)
    digest = descriptions.texts_digest(known_texts(config, train, texts, unseen))
    checkpoint.refuse_other(path, known, {"descriptions_digest": digest})
    unseen_texts = _encode_unseen(config, validation, texts)
    material, model = prepare(config, base, train, texts, unseen, runtime, projection=projection)
    model.to(runtime.device)
    facts = {"method": METHOD, "config": asdict(replace(config, model=model.config)), "own_images": own_images}
    facts |= {"train_data_digest": train.digest, "descriptions_digest": digest, "train_classes": train.n_classes}
    optimizer = _make_optimizer(config, model)
    first = int(checkpoint.load(path, model, optimizer)["step"]) if path.exists() else 0
    last = config.n_steps if stop_after is None else min(config.n_steps, first + stop_after)
    saved, smoothed = time.monotonic(), math.nan
    steps = tqdm(range(first, last), initial=first, total=config.n_steps, disable=not runtime.is_main, mininterval=5.0)
    for step in steps:
        if runtime.is_main and step % validate_every == 0 and (step > first or not first):
            run_log.append(run, {"step": step, "loss": smoothed, **validate(model, validation, unseen_texts, runtime)})
        loss = _train_step(config, model, optimizer, material, runtime, step, path)
        smoothed = loss if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * loss
        steps.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
        done = step + 1
        if runtime.is_main and (done == last or time.monotonic() - saved > checkpoint_every_s):
            checkpoint.save(path, model, optimizer, {**facts, **known, "step": done})
            saved = time.monotonic()
    if runtime.is_main and first < last:
        run_log.append(run, {"step": last, "loss": smoothed, **validate(model, validation, unseen_texts, runtime)})
    return model


def load_model(path: Path) -> tuple[N3, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the checkpoint's header."""
    header = checkpoint.read_header(path)
    try:
        fields = dict(header["config"]["model"])
        base = BaseSpec.from_json(fields["base"])
        model = N3(N3Config(**{**fields, "base": base, "adapts": tuple(fields["adapts"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of this version's N3 ({error}); fit again.") from error
    checkpoint.load(path, model)
    return model.eval(), header


@torch.no_grad()
def validate(model: N3, images: ImageSet, texts: EncodedTexts, runtime: Runtime) -> dict[str, float]:
    """Accuracies (0..1) on fixed 10-way tasks of unseen classes, words alone; ``base``: with no layer adapted."""
    model.eval()
    scores: dict[str, list[float]] = {"adapted": [], "base": []}
    rng = np.random.default_rng(1)
    for _ in range(N_VALIDATION_TASKS):
        classes = rng.permutation(images.n_classes)[:VALIDATION_WAYS]
        tokens, mask = (torch.from_numpy(part).to(runtime.device) for part in texts.padded([(k, 0) for k in classes]))
        nothing = torch.zeros(len(classes), 1, model.config.n_features, device=runtime.device)
        adaptation = model.generate(tokens, mask, nothing, nothing[..., 0])
        chosen = np.concatenate([rng.permutation(images.indices[k])[:N_VALIDATION_QUERIES] for k in classes])
        labels = _positions(images.labels[chosen], classes).to(runtime.device)
        pixels = torch.from_numpy(images.pixels[chosen]).to(runtime.device)
        for name, codes in (("adapted", adaptation.codes), ("base", {})):
            logits = model.classify(adaptation._replace(codes=codes), pixels)
            scores[name].append((logits.argmax(-1) == labels).float().mean().item())
    model.train()
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


def _check_validation(config: Config, images: ImageSet) -> None:
    """Raise DataError where an export could not calibrate on these classes."""
    try:
        shrink(EpisodeShape(2, int(max(config.shots) > 0), 1), images)
    except DataError as error:
        remedy = "Add images of that class, or leave it out: an export is calibrated on the classes that validate."
        raise DataError(f"{error} {remedy}") from error


def _make_optimizer(config: Config, model: N3) -> torch.optim.Optimizer:
    """AdamW; the classification layer, which starts at what is known, learns at a share of the rate."""
    model.target.requires_grad_(False)
    head = {id(p) for p in model.head}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in head]
    groups = [{"params": model.head, "share": config.head_share}, {"params": others, "share": 1.0}]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _train_step(
    config: Config,
    model: N3,
    optimizer: torch.optim.Optimizer,
    material: Material,
    runtime: Runtime,
    step: int,
    path: Path,
) -> float:
    """One optimiser step on tasks that are a function of (seed, step, rank); returns the loss on images.

    Raises CheckpointError, the weights and the run's checkpoint ``path`` as they were, where it is not finite.
    """
    rng = np.random.default_rng([config.seed, step, runtime.rank])
    on = _loss_on_images if model.layers and step >= config.n_head_steps else _loss_on_features
    loss = on(config, model, material, runtime, rng)
    total = loss
    if config.n_imagined:
        total = total + _loss_on_imagined(config, model, material, runtime, rng)
    optimizer.zero_grad()
    torch.autograd.backward(total)
    parameters = [p for p in model.parameters() if p.grad is not None]
    runtime.average([p.grad for p in parameters if p.grad is not None])
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = group["share"] * learning_rate(config.learning_rate, step, config.n_steps, config.warmup_steps)
    found = checkpoint.finite_loss(loss, norm, step, path)
    optimizer.step()
    return found


def _loss_on_images(
    config: Config, model: N3, material: Material, runtime: Runtime, rng: np.random.Generator
) -> Tensor:
    """Images of a task of training classes, through the adapted network."""
    task = _to(draw_task(material, config, rng, imagined=False), runtime)
    chosen = draw_queries(material, task, config.n_queries, rng)
    labels = _positions(material.images.labels[chosen], task.classes).to(runtime.device)
    random = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pixels = torch.from_numpy(material.images.pixels[chosen]).to(runtime.device)
    pixels = augment.distort_pixels(pixels, random, config.augmentation)
    adaptation = model.generate(*task.inputs, prior=task.prior)
    adapted = model.adapted(adaptation)
    with runtime.autocast():
        raw = model.features(adapted, pixels)
    return F.cross_entropy(model.logits(adaptation, raw.float()), labels)


def _loss_on_features(
    config: Config, model: N3, material: Material, runtime: Runtime, rng: np.random.Generator
) -> Tensor:
    """The same on features of the base as it is: the classification layer alone, hundreds of times as fast."""
    task = _to(draw_task(material, config, rng, imagined=False), runtime)
    chosen = draw_queries(material, task, max(config.n_queries, config.n_imagined), rng)
    labels = _positions(material.images.labels[chosen], task.classes).to(runtime.device)
    _, weight, bias = model.generate(*task.inputs, prior=task.prior)
    features = torch.from_numpy(material.features[chosen]).to(runtime.device)
    return F.cross_entropy(F.linear(features, weight, bias), labels)


def _loss_on_imagined(
    config: Config, model: N3, material: Material, runtime: Runtime, rng: np.random.Generator
) -> Tensor:
    """Features around the means of any classes, by the classification layer alone."""
    task = _to(draw_task(material, config, rng, imagined=True), runtime)
    labels = rng.integers(len(task.classes), size=config.n_imagined)
    features = imagine(material, task.classes[labels], rng).to(runtime.device)
    _, weight, bias = model.generate(*task.inputs, prior=task.prior)
    return F.cross_entropy(F.linear(features, weight, bias), torch.from_numpy(labels).to(runtime.device))


def _positions(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> Tensor:
    """Labels among all classes -> among a task's."""
    order = np.argsort(classes)
    return torch.from_numpy(order[np.searchsorted(classes[order], labels)])


def _to(task: Task, runtime: Runtime) -> Task:
    moved = [part.to(runtime.device) for part in (*task.inputs, task.prior)]
    return Task(task.classes, task.support, *moved)


def _base_of(config: Config) -> tuple[Base, None, dict[str, Any]]:
    """The base of a new run, and what its header says of it: the files may be others by the time of its export."""
    return read_base(config.base, config.model.base), None, {"base_origin": origin(config.base)}


def _begun(path: Path, config: Config, train: ImageSet) -> tuple[Base, Projection, dict[str, Any]]:
    """The base and projection of a run that goes on: its features stay the same to the last bit, wherever it does.

    And what its header says of base and descriptions; nothing, where an older version began it.
    Raises CheckpointError where it was begun with other images or settings; only how long it goes on may change, the
    precision of its forward passes, where its base lies, what nothing is learned through, and how many steps are on
    features where no layer is adapted: there, all are.
    """
    model, header = load_model(path)
    saved = {**header["config"], **header["config"]["model"], "images": header["train_data_digest"]}
    free = {"model", "base", "dataset", "n_steps", "bf16", "refinement"}
    free |= set() if model.layers else {"n_head_steps"}
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    wanted = {**asdict(config.model), **settings, "images": train.digest}
    filled_in = {"n_remembered", "token_dim"}
    checkpoint.refuse_other(path, saved, {name: value for name, value in wanted.items() if name not in filled_in})
    target = model.target
    parts = (target.center, target.projection.weight, target.projection.bias)
    known = {name: value for name, value in header.items() if name in ("base_origin", "descriptions_digest")}
    return target.base, Projection(*(part.detach().double().numpy() for part in parts)), known


def _encode_unseen(config: Config, images: ImageSet, texts: dict[str, descriptions.ClassTexts]) -> EncodedTexts:
    own = descriptions.in_order(images.class_names, texts)
    return encode_texts(own, read_encoder(config.text_encoder), 1, embeddings=config.embeddings)
