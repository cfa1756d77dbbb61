"""What every yardstick runs: an exported classifier, its image preprocessing and its session, as the service has them.

Needs onnxruntime, numpy, pillow and pydantic alone, so that it runs in the other servers' own environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.preprocess import PreprocessSpec, to_pixels
from models.runtime import make_session, run


class Classifier:
    """Encoded images -> label and probability, by the file of GET /tasks/{id}/model.onnx."""

    def __init__(self, model: Path, providers: Sequence[str] = ()) -> None:
        self.session = make_session(model.read_bytes(), {}, providers=providers)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.class_names: list[str] = json.loads(properties["class_names"])
        self.spec = PreprocessSpec(**json.loads(properties["preprocess"]))

    def decode(self, image: bytes) -> NDArray[np.uint8]:
        return to_pixels(image, self.spec)

    def run(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities ``(N, K)``."""
        return run(self.session, "probabilities", {"pixels": np.stack(pixels)})

    def answer(self, row: NDArray[np.float32]) -> dict[str, str | float]:
        best = int(row.argmax())
        return {"label": self.class_names[best], "probability": float(row[best])}

    def answers(self, images: Sequence[bytes]) -> list[dict[str, str | float]]:
        return [self.answer(row) for row in self.run([self.decode(image) for image in images])]
