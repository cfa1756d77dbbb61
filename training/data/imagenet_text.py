"""Texts of ImageNet-1k classes, without images: ``imagenet-text/descriptions.json``, by WordNet id."""

from __future__ import annotations

import json

from training.data.folders import DataError, data_root

NAME = "imagenet-text"


def class_indices() -> dict[str, int]:
    """WordNet id -> index among ImageNet-1k's classes, of those that have a text here."""
    path = data_root() / NAME / "descriptions.json"
    if not path.is_file():
        raise DataError(f"No {path}; set CLASSMITH_DATASETS to the folder that has {NAME}.")
    try:
        return {wnid: int(entry["index"]) for wnid, entry in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"<WordNet id>": {"index": <of the class, 0 to 999>, "sentences": [...]}, ...}'
        raise DataError(f"{path} does not say which class each text is of ({error!r}); write {form}.") from error
