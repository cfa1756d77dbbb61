"""The classifier behind BentoML: raw image in, label out. Started by ``bentoml serve``.

Its own endpoints take JSON or multipart, and its batching goes through a second HTTP hop; a mounted application that
answers in the worker itself is the fastest that it offers for one image a request.
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.bench.classifier import Classifier

CLASSIFIER = Classifier(Path(os.environ["MODEL"]))


async def predict(request: Request) -> JSONResponse:
    answers = await run_in_threadpool(CLASSIFIER.answers, [await request.body()])
    return JSONResponse(answers[0])


@bentoml.service(workers=int(os.environ["WORKERS"]), metrics={"enabled": False})
@bentoml.asgi_app(Starlette(routes=[Route("/predict", predict, methods=["POST"])]))
class Served:
    @bentoml.api
    def ready(self) -> bool:
        return True
