"""The line of images that wait for a runner: bounded, fair between tenants and between tasks, its wait predicted.

Tenants take turns by deficit round robin (Shreedhar and Varghese, Efficient Fair Queuing, 1995) in predicted seconds of
work. Within a tenant the networks take turns, and the tasks of a shared network: a batch is filled from one task after
another, then from other tenants' tasks of that network. Nothing waits for a batch to be full.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from models.errors import Busy, Unavailable
from service.backpressure import jittered
from service.costs import LEARNING_RATE, Costs
from service.pieces import Batch, Given, Piece, Request, TaskQueue, TenantQueue
from service.sessions import Network, Session
from service.telemetry import Metrics

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
        self._tenants: OrderedDict[str, TenantQueue] = OrderedDict()
        self._backlog_s = 0.0
        self._reading: Counter[tuple[str, str]] = Counter()
        self._request_s = 0.0
        self._n_idle, self._taken_at = 0, 0.0
        self._refused_at: dict[str, float] = {}
        self._closed = False
        self.costs = Costs(max_batch=max_batch, batch_s=batch_s)
        self.n_images = 0
        """Images that wait."""

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
            self._task(session).pieces.extend(request.pieces)
            self._count(session, n, cost_s * n)
            self._backlog_s += cost_s * n
            self._request_s += LEARNING_RATE * (cost_s * n - self._request_s)
            self._wake(min(len(request.pieces), self._n_useful() - (self._n_runners - self._n_idle)))

    def refuse_if_full(self, tenant: str, task_id: str) -> None:
        """Raise Busy where ``put`` would refuse one more image of a task that waits already: before any is read."""
        coming_s = self._reading.total() * self._request_s
        if self.n_images < self._max_images and self._backlog_s + coming_s <= self._longest_s(tenant) * self._n_runners:
            return
        with self._changed:
            queue = self._tenants.get(tenant) or TenantQueue()
            waiting = (session for tasks in queue.networks.values() for session in tasks if session.task_id == task_id)
            if session := next(waiting, None):
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
                    self._count(request.session, -len(piece.images), -piece.cost_s)
                    self._backlog_s -= piece.cost_s
                    piece.images = ()

    def take(self) -> list[Piece] | None:
        """Wait for work and take a batch of one network; None once closed and empty."""
        with self._changed:
            while True:
                n_others = self._n_runners - self._n_idle - 1
                is_wanted = n_others < self._n_useful() or self._is_overdue()
                if (is_wanted or self._closed) and (batch := self._next_batch()):
                    self._taken_at = perf_counter()
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
            if not self._tenants and self._backlog_s < 1e-6:
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

        In turns a task gets one share in as many as there are tenants times this tenant's tasks, whatever others queue.
        """
        if self._closed:
            raise Unavailable("The service is shutting down; send the request again.")
        tenant = self._tenants.get(session.tenant) or TenantQueue()
        own = tenant.networks.get(session.network, OrderedDict()).get(session) or TaskQueue()
        n_shares = (len(self._tenants) + (not tenant.n_tasks)) * (tenant.n_tasks + (not own.pieces))
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

    def _task(self, session: Session) -> TaskQueue:
        """The queue of a task, begun where there is none."""
        tenant = self._tenants.setdefault(session.tenant, TenantQueue())
        tasks = tenant.networks.setdefault(session.network, OrderedDict())
        if session not in tasks:
            tenant.n_tasks += 1
            tasks[session] = TaskQueue()
        return tasks[session]

    def _count(self, session: Session, n_images: int, cost_s: float) -> None:
        task = self._task(session)
        task.n_images += n_images
        task.cost_s += cost_s
        self.n_images += n_images

    def _next_batch(self) -> list[Piece]:
        """From the tenant whose turn it is, for the network whose turn it is there."""
        while self._tenants:
            name, tenant = next(iter(self._tenants.items()))
            if tenant.deficit_s <= 0 and len(self._tenants) > 1:
                tenant.deficit_s += self._batch_s
                self._tenants.move_to_end(name)
                continue
            network = next(iter(tenant.networks))
            tenant.networks.move_to_end(network)
            if batch := self._fill(network, name):
                return batch
        return []

    def _fill(self, network: Network, first: str) -> list[Piece]:
        """A batch for one network: of the tenant whose turn it is, then of the others, as far as there is room."""
        session = next(iter(self._tenants[first].networks[network]))
        batch = Batch(self.costs.limit(session.kind))
        for name in [first, *(name for name in self._tenants if name != first)]:
            for session in list(self._tenants[name].networks.get(network, ())):
                if not self._take_from(session, batch):
                    return batch.pieces
        return batch.pieces

    def _take_from(self, session: Session, batch: Batch) -> bool:
        """Move what fits of a task's pieces into the batch; False where there is no more room.

        Of one request only one piece, so that another free runner gets the next.
        """
        task, n_before, has_room = self._task(session), len(batch.pieces), True
        while task.pieces and has_room:
            piece = task.pieces[0]
            if batch.pieces and piece.request is batch.pieces[-1].request and piece.images:
                break
            has_room = batch.fits(piece)
            if has_room:
                self._begin(task.pieces.popleft(), batch)
        self._end_turn(session, was_served=len(batch.pieces) > n_before)
        return has_room

    def _begin(self, piece: Piece, batch: Batch) -> None:
        """Put a piece into the batch, unless it was withdrawn; one that waited too long is refused there."""
        if not piece.images:
            return
        request, piece.taken_at = piece.request, perf_counter()
        if not request.has_begun and piece.taken_at - request.queued_at > max(self._deadline_s, MIN_EXPIRY_S):
            self._metrics.shed.labels("expired").inc()
            piece.error = self._busy(self._backlog_s / self._n_runners)
        else:
            request.has_begun = True
        batch.pieces.append(piece)
        batch.n_images += len(piece.images)
        self._count(request.session, -len(piece.images), -piece.cost_s)
        self._tenants[request.session.tenant].deficit_s -= piece.cost_s

    def _end_turn(self, session: Session, *, was_served: bool) -> None:
        """A task with more to come goes to the end; what is empty goes altogether."""
        tenant = self._tenants[session.tenant]
        tasks = tenant.networks[session.network]
        if tasks[session].pieces:
            if was_served:
                tasks.move_to_end(session)
            return
        del tasks[session]
        tenant.n_tasks -= 1
        if not tasks:
            del tenant.networks[session.network]
        if not tenant.networks:
            del self._tenants[session.tenant]
