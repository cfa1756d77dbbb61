"""What N3 is compared with, measured: the tasks, documents and images of ``described_tasks.evaluate``, words alone.

Runs of one method are its seeds: each task counts with their mean. What comes out is one JSON object with ``columns``
of ``accuracy`` by name, as an evaluation.json has, for `training report --peers`.

Shapes: K classes, Q queries, n imagined features of a class, F features, D text embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.methods.megazsl import Megazsl
from models.task import class_text
from models.text import Encoders
from training import metrics
from training.baselines import logistic_regression
from training.columns import DESCRIBED, FEWER
from training.data.descriptions import ClassTexts, in_order
from training.data.folders import DataError, ImageSet
from training.described_tasks import Words
from training.episodes import Episode, EpisodeShape, sample, shrink
from training.evaluate import hardware
from training.pretrained import origin, read_base
from training.recipes.word_baselines import Peer
from training.runtime import Runtime
from training.word_features import FEATURES, BaseFeatures, base_features, pooled

N_NEIGHBOURS = 20
"""As GAZSL's code has it."""
CPU = Runtime(torch.device("cpu"), bf16=False, rank=0, world_size=1)
Loaded = tuple[Peer, dict[str, Any]]


def dataset_of(peers: Sequence[Loaded]) -> str:
    """The data set of all; raises DataError where data, base or encoder differ, for then nothing can be compared."""
    facts = {(p.config.dataset, p.config.base, p.config.text_encoder, h["train_data_digest"]) for p, h in peers}
    if len(facts) != 1:
        raise DataError("These runs differ in data set, base or text encoder; compare those of one kind at a time.")
    return peers[0][0].config.dataset


def compare(
    peers: Sequence[Loaded],
    images: ImageSet,
    texts: Mapping[str, ClassTexts],
    folder: Path,
    *,
    n_episodes: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Figures of every method on unseen classes, and all that is needed to repeat them.

    ``folder``: of the runs, where features of the base are kept. Raises DataError where runs can't be compared.
    """
    dataset_of(peers)
    config = peers[0][0].config
    base = read_base(config.base, config.base_spec)
    found = [base_features(p.config, base, images, folder / FEATURES, CPU, progress=progress) for p, _ in peers]
    shapes = [shrink(shape, images) for shape in DESCRIBED if not shape.n_shot]
    written = in_order(images.class_names, texts)
    columns = []
    for shape in dict.fromkeys(shapes):
        n = max(2, n_episodes // FEWER) if shape.n_way == images.n_classes else n_episodes
        columns.append(_column(peers, found, images, written, shape, n_episodes=n, seed=seed, progress=progress))
    return {
        "base": {"source": config.base, **asdict(config.base_spec), **origin(config.base)},
        "text_encoder": config.text_encoder,
        "runs": [_facts(peer, header) for peer, header in peers],
        "columns": columns,
    }


def _facts(peer: Peer, header: dict[str, Any]) -> dict[str, Any]:
    config = peer.config
    n_parameters = sum(tensor.numel() for tensor in peer.method.state_dict().values())
    kept = {k: getattr(config, k) for k in ("seed", "learning_rate", "weight_decay", "pooling", "n_documents")}
    facts = {k: header[k] for k in ("train_data_digest", "train_classes")}
    return {"method": config.method, "steps": header["step"], "n_parameters": n_parameters, **kept, **facts}


def _column(
    peers: Sequence[Loaded],
    found: Sequence[BaseFeatures],
    images: ImageSet,
    texts: Sequence[ClassTexts],
    shape: EpisodeShape,
    *,
    n_episodes: int,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    encoder = Encoders().get(peers[0][0].config.text_encoder)
    projected = [peer.project(own.raw) for (peer, _), own in zip(peers, found, strict=True)]
    scores: dict[str, dict[int, list[float]]] = {}
    for number in tqdm(range(n_episodes), disable=not progress, desc=f"{shape.n_way}-way", mininterval=5.0):
        rng = np.random.default_rng([seed, number])
        episode = sample(images, shape, rng)
        specs = [Words().spec(texts[k], i, rng) for i, k in enumerate(episode.classes)]
        tokens = [own.tokens for own in encoder.encode([class_text(*spec) for spec in specs])]
        for (peer, _), features, own in zip(peers, projected, found, strict=True):
            vectors = torch.from_numpy(pooled(tokens, peer.config.pooling))
            for name, predicted in _predict(peer, vectors, features, own.maps, episode).items():
                of_name = scores.setdefault(name, {}).setdefault(peer.config.seed, [])
                of_name.append(float((predicted == episode.query_labels).mean()))
    return {
        "given": "words",
        "shape": asdict(shape),
        "classes_from": "anywhere",
        "n_episodes": n_episodes,
        "seed": seed,
        "data_digest": images.digest,
        "n_classes": images.n_classes,
        "hardware": hardware(),
        "accuracy": {name: metrics.figure(np.mean(list(own.values()), axis=0)) for name, own in scores.items()},
        "by_seed": {name: {s: metrics.figure(v) for s, v in own.items()} for name, own in scores.items()},
        "chance": round(100 / shape.n_way, 2),
    }


@torch.no_grad()
def _predict(
    peer: Peer,
    texts: torch.Tensor,
    features: NDArray[np.float32],
    maps: NDArray[np.float16] | None,
    episode: Episode,
) -> dict[str, NDArray[np.int64]]:
    """Predictions ``(Q,)`` of one task, by the name of what makes them."""
    queries = features[episode.query]
    if isinstance(peer.method, Megazsl):
        return _from_imagined(peer.method.imagine_classes(texts).numpy(), queries)
    chosen = None if maps is None else torch.from_numpy(maps[episode.query].astype(np.float32))
    logits = peer.method(texts, torch.from_numpy(queries), chosen)
    return {peer.config.method.replace("-", "_"): logits.argmax(dim=-1).numpy()}


def _from_imagined(imagined: NDArray[np.float32], queries: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """What imagined features ``(K, n, F)`` say of queries ``(Q, F)``: the nearest of them, and a softmax of them."""
    from sklearn.neighbors import KNeighborsClassifier

    support, labels = imagined.reshape(-1, imagined.shape[-1]), np.arange(len(imagined)).repeat(imagined.shape[1])
    neighbours = KNeighborsClassifier(min(N_NEIGHBOURS, imagined.shape[1]), metric="cosine").fit(support, labels)
    return {
        "megazsl_neighbours": neighbours.predict(queries),
        "megazsl_softmax": logistic_regression(support, labels, queries),
    }
