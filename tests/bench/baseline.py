"""The yardstick for predictions: the barest FastAPI endpoint, which decodes the image and runs the network inline.

It takes the classifier that the service exports (GET /tasks/{id}/model.onnx), so both run the same network in the same
ONNX Runtime configuration, and both decode with models.preprocess. No limits, no store, no queue, no abstention.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from models.preprocess import PreprocessSpec, to_pixels
from models.runtime import make_session


def create_app(model: Path) -> FastAPI:
    session = make_session(model.read_bytes(), {})
    properties = session.get_modelmeta().custom_metadata_map
    class_names = json.loads(properties["class_names"])
    spec = PreprocessSpec(**json.loads(properties["preprocess"]))
    app = FastAPI()

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        return {"status": "ready"}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        pixels = to_pixels(await request.body(), spec)
        probabilities = session.run(["probabilities"], {"pixels": pixels[None]})[0][0]
        best = int(probabilities.argmax())
        return {"label": class_names[best], "probability": float(probabilities[best])}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    app = create_app(args.model)
    uvicorn.run(app, port=args.port, http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
