"""The line of images that wait for a runner: tasks take turns, its length is bounded, and its wait is predicted."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.decision import Decision
from models.errors import Busy, Unavailable
from service.backpressure import jittered
from service.sessions import Session
from service.telemetry import Metrics

MIN_PIECE = 8
"""Fewer images are not worth splitting over runners."""
FIRST_GUESS_S = 0.005
"""Time an image, before any was measured."""
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Prediction:
    """The answers to one request, in its order, and where the time went.

    ``queue_ms``: until the first of its images was taken; ``decode_ms``: decoding of its images; ``run_ms``: the runs
    they were part of, which other requests may have shared.
    """

    decisions: list[Decision]
    queue_ms: float
    decode_ms: float
    run_ms: float


@dataclass(eq=False)
class Request:
    """The images of one caller for one task, cut into pieces."""

    session: Session
    top_k: int | None
    future: asyncio.Future[Prediction]
    queued_at: float = field(default_factory=perf_counter)
    pieces: list[Piece] = field(default_factory=list)
    n_left: int = 0
    is_over: bool = False
    """Answered, cancelled or failed: what is left of it is skipped."""


@dataclass(eq=False)
class Piece:
    """Images ``first`` and following of a request: what one runner does of it, and what came of that."""

    request: Request
    first: int
    images: Sequence[bytes]
    cost_s: float
    taken_at: float = 0.0
    decode_s: float = 0.0
    run_s: float = 0.0
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    error: BaseException | None = None


class WaitingLine:
    """Pieces by task, for ``n_runners`` threads that take them and any thread that puts them.

    Every change is made under one lock, within microseconds. At most ``max_images`` wait (more only as one request
    that finds the line empty); ``deadline_s`` bounds the wait predicted from the measured time an image takes.
    """

    def __init__(self, *, n_runners: int, max_batch: int, max_images: int, deadline_s: float, metrics: Metrics) -> None:
        self._n_runners, self._max_batch = n_runners, max_batch
        self._max_images, self._deadline_s, self._metrics = max_images, deadline_s, metrics
        self._changed = threading.Condition()
        self._queues: OrderedDict[Session, deque[Piece]] = OrderedDict()
        self._image_s: dict[str, float] = {}
        self._backlog_s = 0.0
        self._closed = False
        self.n_images = 0
        """Images that wait."""

    @property
    def backlog_s(self) -> float:
        """Predicted time, of one runner, for all that waits or runs."""
        return self._backlog_s

    def image_s(self, session: Session) -> float:
        """Time an image takes with networks of this kind: a running mean (kinds are meta-models, so they are few)."""
        return self._image_s.get(session.header.meta_model, FIRST_GUESS_S)

    def put(self, request: Request, images: Sequence[bytes]) -> None:
        """Queue a request's images, a piece for each runner where there are many; raises Busy or Unavailable."""
        n = len(images)
        size = min(self._max_batch, max(MIN_PIECE, -(-n // self._n_runners)))
        with self._changed:
            self._admit(n)
            cost_s = self.image_s(request.session)
            parts = [(first, images[first : first + size]) for first in range(0, n, size)]
            request.pieces = [Piece(request, first, part, cost_s * len(part)) for first, part in parts]
            request.n_left = len(request.pieces)
            self._queues.setdefault(request.session, deque()).extend(request.pieces)
            self.n_images += n
            self._backlog_s += cost_s * n
            self._changed.notify(len(request.pieces))

    def _admit(self, n_images: int) -> None:
        if self._closed:
            raise Unavailable("The service is shutting down; send the request again.")
        wait_s = self._backlog_s / self._n_runners
        is_full = self.n_images > 0 and self.n_images + n_images > self._max_images
        if is_full or wait_s > self._deadline_s:
            self._metrics.shed.labels("queue_full" if is_full else "deadline").inc()
            until_half_s = wait_s - min(wait_s, self._deadline_s) / 2
            message = f"{self.n_images} images are waiting already; send this request again later."
            raise Busy(message, retry_after_s=jittered(until_half_s))

    def withdraw(self, request: Request) -> None:
        """End a request early: what waits of it no longer counts, and runners drop it as they meet it."""
        with self._changed:
            request.is_over = True
            for piece in request.pieces:
                if piece.images and not piece.taken_at:
                    self.n_images -= len(piece.images)
                    self._backlog_s -= piece.cost_s
                    piece.images = ()

    def take(self) -> list[Piece] | None:
        """Wait for work and take a batch of one task; None once closed and empty."""
        with self._changed:
            while True:
                if batch := self._next_batch():
                    return batch
                if self._closed:
                    return None
                self._changed.wait()

    def _next_batch(self) -> list[Piece]:
        """What waits for the task whose turn it is; the task goes to the end of the line if anything is left.

        Of one request only one piece, so that another free runner gets the next.
        """
        batch: list[Piece] = []
        while self._queues and not batch:
            session, queue = self._queues.popitem(last=False)
            n, now = 0, perf_counter()
            while queue and n + len(queue[0].images) <= self._max_batch:
                if batch and queue[0].request is batch[-1].request:
                    break
                piece = queue.popleft()
                if piece.images:  # else it was withdrawn
                    piece.taken_at = now
                    n += len(piece.images)
                    batch.append(piece)
            if queue:
                self._queues[session] = queue
            self.n_images -= n
        return batch

    def done(self, batch: list[Piece], spent_s: float) -> None:
        """Take a finished batch out of the backlog, and learn from it what an image costs."""
        session = batch[0].request.session
        measured_s = spent_s / sum(len(piece.images) for piece in batch)
        with self._changed:
            known_s = self._image_s.get(session.header.meta_model, measured_s)
            self._image_s[session.header.meta_model] = known_s + LEARNING_RATE * (measured_s - known_s)
            self._backlog_s -= sum(piece.cost_s for piece in batch)
            if not self._queues and self._backlog_s < 1e-6:
                self._backlog_s = 0.0  # no drift from rounding

    def close(self) -> None:
        """Refuse what comes; runners end when nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
