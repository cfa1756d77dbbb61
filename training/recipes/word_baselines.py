"""Train what N3 is compared with: methods that make a classifier of texts and leave the base as it is.

    training fit word-baselines --config tiny-text2model

All are given the same: the base's features, projected as N3's are (training/closed_forms.py), and the same number of
documents of each class, drawn and encoded alike. A linear map has a closed form; MEGAZSL is trained on features of all
training classes, the others on tasks of some of them, with cross-entropy, as N3 is.

Shapes: N images, C training classes, V documents a class, D text embedding, F projected features; K classes, Q queries
of a task.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from models.methods.linear_map import LinearMap, LinearMapConfig
from models.methods.megazsl import Megazsl, MegazslConfig
from models.methods.pdcnn import PDCNN, PDCNNConfig
from models.methods.text2model import Text2Model, Text2ModelConfig
from models.nn.bases import BaseSpec
from training import checkpoint, run_log
from training import closed_forms as forms
from training.configs.word_baselines import Config
from training.data import descriptions
from training.data.folders import ImageSet
from training.pretrained import read_base
from training.runtime import Runtime
from training.schedule import learning_rate
from training.word_features import FEATURES, base_features, training_documents

METHOD = "word-baselines"
RIDGES = tuple(10.0**power for power in np.arange(-2, 4.5, 0.5))
LOG_EVERY = 100
Classifier = LinearMap | Text2Model | PDCNN


class Peer(nn.Module):
    """A method with the projection that its features went through."""

    def __init__(self, config: Config, shapes: dict[str, int]) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.register_buffer("center", torch.zeros(shapes["n_raw"], dtype=torch.float64))
        self.register_buffer("matrix", torch.zeros(config.n_features, shapes["n_raw"], dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(config.n_features, dtype=torch.float64))
        self.method = _method(config, shapes)

    def project(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """The base's own features ``(N, G)`` -> ``(N, F)``."""
        parts = (self.get_buffer(name).cpu().numpy() for name in ("center", "matrix", "bias"))
        return forms.Projection(*parts)(raw).astype(np.float32)


@dataclass(frozen=True)
class Seen:
    """The training classes: features ``(N, F)``, their means ``(C, F)``, maps, labels, and texts ``(C, V, D)``."""

    images: ImageSet
    features: Tensor
    means: Tensor
    maps: Tensor | None
    labels: Tensor
    texts: Tensor


def fit(
    config: Config,
    train: ImageSet,
    run: Path,
    runtime: Runtime,
    *,
    texts: dict[str, descriptions.ClassTexts] | None = None,
    checkpoint_every_s: float = 120.0,
    stop_after: int | None = None,
) -> Peer:
    """Train to ``config.n_steps``, resuming from ``run/checkpoint.safetensors`` where there is one.

    Classes for validation are not met, not even to choose a step. Raises DataError where a class has no text.
    """
    torch.manual_seed(config.seed)
    peer, seen = _prepare(config, train, texts or descriptions.of_dataset(config.dataset), run, runtime)
    path = run / "checkpoint.safetensors"
    facts = {"config": asdict(config), "shapes": peer.shapes, "train_classes": train.n_classes}
    header = {"method": METHOD, "train_data_digest": train.digest, **facts}
    if isinstance(peer.method, LinearMap):
        _fit_linear(peer.method, seen, config.seed)
        checkpoint.save(path, peer, None, {**header, "step": 0})
        return peer.eval()
    optimizer = torch.optim.AdamW(peer.parameters(), weight_decay=config.weight_decay, betas=_betas(config))
    first = int(checkpoint.load(path, peer, optimizer)["step"]) if path.exists() else 0
    last = config.n_steps if stop_after is None else min(config.n_steps, first + stop_after)
    saved, smoothed = time.monotonic(), math.nan
    for step in tqdm(range(first, last), initial=first, total=config.n_steps, disable=not runtime.is_main):
        loss = _step(config, peer.method, optimizer, seen, runtime, step)
        smoothed = loss if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * loss
        done = step + 1
        if runtime.is_main and (done % LOG_EVERY == 0 or done == last):
            run_log.append(run, {"step": done, "loss": round(smoothed, 4)})
        if runtime.is_main and (done == last or time.monotonic() - saved > checkpoint_every_s):
            checkpoint.save(path, peer, optimizer, {**header, "step": done})
            saved = time.monotonic()
    return peer.eval()


def load_peer(path: Path) -> tuple[Peer, dict[str, Any]]:
    """The trained method of a checkpoint, in evaluation mode, and the checkpoint's header."""
    header = checkpoint.read_header(path)
    try:
        fields = dict(header["config"])
        spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["base_spec"].items()}
        config = Config(**{**fields, "base_spec": BaseSpec(**spec), "ways": tuple(fields["ways"])})
        peer = Peer(config, header["shapes"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{path} is not of this version's word baselines ({error}).") from error
    checkpoint.load(path, peer)
    return peer.eval(), header


def _method(config: Config, shapes: dict[str, int]) -> Classifier | Megazsl:
    dims = shapes["text_dim"], config.n_features
    match config.method:
        case "linear":
            return LinearMap(LinearMapConfig(*dims))
        case "text2model":
            return Text2Model(Text2ModelConfig(*dims))
        case "megazsl":
            return Megazsl(MegazslConfig(*dims, n_classes=shapes["n_classes"]))
    return PDCNN(PDCNNConfig(*dims, n_channels=shapes["n_channels"]))


def _prepare(
    config: Config, train: ImageSet, texts: dict[str, descriptions.ClassTexts], run: Path, runtime: Runtime
) -> tuple[Peer, Seen]:
    """The method before its first step, its projection fitted, and what it is taught with."""
    base = read_base(config.base, config.base_spec)
    found = base_features(config, base, train, run.parent / FEATURES, runtime, progress=runtime.is_main)
    own = descriptions.in_order(train.class_names, texts)
    documents = training_documents(config, own, run.parent / FEATURES, progress=runtime.is_main)
    projection = forms.fit_projection(found.raw, train.labels, config.n_features)
    shapes = {
        "n_raw": found.raw.shape[1],
        "n_channels": 0 if found.maps is None else found.maps.shape[1],
        "n_classes": train.n_classes,
        "text_dim": documents.shape[-1],
    }
    peer = Peer(config, shapes)
    for name in ("center", "matrix", "bias"):
        peer.get_buffer(name).copy_(torch.from_numpy(getattr(projection, name)))
    features = projection(found.raw)
    seen = Seen(
        images=train,
        features=torch.from_numpy(features.astype(np.float32)),
        means=torch.from_numpy(forms.class_means(features, train.labels).astype(np.float32)),
        maps=None if found.maps is None else torch.from_numpy(found.maps),
        labels=torch.from_numpy(train.labels),
        texts=torch.from_numpy(documents),
    )
    return peer.to(runtime.device), seen


def _fit_linear(method: LinearMap, seen: Seen, seed: int) -> None:
    """Ridge regression; how strong a ridge, by the error on classes left out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    n_classes, n_documents, dim = seen.texts.shape
    groups = np.repeat(np.arange(n_classes), n_documents)
    folds = GroupKFold(min(forms.N_FOLDS, n_classes), shuffle=True, random_state=seed)
    texts = seen.texts.double().numpy().reshape(-1, dim)
    folded = list(folds.split(texts, groups=groups))
    found = RidgeCV(alphas=RIDGES, cv=folded, scoring="neg_mean_squared_error").fit(
        texts, seen.means.double().numpy()[groups]
    )
    method.weight.copy_(torch.from_numpy(found.coef_))
    method.bias.copy_(torch.from_numpy(found.intercept_))


def _step(
    config: Config, method: nn.Module, optimizer: torch.optim.Optimizer, seen: Seen, runtime: Runtime, step: int
) -> float:
    """One optimiser step on what is a function of (seed, step, rank); returns the loss."""
    rng = np.random.default_rng([config.seed, step, runtime.rank])
    is_gan = isinstance(method, Megazsl)
    peak = config.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = peak if is_gan else learning_rate(peak, step, config.n_steps, config.warmup_steps)
    if isinstance(method, Megazsl):
        return _adversarial_step(config, method, optimizer, seen, runtime, rng)
    loss = _task_loss(config, method, seen, runtime, rng)
    _update(optimizer, loss, list(method.parameters()), runtime)
    return float(loss.detach())


def _task_loss(config: Config, method: nn.Module, seen: Seen, runtime: Runtime, rng: np.random.Generator) -> Tensor:
    """Cross-entropy of images of a task of some classes, a document of each."""
    n_way = int(rng.integers(config.ways[0], min(config.ways[1], seen.images.n_classes) + 1))
    classes = rng.permutation(seen.images.n_classes)[:n_way]
    per_class = max(1, config.n_queries // n_way)
    chosen = torch.from_numpy(np.concatenate([rng.choice(seen.images.indices[k], per_class) for k in classes]))
    labels = torch.arange(n_way).repeat_interleave(per_class)
    texts = seen.texts[torch.from_numpy(classes), torch.from_numpy(rng.integers(seen.texts.shape[1], size=n_way))]
    maps = None if seen.maps is None else seen.maps[chosen].float().to(runtime.device)
    logits = method(texts.to(runtime.device), seen.features[chosen].to(runtime.device), maps)
    return F.cross_entropy(logits, labels.to(runtime.device))


def _adversarial_step(
    config: Config,
    method: Megazsl,
    optimizer: torch.optim.Optimizer,
    seen: Seen,
    runtime: Runtime,
    rng: np.random.Generator,
) -> float:
    """Several steps of the critic, then one of the generator; returns the critic's estimate of the distance."""
    distance = math.nan
    for _ in range(config.critic_steps):
        loss, distance = _critic_loss(config, method, _draw(config, method, seen, runtime, rng))
        _update(optimizer, loss, method.critic_parameters(), runtime)
    _, labels, texts, noise = _draw(config, method, seen, runtime, rng)
    imagined = method.imagine(texts, noise)
    real, logits = method.judge(imagined)
    loss = F.cross_entropy(logits, labels) - real.mean() + config.pivot * _pivot(method, seen, imagined, labels)
    _update(optimizer, loss, method.generator_parameters(), runtime)
    return distance


def _critic_loss(config: Config, method: Megazsl, drawn: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    """Wasserstein loss with a gradient penalty (Gulrajani et al., 2017), and both kinds of features told apart."""
    features, labels, texts, noise = drawn
    imagined = method.imagine(texts, noise).detach()
    (real, real_logits), (false, false_logits) = method.judge(features), method.judge(imagined)
    between = torch.lerp(features, imagined, noise[:, :1].sigmoid()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(method.judge(between)[0].sum(), between, create_graph=True)
    penalty = config.gradient_penalty * ((gradient.norm(dim=1) - 1) ** 2).mean()
    told = F.cross_entropy(real_logits, labels) + F.cross_entropy(false_logits, labels)
    distance = real.mean() - false.mean()
    return penalty - distance + 0.5 * told, float(distance.detach())


def _pivot(method: Megazsl, seen: Seen, imagined: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of each class's imagined mean to that of its features."""
    member = F.one_hot(labels, method.config.n_classes).float()
    there = member.sum(dim=0) > 0
    means = (member.T @ imagined)[there] / member.sum(dim=0)[there, None]
    true = seen.means[there.cpu()]
    return ((means - true.to(means.device)) ** 2).sum(dim=1).mean()


def _draw(
    config: Config, method: Megazsl, seen: Seen, runtime: Runtime, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of random images, their labels, a document of each one's class, and noise."""
    chosen = torch.from_numpy(rng.integers(len(seen.labels), size=config.n_queries))
    labels = seen.labels[chosen]
    documents = torch.from_numpy(rng.integers(seen.texts.shape[1], size=config.n_queries))
    noise = torch.from_numpy(rng.standard_normal((config.n_queries, method.config.n_noise), dtype=np.float32))
    parts = seen.features[chosen], labels, seen.texts[labels, documents], noise
    features, labels, texts, noise = (part.to(runtime.device) for part in parts)
    return features, labels, texts, noise


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter], runtime: Runtime) -> None:
    """One step of some of the optimiser's parameters; the others have no gradient and stay."""
    optimizer.zero_grad(set_to_none=True)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    runtime.average([p.grad for p in parameters if p.grad is not None])
    optimizer.step()


def _betas(config: Config) -> tuple[float, float]:
    return (0.5, 0.9) if config.method == "megazsl" else (0.9, 0.999)
