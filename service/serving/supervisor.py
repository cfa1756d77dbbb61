"""Several processes that serve one port: one that starts them, replaces what dies, and stops them together.

Python runs one thread at a time, so that one process answers small networks with little more than one processor. The
processes take connections from one listening socket, which outlives each of them, so that none is lost when one dies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from service.observability.siblings import Siblings

Serve = Callable[[socket.socket, Siblings, Callable[[], None]], int]
"""Serves on a socket until told to stop, and calls the function once it is ready; the exit status."""
PAUSE_S = 0.2
"""A signal is passed on within it."""
log = logging.getLogger(__name__)
spawn = multiprocessing.get_context("spawn")  # a fork would take locks of threads with it


@dataclass(eq=False)
class _Child:
    index: int
    process: BaseProcess
    ready: Connection
    """Says something once it serves."""
    has_started: bool = False
    n_told: int = 0
    """How often it was told to stop."""


class Supervisor:
    """``n`` processes that run ``serve``, which must be picklable; used from the main thread, for its signals."""

    def __init__(self, serve: Serve, n: int, listening: socket.socket) -> None:
        self._serve, self._n, self._listening = serve, n, listening
        self._children: list[_Child] = []
        self._n_stops = 0
        self._status = 0

    def run(self, on_started: Callable[[], None]) -> int:
        """Until told to stop, and all have ended; the exit status: 1 where one could not start."""
        before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with tempfile.TemporaryDirectory(prefix="classmith-") as folder:
                self._children = [self._start(Path(folder), index) for index in range(self._n)]
                is_announced = False
                while self._children:
                    self._hear()
                    if not (is_announced or self._n_stops) and all(child.has_started for child in self._children):
                        is_announced = True
                        on_started()
                    self._tell()
                    self._replace_dead(Path(folder))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._status

    def _start(self, folder: Path, index: int) -> _Child:
        ready, theirs = spawn.Pipe(duplex=False)
        given = (self._serve, self._listening, Siblings(folder, self._n, index), theirs)
        process = spawn.Process(target=_serve_one, args=given, name=f"classmith-{index}")
        process.start()
        theirs.close()
        return _Child(index, process, ready)

    def _hear(self) -> None:
        """Wait a moment for a process to say that it serves, or to end."""
        silent = [child for child in self._children if not child.has_started]
        heard = wait([child.process.sentinel for child in self._children] + [child.ready for child in silent], PAUSE_S)
        for child in [child for child in silent if child.ready in heard]:
            try:
                child.ready.recv()
                child.has_started = True
            except EOFError:  # it ended
                child.process.join()

    def _replace_dead(self, folder: Path) -> None:
        for child in [child for child in self._children if child.process.exitcode is not None]:
            status = child.process.exitcode
            child.process.join()
            child.ready.close()
            self._children.remove(child)
            if self._n_stops:  # one that had no time to listen to signals dies of the first
                self._status = self._status or int(status not in (0, -signal.SIGTERM))
            elif child.has_started:
                log.error("a process died; another takes its place", extra={"reason": f"exit status {status}"})
                self._children.append(self._start(folder, child.index))
            else:
                log.error("a process could not start", extra={"reason": f"exit status {status}"})
                self._status, self._n_stops = 1, max(1, self._n_stops)

    def _told(self, number: int, frame: FrameType | None) -> None:
        """A signal: stop; the second: at once. It only counts, since it may come in the middle of anything."""
        self._n_stops += 1

    def _tell(self) -> None:
        """Tell all what this process was told."""
        for child in self._children:
            if child.n_told < self._n_stops:
                child.n_told += 1
                child.process.terminate()


def _serve_one(serve: Serve, listening: socket.socket, siblings: Siblings, ready: Connection) -> None:
    """In a process of its own; it ends with the one that started it."""
    os.setpgrp()  # Ctrl-C in a terminal is for the one that started it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, name="classmith-parent", daemon=True).start()
    raise SystemExit(serve(listening, siblings, lambda: ready.send(None)))
