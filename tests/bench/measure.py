"""What every part of the bench is given, and how it measures: the load generator, percentiles, rates."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.bundle import decode
from models.metamodel import MetaModel
from service.prediction.sessions import build_session
from service.stores.files import FileBundleStore
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


def write_images(folder: Path, images: Iterable[bytes]) -> list[Path]:
    """The bodies of a load, as files of a new folder."""
    folder.mkdir(parents=True)
    paths = []
    for n, image in enumerate(images):
        paths.append(folder / str(n))
        paths[-1].write_bytes(image)
    return paths


def load_times_ms(bench: Bench, state_dir: Path, task_id: str, n: int) -> list[float]:
    """From a task's bundle in the store to a session that runs, in this process."""
    (stored,) = {path.parent for path in state_dir.rglob(f"{task_id}.safetensors")}
    store, times_ms = FileBundleStore(stored, 10**9), []
    for _ in range(bench.repeats(n)):
        started = time.perf_counter()
        data = store.get(task_id)
        assert data is not None
        build_session(bench.meta_model, decode(data), "local", task_id)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return times_ms


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def rate(run: Figures) -> float:
    return float(run["n"] / run["seconds"])


def hardware() -> Figures:
    """What figures were taken on."""
    return {
        "cpu": cpu_name(),
        "n_cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
    }


def processor_time() -> tuple[float, float] | None:
    """Seconds of all processors since the machine started: worked, and wanted but taken by its host for others.

    None where the system does not tell.
    """
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq, stolen = map(int, stat.read_text().split(None, 9)[1:9])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, stolen / ticks


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
