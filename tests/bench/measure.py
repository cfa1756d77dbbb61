"""What every part of the bench is given, and how it measures: the load generator, percentiles, rates."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.metamodel import MetaModel
from tests.bench.server import Server

N_CONNECTIONS = 16
Figures = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every part is given. ``quick`` cuts the repeats to what shows that the command works."""

    folder: Path
    meta_model: MetaModel
    quick: bool
    peers: Path | None = None
    """The virtual environment of the other servers, where there is one."""

    @property
    def rounds(self) -> int:
        """How often two servers take turns."""
        return 1 if self.quick else 5

    def repeats(self, n: int) -> int:
        return max(3, n // 10) if self.quick else n


def load_on(
    server: Server,
    paths: Sequence[str],
    bodies: Sequence[Path],
    bench: Bench,
    *,
    n_connections: int = N_CONNECTIONS,
    media_type: str = "image/png",
) -> Figures:
    """What the load generator saw: connections that go through paths and bodies by turns, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.load", "--port", str(server.port), "--content-type", media_type]
    command += ["--connections", str(n_connections), "--seconds", "1" if bench.quick else "4"]
    given = json.dumps({"paths": list(paths), "bodies": [str(body) for body in bodies]})
    return answer_of(command, stdin=given)


def answer_of(command: list[str], *, stdin: str = "") -> Figures:
    """The JSON that a command prints."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, input=stdin, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def rate(run: Figures) -> float:
    return float(run["n"] / run["seconds"])
