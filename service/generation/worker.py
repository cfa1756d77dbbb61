"""`classmith worker`: takes generations from the queue, one at a time, until it is told to stop.

A job is acknowledged when its task is ready or failed, never before: the jobs of a worker that dies go to another. A
job that several workers in turn did not survive fails its task, with a message. A task that was made before and cannot
be made again now is left to who asks for it next. SIGTERM lets the current job end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from redis import Redis

from models.errors import NotFound, Unavailable
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from service.generation.jobs import ALIVE_S, Job, JobQueue
from service.generation.leases import LEASE_S
from service.generation.once import LocalGeneration
from service.observability.tracing import NO_TRACING, Attributes, Tracing, under
from service.ports import BundleStore, TaskStore
from service.stores.redis_client import PREFIX

MAX_DELIVERIES = 3
TAKE_WAIT_S = 1.0
OUTAGE_PAUSE_S = 1.0
log = logging.getLogger(__name__)


def run_worker(
    client: Redis,
    tasks: TaskStore,
    bundles: BundleStore,
    meta_models: Mapping[str, MetaModel],
    *,
    name: str | None = None,
    generator: OnnxGenerator | None = None,
    prefix: str = PREFIX,
    lease_s: float = LEASE_S,
    alive_s: float = ALIVE_S,
    max_deliveries: int = MAX_DELIVERIES,
    stop: threading.Event | None = None,
    tracing: Tracing = NO_TRACING,
) -> int:
    """Work until ``stop`` is set (SIGTERM and SIGINT set it, in the main thread); the exit status, 0.

    ``alive_s``: after so long without a heartbeat a worker counts as dead. A Redis outage is waited out.
    """
    name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    stop = stop or threading.Event()
    queue = JobQueue(client, alive_s=alive_s, prefix=prefix)
    generation = LocalGeneration(tasks, bundles, meta_models, owner=name, lease_s=lease_s, generator=generator)
    worker = Worker(name, queue, tasks, generation, lease_s=lease_s, max_deliveries=max_deliveries, tracing=tracing)
    with _stopped_by_signals(stop), worker.heartbeats(alive_s / 4):
        worker.work(stop)
    generation.close()
    log.info("worker %s has stopped", name)
    return 0


class Worker:
    """One consumer of the queue."""

    def __init__(
        self,
        name: str,
        queue: JobQueue,
        tasks: TaskStore,
        generation: LocalGeneration,
        *,
        lease_s: float = LEASE_S,
        max_deliveries: int = MAX_DELIVERIES,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._name = name
        self._queue = queue
        self._tasks = tasks
        self._generation = generation
        self._lease_s = lease_s
        self._max_deliveries = max_deliveries
        self._tracing = tracing
        self._job: Job | None = None

    def work(self, stop: threading.Event) -> None:
        """Do jobs until ``stop`` is set; those of dead workers first."""
        while not stop.is_set():
            try:
                job = self._queue.take_over(self._name) or self._queue.take(self._name, wait_s=TAKE_WAIT_S)
                if job is not None:
                    with under(job.trace), self._tracing.span("job", "consumer", _attributes(job)):
                        self._do(job)
            except Unavailable as error:  # the job, if there was one, stays in the queue
                log.warning("%s", error.message)
                stop.wait(OUTAGE_PAUSE_S)

    @contextmanager
    def heartbeats(self, period_s: float) -> Iterator[None]:
        """Say every ``period_s`` that this worker is alive and has its job, from a thread of its own."""
        done = threading.Event()

        def beat() -> None:
            while True:
                try:
                    self._queue.beat(self._name, self._job)
                except Unavailable as error:
                    log.warning("no heartbeat: %s", error.message)
                if done.wait(period_s):
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._leave()

    def _do(self, job: Job) -> None:
        self._job = job
        try:
            ended = self._give_up(job) if job.n_deliveries > self._max_deliveries else self._generate(job)
        except Unavailable:
            self._queue.forgive(self._name, job)
            raise
        finally:
            self._job = None
        if ended:
            self._queue.end(job)

    def _generate(self, job: Job) -> bool:
        try:
            record = self._generation.run(job.tenant, job.task_id)
            log.info("task %s is %s", job.task_id, record.state)
        except NotFound:
            log.info("task %s was deleted", job.task_id)
        except Unavailable as error:
            left = self._tasks.get(job.tenant, job.task_id)
            if left is None or left.generate_ms is None:
                raise
            log.warning("task %s cannot be made again now: %s", job.task_id, error.message)
        return True

    def _give_up(self, job: Job) -> bool:
        """Fail a task that workers did not survive; False while the last one's lease still runs."""
        record = self._tasks.get(job.tenant, job.task_id)
        if record is None or record.state in ("ready", "failed"):
            return True
        if not self._tasks.claim(job.tenant, job.task_id, owner=self._name, lease_s=self._lease_s):
            return False
        remedy = "look at their logs and memory, then create it again"
        message = f"{job.n_deliveries - 1} workers in turn stopped while making this classifier; {remedy}."
        log.error("task %s: %s", job.task_id, message)
        self._tasks.release(job.tenant, job.task_id, owner=self._name, state="failed", error=message)
        return True

    def _leave(self) -> None:
        try:
            self._queue.leave(self._name)
        except Unavailable as error:
            log.warning("could not leave the queue: %s", error.message)


def _attributes(job: Job) -> Attributes:
    return {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.message.id": job.message_id,
        "classmith.task_id": job.task_id,
        "classmith.n_deliveries": job.n_deliveries,
    }


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``; signals belong to the main thread, elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
