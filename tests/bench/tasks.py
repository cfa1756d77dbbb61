"""The bench's tasks: 20-way 1-shot from the invented alphabet, every one different, over a plain HTTP connection."""

from __future__ import annotations

import base64
import http.client
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from service.demo.alphabet import alphabet

N_CLASSES = 20


@dataclass(frozen=True)
class Task:
    """Support: one PNG for each class. Queries: other drawings, with the class they are of."""

    support: dict[str, bytes]
    queries: list[tuple[str, bytes]]

    def request(self, generator: str) -> bytes:
        classes = [{"name": n, "images": [base64.b64encode(png).decode()]} for n, png in self.support.items()]
        return json.dumps({"classes": classes, "generator": generator}).encode()


@lru_cache(maxsize=1)
def drawings() -> dict[str, list[bytes]]:
    return alphabet()


def make_task(seed: int) -> Task:
    rng = Random(seed)
    names = rng.sample(sorted(drawings()), N_CLASSES)
    hands = {name: rng.sample(drawings()[name], len(drawings()[name])) for name in names}
    queries = [(name, png) for name in names for png in hands[name][1:6]]
    return Task({name: hands[name][0] for name in names}, queries)


class Client:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        self.connection.request(method, path, body, {"Content-Type": content_type} if body else {})
        response = self.connection.getresponse()
        answer = response.read()
        if response.status >= 300 or response.status == 202:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:500]!r}")
        return answer

    def create(self, task: Task, generator: str) -> tuple[dict[str, Any], float]:
        """The task's record, and ms from sending the request (already encoded) to having the answer."""
        body = task.request(generator)
        started = time.perf_counter()
        answer = self.send("POST", "/tasks", body)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        return json.loads(answer), elapsed_ms

    def predict(self, task_id: str, png: bytes) -> tuple[dict[str, Any], float]:
        started = time.perf_counter()
        answer = self.send("POST", f"/tasks/{task_id}/predict", png, "image/png")
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        return json.loads(answer)["predictions"][0], elapsed_ms

    def accuracy(self, task_id: str, images: list[tuple[str, bytes]]) -> float:
        n_right = sum(bool(self.predict(task_id, png)[0]["label"] == name) for name, png in images)
        return n_right / len(images)
