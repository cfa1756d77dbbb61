"""Classifiers made again: what is wrong now leaves them to be made later, and keeps no thread and no worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from redis import Redis

from models.bundle import Bundle
from models.errors import GenerationFailed, Unavailable
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.task import TaskSpec
from service.generation import queued
from service.generation.jobs import JobQueue
from service.generation.leases import queue_again
from service.generation.once import LocalGeneration
from service.generation.queued import QueuedGeneration
from service.generation.worker import Worker
from service.ports import BundleStore, TaskRecord, TaskStore
from tests.contract.places import Place
from tests.service import prototypes
from tests.service.processes import until

FAULTS = {"told": GenerationFailed("The encoder is not here; install it."), "unexpected": MemoryError()}


class FaultyGenerator(OnnxGenerator):
    """The generator on a machine where something is wrong."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self._fault = fault

    def generate(self, meta_model: MetaModel, spec: TaskSpec) -> Bundle:
        raise self._fault


@dataclass
class Lost:
    """A task that was made, and the bundle that was lost since."""

    tasks: TaskStore
    bundles: BundleStore
    meta_model: MetaModel
    record: TaskRecord
    bundle: bytes

    @property
    def now(self) -> TaskRecord | None:
        return self.tasks.get("ann", self.record.id)

    def local(self, generator: OnnxGenerator | None = None) -> LocalGeneration:
        return LocalGeneration(self.tasks, self.bundles, {self.meta_model.name: self.meta_model}, generator=generator)

    def elsewhere(self) -> LocalGeneration:
        """Where the meta-model is not installed."""
        return LocalGeneration(self.tasks, self.bundles, {})

    def faulty(self, fault: str) -> LocalGeneration:
        return self.local(FaultyGenerator(FAULTS[fault]))


@contextmanager
def lost_in(place: Place, zoo: Path) -> Iterator[Lost]:
    with place.tasks() as tasks, place.bundles() as bundles:
        meta_model = prototypes.meta_model(zoo)
        record, recipe = prototypes.task(meta_model)
        assert tasks.create(record, recipe)
        ready = LocalGeneration(tasks, bundles, {meta_model.name: meta_model}).run("ann", record.id)
        data = bundles.get(record.id)
        assert data is not None
        bundles.delete(record.id)
        yield Lost(tasks, bundles, meta_model, ready, data)


@pytest.fixture(params=["embedded", "redis"])
def lost(request: pytest.FixtureRequest, tmp_path: Path, redis_prefix: str) -> Iterator[Lost]:
    place = Place("embedded", str(tmp_path / "state"))
    if request.param == "redis":
        place = Place("redis", request.getfixturevalue("redis_server").url, redis_prefix)
    with lost_in(place, tmp_path / "zoo") as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_leaves_the_task_to_be_made_again(lost: Lost, fault: str) -> None:
    faulty = lost.faulty(fault)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"install it|see the service's log"):
            faulty.run("ann", lost.record.id)
        assert lost.now == replace(lost.record, state="queued")
        assert list(lost.tasks.unfinished(limit=9)) == [("ann", lost.record.id)]
    assert lost.local().run("ann", lost.record.id).state == "ready"
    assert lost.bundles.get(lost.record.id) == lost.bundle


def test_what_is_queued_again_keeps_what_is_known_of_it(lost: Lost) -> None:
    queue_again(lost.tasks, "ann", lost.record.id)
    assert lost.now == replace(lost.record, state="queued")


def test_what_somebody_is_at_or_is_gone_is_not_queued_again(lost: Lost) -> None:
    assert lost.tasks.claim("ann", lost.record.id, owner="somebody", lease_s=600)
    queue_again(lost.tasks, "ann", lost.record.id)
    assert lost.now == replace(lost.record, state="generating")
    assert lost.tasks.release("ann", lost.record.id, owner="somebody", state="ready")
    queue_again(lost.tasks, "ann", "nope")


# --- with workers in between


@dataclass
class Site:
    """A lost bundle, and the queue to the workers who may make it again."""

    lost: Lost
    queue: JobQueue

    def queued(self) -> QueuedGeneration:
        return QueuedGeneration(self.queue, self.lost.tasks, self.lost.local())

    @contextmanager
    def worker(self, generation: LocalGeneration) -> Iterator[None]:
        worker, stop = Worker("w", self.queue, self.lost.tasks, generation), threading.Event()
        with ThreadPoolExecutor(1) as pool, worker.heartbeats(60):
            working = pool.submit(worker.work, stop)
            until(lambda: self.queue.n_workers() == 1)
            try:
                yield
            finally:
                stop.set()
                working.result()


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, redis_client: Redis, redis_prefix: str) -> Iterator[Site]:
    place = Place("redis", request.getfixturevalue("redis_server").url, redis_prefix)
    with lost_in(place, tmp_path / "zoo") as found:
        yield Site(found, JobQueue(redis_client, alive_s=600.0, prefix=redis_prefix))


def test_workers_keep_no_job_of_another_version(site: Site) -> None:
    with site.worker(site.lost.elsewhere()):
        site.queue.put("ann", site.lost.record.id)
        until(lambda: site.queue.n_jobs() == 0)
    assert site.lost.now == site.lost.record


@pytest.mark.parametrize("fault", FAULTS)
def test_workers_keep_no_job_that_they_cannot_do_again_now(site: Site, fault: str) -> None:
    with site.worker(site.lost.faulty(fault)):
        site.queue.put("ann", site.lost.record.id)
        until(lambda: site.queue.n_jobs() == 0)
    assert site.lost.now == replace(site.lost.record, state="queued")


def test_what_a_worker_cannot_make_again_is_made_here(site: Site) -> None:
    with site.worker(site.lost.elsewhere()), ThreadPoolExecutor(1) as pool:
        asked, generation = site.lost.record.id, site.queued()
        made = pool.submit(generation.run, "ann", asked)
        try:
            assert made.result(120).state == "ready"
        finally:
            generation.close()
    assert site.lost.bundles.get(asked) == site.lost.bundle


def test_busy_workers_are_waited_for_only_so_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "REMAKE_WAIT_S", 0.1)
    site.queue.beat("busy")
    generation = site.queued()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(generation.run, "ann", site.lost.record.id)
        try:
            with pytest.raises(Unavailable, match="try again in a moment"):
                made.result(120)
        finally:
            generation.close()
    assert site.lost.now == replace(site.lost.record, state="queued")
    assert site.queue.n_jobs() == 1  # done when its turn comes


def test_who_asks_again_waits_for_the_same_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "REMAKE_WAIT_S", 0.1)
    site.queue.beat("busy")
    generation = site.queued()
    for _ in range(3):
        with pytest.raises(Unavailable, match="try again in a moment"):
            generation.run("ann", site.lost.record.id)
        assert site.queue.n_jobs() == 1
    assert site.queue.take("busy", wait_s=0.01) is None  # makes the group
    job = site.queue.take("busy", wait_s=1)
    assert job is not None
    site.queue.end(job)
    with pytest.raises(Unavailable, match="try again in a moment"):
        generation.run("ann", site.lost.record.id)
    assert site.queue.n_jobs() == 1  # a new one: the first is gone


class GivenUpQueue(JobQueue):
    """The queue whose job a worker gives up, and fails its task, just before somebody looks whether it is there."""

    tasks: TaskStore

    def holds(self, message_id: str) -> bool:
        job = self.take("w", wait_s=1)
        if job is not None:
            assert self.tasks.claim(job.tenant, job.task_id, owner="w", lease_s=600)
            self.tasks.release(job.tenant, job.task_id, owner="w", state="failed", error="3 workers stopped")
            self.end(job)
        return super().holds(message_id)


def test_what_workers_gave_up_is_not_made_here(site: Site, redis_client: Redis, redis_prefix: str) -> None:
    queue = GivenUpQueue(redis_client, alive_s=600.0, prefix=redis_prefix)
    queue.tasks = site.lost.tasks
    assert queue.take("w", wait_s=0.01) is None  # makes the group
    queue.beat("w")
    generation = QueuedGeneration(queue, site.lost.tasks, site.lost.local())
    assert generation.run("ann", site.lost.record.id).state == "failed"
    assert site.lost.bundles.get(site.lost.record.id) is None
