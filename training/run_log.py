"""A run's log: ``log.jsonl`` in its folder, a JSON object for each validation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path


def append(run: Path, entry: Mapping[str, float]) -> None:
    """Add a line; what is not a number yet (a loss before the first step) is null."""
    run.mkdir(parents=True, exist_ok=True)
    known = {name: None if math.isnan(value) else value for name, value in entry.items()}
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(known) + "\n")
