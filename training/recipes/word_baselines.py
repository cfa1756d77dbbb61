"""Train what N3 is compared with: methods that make a classifier of texts and leave the base as it is.

    training fit word-baselines --config tiny-text2model

All are given the same: the base's features, projected as N3's are (training/closed_forms.py), and the same documents of
each class, drawn and encoded alike. A linear map has a closed form; MEGAZSL is trained on features of all training
classes, the others on tasks of some of them, with cross-entropy, as N3 is.

Shapes: N images, C training classes, V documents a class, D text embedding, G features of the base, F projected ones.
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
from models.methods.megazsl import Batch, Megazsl, MegazslConfig
from models.methods.pdcnn import PDCNN, PDCNNConfig
from models.methods.text2model import Text2Model, Text2ModelConfig
from models.nn.bases import BaseSpec
from training import checkpoint, run_log
from training import closed_forms as forms
from training.configs.word_baselines import Config
from training.data import descriptions
from training.data.folders import ImageSet
from training.encoded import encode_texts, read_encoder
from training.pretrained import read_base
from training.runtime import Runtime
from training.schedule import learning_rate
from training.word_features import FEATURES, base_features, digest_of, pooled

METHOD = "word-baselines"
RIDGES = tuple(10.0**power for power in np.arange(-2, 4.5, 0.5))
LOG_EVERY = 100
Classifier = LinearMap | Text2Model | PDCNN


class Peer(nn.Module):
    """A method with the projection that its features went through; ``shapes``: what its data decided of it."""

    def __init__(self, config: Config, shapes: dict[str, int]) -> None:
        super().__init__()
        self.config, self.shapes = config, shapes
        self.register_buffer("center", torch.zeros(shapes["n_raw"]))
        self.register_buffer("matrix", torch.zeros(config.n_features, shapes["n_raw"]))
        self.register_buffer("bias", torch.zeros(config.n_features))
        self.method = _method(config, shapes)

    @property
    def projection(self) -> forms.Projection:
        """The base's own features ``(N, G)`` -> ``(N, F)``."""
        parts = (self.get_buffer(name).double().cpu().numpy() for name in ("center", "matrix", "bias"))
        return forms.Projection(*parts)


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

    Classes for validation are not met, not even to choose a step. Raises DataError where a class has no text, and
    CheckpointError where the run was begun otherwise.
    """
    torch.manual_seed(config.seed)
    path = run / "checkpoint.safetensors"
    peer, seen, header = _prepare(config, train, texts or descriptions.of_dataset(config.dataset), path, runtime)
    if isinstance(peer.method, LinearMap):
        _fit_linear(peer.method, seen, config.seed)
        if runtime.is_main:
            checkpoint.save(path, peer, None, {**header, "step": 0})
        return peer.eval()
    optimizer = torch.optim.AdamW(peer.parameters(), weight_decay=config.weight_decay, betas=_betas(config))
    first = int(checkpoint.load(path, peer, optimizer)["step"]) if path.exists() else 0
    last = config.n_steps if stop_after is None else min(config.n_steps, first + stop_after)
    saved, smoothed = time.monotonic(), math.nan
    steps = tqdm(range(first, last), initial=first, total=config.n_steps, disable=not runtime.is_main, mininterval=5.0)
    for step in steps:
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
        spec = BaseSpec.from_json(fields["base_spec"])
        config = Config(**{**fields, "base_spec": spec, "ways": tuple(fields["ways"])})
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
    config: Config, train: ImageSet, texts: dict[str, descriptions.ClassTexts], path: Path, runtime: Runtime
) -> tuple[Peer, Seen, dict[str, Any]]:
    """The method before its first step, its projection fitted, what it is taught with, and a checkpoint's header."""
    base, own = read_base(config.base, config.base_spec), descriptions.in_order(train.class_names, texts)
    header = {"method": METHOD, "config": asdict(config), "train_classes": train.n_classes}
    header |= {"train_data_digest": train.digest, "base_digest": digest_of(base)}
    header |= {"descriptions_digest": descriptions.texts_digest(own)}
    begun = _begun(path, header) if path.exists() else None
    found = base_features(config, base, train, path.parent.parent / FEATURES, runtime)
    # Of a run that goes on, as it was: its axes are found up to sign, and anew on each machine.
    projection = begun or forms.fit_projection(found.raw, train.labels, config.n_features).rounded
    documents = _documents(config, own)
    peer = Peer(config, _shapes(train, found.raw.shape[1], found.maps, documents))
    for name in ("center", "matrix", "bias"):
        peer.get_buffer(name).copy_(torch.from_numpy(getattr(projection, name)))
    features = projection(found.raw)
    seen = Seen(
        images=train,
        features=torch.from_numpy(features.astype(np.float32)),
        means=torch.from_numpy(forms.class_means(features, train.labels).astype(np.float32)),
        maps=None if found.maps is None else torch.from_numpy(found.maps),
        labels=torch.from_numpy(train.labels),
        texts=documents,
    )
    return peer.to(runtime.device), seen, {**header, "shapes": peer.shapes}


def _shapes(train: ImageSet, n_raw: int, maps: NDArray[np.float16] | None, documents: Tensor) -> dict[str, int]:
    n_channels = 0 if maps is None else maps.shape[1]
    return {"n_raw": n_raw, "n_channels": n_channels, "n_classes": train.n_classes, "text_dim": documents.shape[-1]}


def _begun(path: Path, wanted: dict[str, Any]) -> forms.Projection:
    """The projection of a run that goes on; raises CheckpointError where it was begun otherwise."""
    peer, header = load_peer(path)
    settings = {name: value for name, value in wanted["config"].items() if name != "n_steps"}
    checkpoint.refuse_other(path, header["config"], settings)
    facts = {name: wanted[name] for name in ("train_data_digest", "base_digest", "descriptions_digest")}
    checkpoint.refuse_other(path, header, facts)
    return peer.projection


def _documents(config: Config, texts: tuple[descriptions.ClassTexts, ...]) -> Tensor:
    """Those of each of C classes, drawn and pooled: ``(C, V, D)``."""
    encoder = read_encoder(config.text_encoder)
    encoded = encode_texts(texts, encoder, config.n_documents, seed=config.seed).tokens
    return torch.from_numpy(np.stack([pooled(own, config.pooling) for own in encoded]))


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
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.learning_rate, step, config.n_steps, config.warmup_steps)
    if isinstance(method, Megazsl):
        return _adversarial_step(config, method, optimizer, seen, runtime, rng)
    loss = _task_loss(config, method, seen, runtime, rng)
    _update(optimizer, loss, list(method.parameters()), runtime)
    return float(loss.detach())


def _task_loss(config: Config, method: nn.Module, seen: Seen, runtime: Runtime, rng: np.random.Generator) -> Tensor:
    """Cross-entropy of images of a task of some classes, a document of each."""
    n_most = min(config.ways[1], seen.images.n_classes)
    n_way = int(rng.integers(min(config.ways[0], n_most), n_most + 1))
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
    """Several steps of the critic, then one of the generator, whose loss is returned."""
    for _ in range(config.critic_steps):
        critic_loss = method.critic_loss(_draw(config, method, seen, runtime, rng))
        _update(optimizer, critic_loss, method.critic_parameters(), runtime)
    loss = method.generator_loss(_draw(config, method, seen, runtime, rng), seen.means.to(runtime.device))
    _update(optimizer, loss, method.generator_parameters(), runtime)
    return float(loss.detach())


def _draw(config: Config, method: Megazsl, seen: Seen, runtime: Runtime, rng: np.random.Generator) -> Batch:
    """Features of random images, a document of each one's class, and noise."""
    n = config.n_queries
    chosen = torch.from_numpy(rng.integers(len(seen.labels), size=n))
    labels, documents = seen.labels[chosen], torch.from_numpy(rng.integers(seen.texts.shape[1], size=n))
    noise = torch.from_numpy(rng.standard_normal((n, method.config.n_noise), dtype=np.float32))
    mix = torch.from_numpy(rng.random((n, 1), dtype=np.float32))
    parts = seen.features[chosen], labels, seen.texts[labels, documents], noise, mix
    return Batch(*(part.to(runtime.device) for part in parts))


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter], runtime: Runtime) -> None:
    """One step of some of the optimiser's parameters; the others have no gradient and stay."""
    optimizer.zero_grad(set_to_none=True)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    runtime.average([p.grad for p in parameters if p.grad is not None])
    optimizer.step()


def _betas(config: Config) -> tuple[float, float]:
    return (0.5, 0.9) if config.method == "megazsl" else (0.9, 0.999)
