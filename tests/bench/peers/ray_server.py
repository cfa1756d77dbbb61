"""The classifier behind Ray Serve: raw image in, label out; its own batching."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.classifier import Classifier


@serve.deployment(num_replicas=int(os.environ["WORKERS"]), max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class Served:
    def __init__(self, model: str) -> None:
        self.classifier = Classifier(Path(model))

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]
    async def classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        return list(self.classifier.answers(images))

    async def __call__(self, request: Request) -> Any:
        return await self.classify(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Served.bind(os.environ["MODEL"]), route_prefix="/predict")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
