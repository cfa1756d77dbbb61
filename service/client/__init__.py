"""The Python client: classifiers made and used in a few lines, over HTTP. Imports httpx, and nothing of the server.

    from service.client import Classmith

    with Classmith("http://127.0.0.1:8000") as classmith:
        task = classmith.create({"zebra": ["zebra/*.jpg"], "okapi": "striped legs, a brown coat"}, progress=True)
        for prediction in task.predict("new/*.jpg"):
            print(prediction.label, prediction.probability)
        task.export("classifier.onnx")

``AsyncClassmith`` is the same with ``await``. After an answer that says "too busy", or a lost connection, a call is
made again, as often as ``Retries`` says; a repeated ``create`` carries the same Idempotency-Key, so it never makes two.
"""

from service.client.answers import ClassInfo, MetaModelInfo, Prediction, TaskInfo
from service.client.awaiting import AsyncClassmith, AsyncTask
from service.client.blocking import Classmith, Task
from service.client.calls import LOCAL_URL
from service.client.errors import (
    ClientError,
    NotAllowed,
    NotFound,
    Problem,
    RequestFailed,
    TaskFailed,
    TimedOut,
    TooBusy,
    Unreachable,
    UnusableInput,
)
from service.client.retries import Retries

__all__ = [
    "LOCAL_URL",
    "AsyncClassmith",
    "AsyncTask",
    "ClassInfo",
    "Classmith",
    "ClientError",
    "MetaModelInfo",
    "NotAllowed",
    "NotFound",
    "Prediction",
    "Problem",
    "RequestFailed",
    "Retries",
    "Task",
    "TaskFailed",
    "TaskInfo",
    "TimedOut",
    "TooBusy",
    "Unreachable",
    "UnusableInput",
]
