"""The classifier behind MOSEC: raw image in, label out; its own batching. Its HTTP server is written in Rust."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mosec

from tests.bench.classifier import Classifier


class Inference(mosec.Worker):  # type: ignore[misc]  # not installed where types are checked
    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier(Path(os.environ["MODEL"]))

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        return list(self.classifier.answers(data))

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Inference, num=int(os.environ["WORKERS"]), max_batch_size=16, max_wait_time=1)
    server.run()
