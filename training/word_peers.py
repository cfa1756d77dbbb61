"""What N3 is compared with, measured: the tasks, documents and images of ``described_tasks.evaluate``, words alone.

Runs of one method are its seeds: each task counts with their mean. What comes out is one JSON object with ``columns``
of ``accuracy`` by name, as an evaluation.json has, for `training report --peers`. N3's own runs may be among them:
those of other embeddings can't be exported, and so have no evaluation.json.

Shapes: K classes, Q queries, n imagined features of a class, F features, T tokens, D token embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.feeds import padded
from models.methods.megazsl import Megazsl
from models.methods.n3 import N3
from models.nn.bases import BaseSpec
from models.task import class_text
from models.text import TextEncoder
from training import checkpoint, metrics
from training.ablations import kind
from training.columns import described_columns
from training.command_line import command_line
from training.data import DATASETS, descriptions
from training.data.descriptions import ClassTexts, in_order, texts_digest
from training.data.folders import DataError, ImageSet
from training.described_tasks import Words
from training.encoded import embed, read_encoder
from training.episodes import Episode, EpisodeShape, sample
from training.evaluate import column
from training.pretrained import origin, read_base
from training.recipes import n3, word_baselines
from training.recipes.word_baselines import Peer
from training.runtime import Runtime
from training.word_features import FEATURES, base_features, digest_of, pooled

N_NEIGHBOURS = 20
"""As GAZSL's code has it."""
CPU = Runtime(torch.device("cpu"), bf16=False, rank=0, world_size=1)
Loaded = tuple[Peer | N3, dict[str, Any]]
Answer = Callable[[Sequence[str], Episode], NDArray[np.int64]]
"""The texts of K classes, and images of them -> predictions ``(Q,)``."""


def load(run: Path) -> Loaded:
    """What a run trained, and its checkpoint's header; raises CheckpointError where it reads no words."""
    path = run / "checkpoint.safetensors"
    method = checkpoint.read_header(path).get("method")
    if method not in (n3.METHOD, word_baselines.METHOD):
        raise checkpoint.CheckpointError(f"{path} is of {method}, which reads no words; give runs of methods that do.")
    return n3.load_model(path) if method == n3.METHOD else word_baselines.load_peer(path)


def compare_runs(
    runs: Sequence[Path], images: Path | None = None, *, n_episodes: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """``compare`` of the runs in these folders, on the classes that validate; and the command that repeats it.

    ``images``: the user's own class folders the runs were trained on, where they were. Raises DataError where that is
    not so, also where they have changed since, and as ``load`` and ``compare``.
    """
    loaded = [load(run) for run in runs]
    name, size = data_of(loaded)
    for _, header in loaded:
        checkpoint.refuse_other_source(header, images)
    train, unseen = DATASETS[name].split(images, size=size)
    checkpoint.refuse_other_images(loaded[0][1], train)  # of all, as data_of has it
    texts = descriptions.of(name, images)
    compared = compare(loaded, unseen, texts, runs[0].parent, n_episodes=n_episodes, seed=seed)
    options = {"images": images, "episodes": n_episodes, "seed": seed}
    return {**compared, "command": command_line("compare-words", runs, options)}


def data_of(runs: Sequence[Loaded]) -> tuple[str, int]:
    """The data set of all and the size of its images.

    Raises DataError where data, base or encoder differ, for then nothing can be compared, or two runs are one seed.
    """
    facts = {
        (h["config"]["dataset"], h["train_data_digest"], h["config"]["text_encoder"], _base_digest(model, h))
        for model, h in runs
    }
    if len(facts) != 1:
        raise DataError("These runs differ in data, base or text encoder; compare those of one kind at a time.")
    seeds = [(_name(model, h), h["config"]["seed"]) for model, h in runs]
    if twice := [name for name, seed in seeds if seeds.count((name, seed)) > 1]:
        raise DataError(f"Two runs of {twice[0]} have the same seed; give one, or train one with another --seed.")
    return runs[0][1]["config"]["dataset"], _base_spec(runs[0][0]).size


def compare(
    runs: Sequence[Loaded],
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
    data_of(runs)
    config = runs[0][1]["config"]
    encoder, written = read_encoder(config["text_encoder"]), in_order(images.class_names, texts)
    answers = [(_name(model, h), h["config"]["seed"], _answer(model, h, images, encoder, folder)) for model, h in runs]
    answers += [
        (
            f"{_name(model, h)}: its classification layer alone",
            h["config"]["seed"],
            _answer_n3(model, h, images, encoder, layers=False),
        )
        for model, h in runs
        if isinstance(model, N3) and model.layers
    ]
    columns = [
        _column(answers, images, written, shape, n_episodes=n, seed=seed, progress=progress)
        for shape, n in described_columns(images, n_episodes, shots=False)
    ]
    return {
        "base": {"source": config["base"], **asdict(_base_spec(runs[0][0])), **origin(config["base"])},
        "text_encoder": config["text_encoder"],
        "train_data_digest": runs[0][1]["train_data_digest"],
        "runs": [_facts(model, header) for model, header in runs],
        "columns": columns,
    }


def _facts(model: Peer | N3, header: dict[str, Any]) -> dict[str, Any]:
    own = model.method.state_dict() if isinstance(model, Peer) else dict(model.named_parameters())
    n_parameters = sum(tensor.numel() for name, tensor in own.items() if not name.startswith("target."))
    kept = {name: header[name] for name in ("config", "train_data_digest", "train_classes")}
    return {"method": _name(model, header), "steps": header["step"], "n_parameters": n_parameters, **kept}


def _name(model: Peer | N3, header: dict[str, Any]) -> str:
    return model.config.method.replace("-", "_") if isinstance(model, Peer) else f"N3, {kind(header['config'])}"


def _base_spec(model: Peer | N3) -> BaseSpec:
    return model.config.base_spec if isinstance(model, Peer) else model.config.base


def _base_digest(model: Peer | N3, header: dict[str, Any]) -> str:
    return str(header["base_digest"]) if isinstance(model, Peer) else digest_of(model.target.base)


def _column(
    answers: Sequence[tuple[str, int, Answer]],
    images: ImageSet,
    texts: Sequence[ClassTexts],
    shape: EpisodeShape,
    *,
    n_episodes: int,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    scores: dict[str, dict[int, list[float]]] = {}
    for number in tqdm(range(n_episodes), disable=not progress, desc=f"{shape.n_way}-way", mininterval=5.0):
        rng = np.random.default_rng([seed, number])
        episode = sample(images, shape, rng)
        documents = [class_text(*Words().spec(texts[k], i, rng)) for i, k in enumerate(episode.classes)]
        for name, of_run, answer in answers:
            right = float((answer(documents, episode) == episode.query_labels).mean())
            scores.setdefault(name, {}).setdefault(of_run, []).append(right)
    figures = {
        "descriptions_digest": texts_digest(texts),
        "accuracy": {name: metrics.figure(np.mean(list(own.values()), axis=0)) for name, own in scores.items()},
        "by_seed": {name: {s: metrics.figure(v) for s, v in own.items()} for name, own in scores.items()},
    }
    return {"given": "words", **column(images, shape, figures, n_episodes=n_episodes, seed=seed)}


def _answer(model: Peer | N3, header: dict[str, Any], images: ImageSet, encoder: TextEncoder, folder: Path) -> Answer:
    if isinstance(model, N3):
        return _answer_n3(model, header, images, encoder)
    config, method = model.config, model.method
    base = read_base(config.base, config.base_spec)
    if digest_of(base) != header["base_digest"]:
        raise DataError(f"{config.base} is no longer what the runs were trained on; train them again.")
    found = base_features(config, base, images, folder / FEATURES, CPU)
    features = model.projection(found.raw).astype(np.float32)

    @torch.no_grad()
    def answer(documents: Sequence[str], episode: Episode) -> NDArray[np.int64]:
        vectors = torch.from_numpy(pooled([own.tokens for own in encoder.encode(documents)], config.pooling))
        queries = features[episode.query]
        if isinstance(method, Megazsl):
            return _nearest_imagined(method.imagine_classes(vectors).numpy(), queries)
        maps = None if found.maps is None else torch.from_numpy(found.maps[episode.query]).float()
        logits: torch.Tensor = method(vectors, torch.from_numpy(queries), maps)
        return logits.argmax(dim=-1).numpy()

    return answer


def _answer_n3(
    model: N3, header: dict[str, Any], images: ImageSet, encoder: TextEncoder, *, layers: bool = True
) -> Answer:
    """Without ``layers``: by the classification layer that it wrote, on the base as it is."""
    embeddings = header["config"]["embeddings"]

    @torch.no_grad()
    def answer(documents: Sequence[str], episode: Episode) -> NDArray[np.int64]:
        own = embed(documents, encoder, embeddings)
        tokens, mask = (torch.from_numpy(part) for part in padded(own, model.config.token_dim))
        nothing = torch.zeros(len(documents), 1, model.config.n_features)
        adaptation = model.generate(tokens, mask, nothing, nothing[..., 0])
        if not layers:
            adaptation = adaptation._replace(codes={})
        logits = model.classify(adaptation, torch.from_numpy(images.pixels[episode.query]))
        return logits.argmax(dim=-1).numpy()

    return answer


def _nearest_imagined(imagined: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class that most of the nearest imagined features ``(K, n, F)`` are of, of each query ``(Q, F)``."""
    from sklearn.neighbors import KNeighborsClassifier

    support, labels = imagined.reshape(-1, imagined.shape[-1]), np.arange(len(imagined)).repeat(imagined.shape[1])
    neighbours = KNeighborsClassifier(min(N_NEIGHBOURS, imagined.shape[1]), metric="cosine").fit(support, labels)
    predicted: NDArray[np.int64] = neighbours.predict(queries)
    return predicted
