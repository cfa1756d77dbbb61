"""What a HyperTransformer learns from: cross-entropies of the queries of a step's tasks.

Shapes: B tasks, Q queries and K classes of each, F features.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.hypertransformer import GeneratedNetwork
from training.episodes import Episode


def of_queries(
    network: GeneratedNetwork, features: Tensor, targets: Tensor, episodes: list[Episode], across_tasks: float
) -> Tensor:
    """Cross-entropy of query features ``(B, Q, F)`` under the written logits layers, each task's own.

    ``across_tasks`` is the share of a second one, among the classes of all tasks of the step: a harder task that costs
    nothing more. It asks for convolutions that all tasks share.
    """
    loss = F.cross_entropy(network.classify(features).float().flatten(0, 1), targets.flatten())
    if not across_tasks:
        return loss
    weight, bias = network.logits
    n_way = weight.shape[1]
    everything = (features.flatten(0, 1) @ weight.flatten(0, 1).T + bias.flatten()).float()
    position = (targets + n_way * torch.arange(len(episodes), device=targets.device)[:, None]).flatten()
    classes = torch.from_numpy(np.concatenate([e.classes for e in episodes])).to(targets.device)
    twin = (classes[position][:, None] == classes).scatter(1, position[:, None], False)  # the class, in another task
    harder = F.cross_entropy(everything.masked_fill(twin, -math.inf), position)
    return (1 - across_tasks) * loss + across_tasks * harder


def among_training_classes(rows: Tensor, features: Tensor, targets: Tensor, episodes: list[Episode]) -> Tensor:
    """Cross-entropy of query features ``(B, Q, F)`` among all training classes, of a learned row ``(F,)`` each.

    Ordinary classification, of the images that are here anyhow: what few-shot features learn most from for what it
    costs (Chen et al., *A Closer Look at Few-shot Classification*, 2019; *Meta-Baseline*, 2021).
    """
    classes = torch.from_numpy(np.stack([e.classes for e in episodes])).to(targets.device)
    logits = features @ rows.T / math.sqrt(features.shape[-1])
    return F.cross_entropy(logits.flatten(0, 1), classes.gather(1, targets).flatten())
