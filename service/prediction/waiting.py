"""The line of images that wait for a runner: bounded, fair between tenants and between tasks, its wait predicted.

Who is next is said in ``service.prediction.turns``. Nothing waits for a batch to be full.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from models.errors import Busy, Unavailable
from service.backpressure import jittered
from service.observability.telemetry import Metrics
from service.prediction.costs import LEARNING_RATE, Costs
from service.prediction.pieces import Given, Piece, Request
from service.prediction.sessions import Session
from service.prediction.turns import Turns

MIN_PIECE = 8
"""Fewer images are not worth splitting over runners."""
RUNNER_S = 0.005
"""Work of less than this is left to the runners that are awake: two on little of it mostly wait for the interpreter's
lock (measured, small network, 16 connections, one core: 0.80 ms of processor a request with both awake, 0.64 so)."""
SHORT = 0.1
"""Of the deadline: the longest predicted wait while a tenant sends more than can be served (``WaitingLine``)."""
MIN_EXPIRY_S = 1.0
"""What was admitted is not refused for having waited less, however short the deadline."""


class WaitingLine:
    """Pieces for ``n_runners`` threads that take them, from any thread that puts them.

    Every change is made under one lock, within microseconds. At most ``max_images`` wait, more only as one request that
    finds the line empty, or for tasks that have not had their share of them. ``deadline_s`` bounds the predicted wait,
    and what has waited longer all the same is refused rather than begun.

    A long line serves a burst whole, and serves lasting overload no faster than a short one. So once a tenant had to be
    refused, none of its tasks that wait already may wait for more than ``SHORT`` of the deadline, until it was not
    refused for as long as the deadline (after controlled delay: Nichols and Jacobson, Controlling Queue Delay, 2012).
    """

    def __init__(
        self, *, n_runners: int, max_batch: int, max_images: int, deadline_s: float, batch_s: float, metrics: Metrics
    ) -> None:
        self._n_runners, self._batch_s = n_runners, batch_s
        self._max_images, self._deadline_s, self._metrics = max_images, deadline_s, metrics
        self._changed = threading.Condition()
        self._backlog_s = 0.0
        self._reading: Counter[tuple[str, str]] = Counter()
        self._request_s = 0.0
        self._n_idle, self._taken_at = 0, 0.0
        self._refused_at: dict[str, float] = {}
        self._closed = False
        self.costs = Costs(max_batch=max_batch, batch_s=batch_s)
        self._turns = Turns(batch_s, self.costs.limit)

    @property
    def n_images(self) -> int:
        """Images that wait."""
        return self._turns.n_images

    @property
    def backlog_s(self) -> float:
        """Predicted time, of one runner, for all that waits or runs."""
        return self._backlog_s

    def put(self, request: Request, images: Sequence[Given]) -> None:
        """Queue a request's images, a piece for each runner where there are many; raises Busy or Unavailable."""
        n, session = len(images), request.session
        with self._changed:
            self._admit(session, n)
            size = min(self.costs.limit(session.kind), max(MIN_PIECE, -(-n // self._n_runners)))
            cost_s = self.costs.image_s(session.kind)
            parts = [(first, images[first : first + size]) for first in range(0, n, size)]
            request.pieces = [Piece(request, first, part, cost_s * len(part)) for first, part in parts]
            request.n_left = len(request.pieces)
            self._turns.add(session, request.pieces)
            self._backlog_s += cost_s * n
            self._request_s += LEARNING_RATE * (cost_s * n - self._request_s)
            self._wake(min(len(request.pieces), self._n_useful() - (self._n_runners - self._n_idle)))

    def refuse_if_full(self, tenant: str, task_id: str) -> None:
        """Raise Busy where ``put`` would refuse one more image of a task that waits already: before any is read."""
        coming_s = self._reading.total() * self._request_s
        if self.n_images < self._max_images and self._backlog_s + coming_s <= self._longest_s(tenant) * self._n_runners:
            return
        with self._changed:
            if session := self._turns.waiting(tenant, task_id):
                self._admit(session, 1, own_s=self._reading[tenant, task_id] * self._request_s, coming_s=coming_s)

    @contextmanager
    def reading(self, tenant: str, task_id: str) -> Iterator[None]:
        """Around the reading of a request's images, which counts as work to come; raises as ``refuse_if_full``.

        Used from one thread.
        """
        self.refuse_if_full(tenant, task_id)
        self._reading[tenant, task_id] += 1
        try:
            yield
        finally:
            self._reading[tenant, task_id] -= 1
            if not self._reading[tenant, task_id]:
                del self._reading[tenant, task_id]

    def nudge(self) -> bool:
        """Whether anything waits; wakes a runner for it where those awake have not come for it as soon as expected."""
        with self._changed:
            if self.n_images and self._is_overdue():
                self._wake(1)
            return self.n_images > 0

    def withdraw(self, request: Request) -> None:
        """End a request early: what waits of it no longer counts, and runners drop it as they meet it."""
        with self._changed:
            request.is_over = True
            for piece in request.pieces:
                if piece.images and not piece.taken_at:
                    self._turns.remove(piece)
                    self._backlog_s -= piece.cost_s

    def take(self) -> list[Piece] | None:
        """Wait for work and take a batch of one network; None once closed and empty."""
        with self._changed:
            while True:
                n_others = self._n_runners - self._n_idle - 1
                is_wanted = n_others < self._n_useful() or self._is_overdue()
                if (is_wanted or self._closed) and (batch := self._turns.next_batch()):
                    self._taken_at = perf_counter()
                    for piece in batch:
                        self._begin(piece, self._taken_at)
                    return batch
                if self._closed:
                    return None
                self._n_idle += 1
                self._changed.wait()

    def done(self, batch: list[Piece], spent_s: float, n_run: int) -> None:
        """Take a finished batch, ``n_run`` images of which were run, out of the backlog, and learn what they cost."""
        with self._changed:
            if n_run:
                self.costs.learn(batch[0].request.session.kind, n_run, spent_s)
            self._backlog_s -= sum(piece.cost_s for piece in batch)
            if self._turns.is_empty and self._backlog_s < 1e-6:
                self._backlog_s = 0.0  # no drift from rounding

    def close(self) -> None:
        """Refuse what comes; runners end when nothing is left."""
        with self._changed:
            self._closed = True
            self._wake(self._n_idle)

    def _n_useful(self) -> int:
        """Runners worth having awake for what waits or runs."""
        return 1 + int(self._backlog_s / RUNNER_S)

    def _is_overdue(self) -> bool:
        return perf_counter() - self._taken_at > RUNNER_S

    def _wake(self, n_runners: int) -> None:
        n_runners = max(0, min(n_runners, self._n_idle))
        self._n_idle -= n_runners
        self._changed.notify(n_runners)

    def _admit(self, session: Session, n_images: int, *, own_s: float = 0.0, coming_s: float = 0.0) -> None:
        """Refuse what would be too many, or wait too long: behind all that waits, or in turns with it if that is less.

        ``coming_s``: what is being read is expected to take so long; of the same task, ``own_s``.
        """
        if self._closed:
            raise Unavailable("The service is shutting down; send the request again.")
        own, n_shares = self._turns.share(session)
        in_turns_s = n_shares * (own.cost_s + own_s + self._batch_s)
        wait_s = min(self._backlog_s + coming_s, in_turns_s) / self._n_runners
        has_its_share = n_shares * (own.n_images + n_images) > self._max_images
        is_full = self.n_images > 0 and self.n_images + n_images > self._max_images and has_its_share
        longest_s = self._longest_s(session.tenant) if own.pieces or own_s else self._deadline_s
        if is_full or wait_s > longest_s:
            self._refused_at[session.tenant] = perf_counter()
            self._metrics.shed.labels("queue_full" if is_full else "deadline").inc()
            until_half_s = wait_s - min(wait_s, longest_s) / 2
            raise self._busy(until_half_s)

    def _longest_s(self, tenant: str) -> float:
        """The longest that a task of the tenant that waits already may be predicted to wait for more."""
        is_overloaded = perf_counter() - self._refused_at.get(tenant, -math.inf) < self._deadline_s
        return self._deadline_s * (SHORT if is_overloaded else 1)

    def _busy(self, wait_s: float) -> Busy:
        message = f"{self.n_images} images are waiting already; send this request again later."
        return Busy(message, retry_after_s=jittered(wait_s))

    def _begin(self, piece: Piece, now: float) -> None:
        """Mark a piece as taken; one that waited too long is refused here."""
        request, piece.taken_at = piece.request, now
        if not request.has_begun and now - request.queued_at > max(self._deadline_s, MIN_EXPIRY_S):
            self._metrics.shed.labels("expired").inc()
            piece.error = self._busy(self._backlog_s / self._n_runners)
        else:
            request.has_begun = True
