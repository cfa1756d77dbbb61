"""What other processes do in the tests of generation: generate, work off the queue, and be killed at it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

from models import metamodel
from models.bundle import Bundle
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.task import TaskSpec
from service.generation.once import LocalGeneration
from service.generation.worker import run_worker
from service.ports import TaskRecord
from service.stores.redis_client import connect
from tests.contract.places import Place


class RecordingGenerator(OnnxGenerator):
    """The generator, with a line in a file for each network it begins: across processes, too.

    ``go_on``: a file that it then waits for. (Not an event of multiprocessing: those hang once a waiter is killed.)
    """

    def __init__(self, journal: Path, go_on: Path | None = None) -> None:
        super().__init__()
        self._journal, self._go_on = journal, go_on

    def generate(self, meta_model: MetaModel, spec: TaskSpec) -> Bundle:
        with self._journal.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self._go_on is not None:
            until(self._go_on.exists)
        return super().generate(meta_model, spec)


class PausedGenerator(OnnxGenerator):
    """The generator, which says when it begins and goes on when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def generate(self, meta_model: MetaModel, spec: TaskSpec) -> Bundle:
        self.entered.set()
        assert self.go_on.wait(120)
        return super().generate(meta_model, spec)


class FatalGenerator(OnnxGenerator):
    """Ends the process, as a generator short of memory does."""

    def generate(self, meta_model: MetaModel, spec: TaskSpec) -> Bundle:
        os.kill(os.getpid(), 9)
        return super().generate(meta_model, spec)


def pids(journal: Path) -> list[int]:
    """Who began to generate, in order."""
    return [int(line) for line in journal.read_text().split()] if journal.exists() else []


def generate(
    place: Place, zoo: Path, ident: str, journal: Path, lease_s: float, start: Barrier | None, go_on: Path | None = None
) -> TaskRecord:
    """Bring a task to its end in this process."""
    with place.tasks() as tasks, place.bundles() as bundles:
        generator = RecordingGenerator(journal, go_on)
        models = metamodel.load_all(zoo)
        generation = LocalGeneration(tasks, bundles, models, lease_s=lease_s, generator=generator)
        if start is not None:
            start.wait()
        try:
            return generation.run("ann", ident)
        finally:
            generation.close()


def work(
    place: Place, zoo: Path, journal: Path, lease_s: float, alive_s: float, go_on: Path | None, *, fatal: bool = False
) -> None:
    """A worker process, as the command line runs it."""
    client = connect(place.address)
    with place.tasks() as tasks, place.bundles() as bundles:
        generator = FatalGenerator() if fatal else RecordingGenerator(journal, go_on)
        models = metamodel.load_all(zoo)
        status = run_worker(
            client, tasks, bundles, models, generator=generator, prefix=place.prefix, lease_s=lease_s, alive_s=alive_s
        )
    client.close()
    sys.exit(status)


def until(condition: Callable[[], bool], *, within_s: float = 120.0) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        pause.wait(0.01)
