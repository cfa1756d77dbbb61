"""The classifier behind LitServe: image in, label out; its own batching. It takes JSON, so images come as base64."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import litserve

from tests.bench.classifier import Classifier


class Api(litserve.LitAPI):  # type: ignore[misc]  # not installed where types are checked
    def setup(self, device: str) -> None:
        self.classifier = Classifier(Path(os.environ["MODEL"]))

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, images: list[bytes]) -> list[dict[str, Any]]:
        return list(self.classifier.answers(images))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"]))
    server.run(port=int(os.environ["PORT"]), host="127.0.0.1", log_level="warning", generate_client_file=False)
