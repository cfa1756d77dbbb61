"""What was acknowledged and answered under load, and the fault-free answers that all of it is held against."""

from __future__ import annotations

import base64
import io
import threading
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.service.prototypes import SIZE

N_CLASSES, N_QUERIES = 3, 3
TOLERANCE = 1e-5
"""Of a probability: a batch of another size may sum in another order."""
Answer = list[dict[str, Any]]


def task_body(seed: int) -> dict[str, Any]:
    """A task that no other seed asks for."""
    images = _images(seed, N_CLASSES)
    classes = [{"name": f"{seed}-{k}", "images": [image]} for k, image in enumerate(images)]
    return {"classes": classes, "generator": "centroids"}


def query_body(seed: int) -> dict[str, Any]:
    return {"images": _images(-seed - 1, N_QUERIES)}


def _images(seed: int, n: int) -> list[str]:
    pixels = np.random.default_rng(seed & 0xFFFFFFFF).integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8)
    buffers = [io.BytesIO() for _ in pixels]
    for image, buffer in zip(pixels, buffers, strict=True):
        Image.fromarray(image).save(buffer, "PNG")
    return [base64.b64encode(buffer.getvalue()).decode() for buffer in buffers]


@dataclass(frozen=True)
class Truth:
    """A task's id and its answers, from a service that nothing happens to."""

    task_id: str
    answer: Answer


class Reference:
    """The fault-free service, asked once a task."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._known: dict[int, Truth] = {}

    def truth(self, seed: int) -> Truth:
        if seed not in self._known:
            task_id = self._http.post("/tasks", json=task_body(seed)).raise_for_status().json()["id"]
            response = self._http.post(f"/tasks/{task_id}/predict", json=query_body(seed)).raise_for_status()
            self._known[seed] = Truth(task_id, response.json()["predictions"])
        return self._known[seed]


def equal(answer: Answer, truth: Answer) -> bool:
    """Same labels, same abstentions, same probabilities."""
    return len(answer) == len(truth) and all(map(_same, answer, truth))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = one["probabilities"], other["probabilities"]
    close = mine.keys() == theirs.keys() and all(abs(mine[name] - theirs[name]) < TOLERANCE for name in mine)
    return close and (one["label"], one["abstain"]) == (other["label"], other["abstain"])


@dataclass
class Ledger:
    """Written by the threads of a load. ``acknowledged``: seed -> task id; ``ready``: those said to be ready."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, seed: int, task: dict[str, Any]) -> None:
        with self.lock:
            self.acknowledged[seed] = task["id"]
            if task["state"] == "ready":
                self.ready.add(seed)
            elif task["state"] == "failed":
                self.complain("wrong", f"task {seed} failed: {task.get('error')}")

    def answered(self, seed: int, answer: Answer) -> None:
        with self.lock:
            self.answers.append((seed, answer))

    def missed(self, seed: int) -> None:
        """A task is said not to be there: a loss, unless the service reports it as one in the end."""
        with self.lock:
            if seed in self.acknowledged:
                self.missing.add(seed)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complain(self, what: str, words: str) -> None:
        """Count as ``lost`` or ``wrong``, and keep the words."""
        self.counts[what] += 1
        self.complaints.append(f"{what}: {words}")

    def some_ready(self, rng: Random) -> int | None:
        with self.lock:
            return rng.choice(sorted(self.ready)) if self.ready else None

    def forget(self, seeds: set[int]) -> None:
        """Tasks that the service itself reported as lost: from here on they are not expected."""
        with self.lock:
            for seed in seeds:
                self.acknowledged.pop(seed, None)
            self.ready -= seeds
            self.missing -= seeds
