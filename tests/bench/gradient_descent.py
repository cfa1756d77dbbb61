"""The yardstick for generation: the same network, fitted to the task's support images by gradient descent.

    python -m tests.bench.gradient_descent --meta-model FOLDER --support FILE.json --accuracy 1.0

Adam on the whole support set, from PyTorch's own initialisation, until the network is right on as large a part of the
support set as the generated one. Twice: at Adam's own learning rate, and at the fastest of several, which a user would
have to find first (the time of finding it is not counted). Prints JSON. A process of its own, so that torch is in none
of the others.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.metamodel import Manifest, load
from models.nn.conv4 import Conv4
from models.preprocess import to_pixels

DEFAULT, OTHERS = 1e-3, (3e-3, 1e-2, 3e-2)
MAX_STEPS = 2_000
SEEDS = (0, 1, 2)
WARM_UP_MS = 500.0
HOPELESS = 1.5
"""A run that takes this many times the median to beat is given up."""


def network(manifest: Manifest, n_classes: int) -> Conv4:
    """The skeleton's architecture, by the shapes in the manifest; ink is 1 and paper 0."""
    convs = [name for name in manifest.tensors if name.startswith("conv") and name.endswith(".weight")]
    widths = [manifest.tensors[name].shape_for(n_classes)[0] for name in sorted(convs)]
    image = (manifest.preprocess.size, manifest.preprocess.channels)
    return Conv4(image, widths, n_classes, pixel_mean=1.0, pixel_std=-1.0)


def fit(
    model: Conv4, pixels: Tensor, labels: Tensor, learning_rate: float, accuracy: float, budget_ms: float
) -> tuple[float, int] | None:
    """(ms, steps) until the accuracy on the support set is reached; None where the steps or the time do not do."""
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    started = time.perf_counter()
    for step in range(MAX_STEPS):
        logits, _ = model(pixels)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        if (logits.argmax(1) == labels).float().mean() >= accuracy:
            return elapsed_ms, step
        if elapsed_ms > budget_ms:
            return None
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(logits, labels))
        optimiser.step()
    return None


def median_fit(
    manifest: Manifest, pixels: Tensor, labels: Tensor, learning_rate: float, accuracy: float, budget_ms: float
) -> dict[str, float] | None:
    """The median over SEEDS; None where one of them does not reach the accuracy within the budget."""
    runs = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        run = fit(network(manifest, len(labels)), pixels, labels, learning_rate, accuracy, budget_ms)
        if run is None:
            return None
        runs.append(run)
    ms, steps = (statistics.median(values) for values in zip(*runs, strict=True))
    return {"ms": ms, "steps": steps, "learning_rate": learning_rate, "n_threads": torch.get_num_threads()}


def both(manifest: Manifest, pixels: Tensor, labels: Tensor, accuracy: float) -> dict[str, dict[str, float] | None]:
    """At the default learning rate, with one thread or all cores, whichever is faster; and at the fastest rate."""
    default: dict[str, float] | None = None
    for n_threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(n_threads)
        fit(network(manifest, len(labels)), pixels, labels, DEFAULT, 2.0, WARM_UP_MS)
        budget_ms = HOPELESS * default["ms"] if default else math.inf
        found = median_fit(manifest, pixels, labels, DEFAULT, accuracy, budget_ms)
        default = min((run for run in (default, found) if run), key=lambda run: run["ms"], default=None)
    if default is None:
        return {"default": None, "tuned": None}
    tuned = default
    torch.set_num_threads(int(default["n_threads"]))
    for learning_rate in OTHERS:
        found = median_fit(manifest, pixels, labels, learning_rate, accuracy, HOPELESS * default["ms"])
        tuned = min((run for run in (tuned, found) if run), key=lambda run: run["ms"])
    return {"default": default, "tuned": tuned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-model", type=Path, required=True)
    parser.add_argument("--support", type=Path, required=True)
    parser.add_argument("--accuracy", type=float, required=True)
    args = parser.parse_args()
    manifest = load(args.meta_model).manifest
    task = json.loads(args.support.read_text())
    images = {name: base64.b64decode(png) for name, png in task.items()}
    pixels = torch.from_numpy(np.stack([to_pixels(png, manifest.preprocess) for png in images.values()]))
    labels = torch.arange(len(images))
    json.dump(both(manifest, pixels, labels, args.accuracy), sys.stdout)


if __name__ == "__main__":
    main()
