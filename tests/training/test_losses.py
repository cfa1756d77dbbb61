"""What a HyperTransformer learns from is what the equations say, worked out query by query."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.methods.hypertransformer import GeneratedNetwork
from training.data.folders import ImageSet
from training.episodes import EpisodeShape, sample
from training.losses import among_training_classes, of_queries


def test_queries_are_also_told_from_the_classes_of_the_other_tasks(drawings: ImageSet) -> None:
    rng = np.random.default_rng(0)
    shape = EpisodeShape(n_way=5, n_shot=1, n_query=2)
    episodes = [sample(drawings, shape, rng) for _ in range(3)]
    of_all = np.concatenate([e.classes for e in episodes])
    assert len(set(of_all)) < len(of_all), "no class is in two tasks; choose another seed"
    weight, bias, features = (torch.from_numpy(rng.normal(size=s)) for s in ((3, 5, 4), (3, 5), (3, 10, 4)))
    targets = torch.from_numpy(np.stack([e.query_labels for e in episodes]))
    network = GeneratedNetwork([], (weight, bias))
    own, harder = [], []
    for task, episode in enumerate(episodes):
        for query, k in enumerate(episode.query_labels):
            scores = {
                (t, j): float(features[task, query] @ weight[t, j] + bias[t, j])
                for t, other in enumerate(episodes)
                for j in range(5)
                if (t, j) == (task, k) or other.classes[j] != episode.classes[k]
            }
            partition = math.log(sum(math.exp(score) for score in scores.values()))
            harder.append(partition - scores[task, k])
            alone = math.log(sum(math.exp(scores[task, j]) for j in range(5)))
            own.append(alone - scores[task, k])
    for share in (0.0, 0.3, 1.0):
        expected = (1 - share) * np.mean(own) + share * np.mean(harder)
        assert float(of_queries(network, features, targets, episodes, share)) == pytest.approx(expected, rel=1e-5)


def test_queries_are_also_told_from_all_training_classes(drawings: ImageSet) -> None:
    rng = np.random.default_rng(0)
    episodes = [sample(drawings, EpisodeShape(n_way=3, n_shot=1, n_query=2), rng) for _ in range(2)]
    rows, features = torch.randn(drawings.n_classes, 4), torch.randn(2, 6, 4)
    targets = torch.from_numpy(np.stack([e.query_labels for e in episodes]))
    logits = [features[task] @ rows.T / 2 for task in range(2)]
    expected = [
        torch.nn.functional.cross_entropy(logits[task], torch.from_numpy(drawings.labels[episode.query]))
        for task, episode in enumerate(episodes)
    ]
    found = among_training_classes(rows, features, targets, episodes)
    torch.testing.assert_close(found, torch.stack(expected).mean())
