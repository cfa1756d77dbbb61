"""Texts of ImageNet-1k classes, without images: ``imagenet-text/descriptions.json``, by WordNet id."""

from __future__ import annotations

import json
from typing import Any

from training.data.folders import DataError, data_root

NAME = "imagenet-text"


def class_indices() -> dict[str, int]:
    """WordNet id -> index among ImageNet-1k's classes, of those that have a text here."""
    path = data_root() / NAME / "descriptions.json"
    if not path.is_file():
        raise DataError(f"No {path}; set CLASSMITH_DATASETS to the folder that has {NAME}.")
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return {wnid: int(entry["index"]) for wnid, entry in entries.items()}
