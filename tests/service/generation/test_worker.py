"""Workers and their queue, on a real Redis: jobs of the dead are finished by others, poison ends, SIGTERM drains."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from models.errors import Busy, Unavailable
from models.metamodel import MetaModel
from service.generation.jobs import JobQueue
from service.generation.once import LocalGeneration
from service.generation.queued import QueuedGeneration
from service.generation.worker import Worker, run_worker
from service.ports import BundleStore, TaskRecord, TaskStore
from service.stores.redis_client import GROUP, Keys, connect
from tests.contract.places import Place
from tests.redis_server import RedisServer
from tests.service import prototypes
from tests.service.processes import PausedGenerator, RecordingGenerator, pids, until, work

ALIVE_S = 600.0
"""Longer than any stall of the machine: a worker that has not left is alive, unless a test says otherwise."""
LEASE_S = 2.0


class FullStore:
    """A bundle store without room."""

    n_refused = 0

    def put(self, task_id: str, data: bytes) -> None:
        self.n_refused += 1
        raise Unavailable("There is no room; try again later.")

    def get(self, task_id: str) -> bytes | None:
        return None

    def delete(self, task_id: str) -> None:
        """Nothing is here."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Site:
    """One Redis with everything that uses it."""

    place: Place
    client: Redis
    tasks: TaskStore
    bundles: BundleStore
    queue: JobQueue
    meta_model: MetaModel
    zoo: Path
    journal: Path
    go_on: Path

    def create(self, *, seed: int = 0) -> TaskRecord:
        record, recipe = prototypes.task(self.meta_model, prototypes.spec(seed=seed))
        assert self.tasks.create(record, recipe)
        return record

    def state(self, record: TaskRecord) -> str | None:
        found = self.tasks.get("ann", record.id)
        return found.state if found else None

    def age_ms(self) -> int:
        """How long ago the one job was given to its worker, or claimed again by a heartbeat."""
        (job,) = self.client.xpending_range(Keys(self.place.prefix).jobs, GROUP, "-", "+", 1)
        age_ms: int = job["time_since_delivered"]
        return age_ms

    def local(self, **options: Any) -> LocalGeneration:
        return LocalGeneration(self.tasks, self.bundles, {self.meta_model.name: self.meta_model}, **options)

    def queued(self, **options: Any) -> QueuedGeneration:
        local = self.local(generator=RecordingGenerator(self.journal))
        return QueuedGeneration(self.queue, self.tasks, local, **options)

    def worker(self, spawn: SpawnContext, *, alive_s: float = ALIVE_S, fatal: bool = False) -> SpawnProcess:
        """A worker that waits in every generation for the file ``go_on``."""
        arguments = (self.place, self.zoo, self.journal, LEASE_S, alive_s, self.go_on)
        process = spawn.Process(target=work, args=arguments, kwargs={"fatal": fatal})
        process.start()
        return process


@pytest.fixture
def site(redis_server: RedisServer, redis_prefix: str, redis_client: Redis, tmp_path: Path) -> Iterator[Site]:
    place = Place("redis", redis_server.url, redis_prefix)
    model = prototypes.meta_model(tmp_path / "zoo")
    with place.tasks() as tasks, place.bundles() as bundles:
        queue = JobQueue(redis_client, alive_s=ALIVE_S, prefix=redis_prefix)
        zoo, journal, go_on = (tmp_path / name for name in ("zoo", "journal", "go-on"))
        yield Site(place, redis_client, tasks, bundles, queue, model, zoo, journal, go_on)


@pytest.fixture
def spawn() -> SpawnContext:
    return multiprocessing.get_context("spawn")


@pytest.fixture
def thread_worker(site: Site) -> Iterator[threading.Event]:
    """A worker in a thread of this process; the event stops it."""
    with ExitStack() as stack:
        stop = threading.Event()
        pool = stack.enter_context(ThreadPoolExecutor(1))
        status = pool.submit(
            run_worker, site.client, site.tasks, site.bundles, {site.meta_model.name: site.meta_model},
            generator=RecordingGenerator(site.journal), prefix=site.place.prefix, alive_s=ALIVE_S, stop=stop,
        )  # fmt: skip
        until(lambda: site.queue.n_workers() == 1)
        yield stop
        stop.set()
        assert status.result() == 0
        assert site.queue.n_workers() == 0


class TestQueue:
    """JobQueue alone."""

    def test_a_job_is_delivered_once_and_stays_until_it_ends(self, site: Site) -> None:
        assert site.queue.take("w1", wait_s=0.01) is None  # makes the group
        message_id = site.queue.put("ann", "a1")
        job = site.queue.take("w1", wait_s=1)
        assert job is not None
        assert (job.message_id, job.tenant, job.task_id, job.n_deliveries) == (message_id, "ann", "a1", 1)
        assert site.queue.take("w2", wait_s=0.01) is None
        assert site.queue.take_over("w2") is None
        assert site.queue.holds(message_id)
        assert site.queue.n_jobs() == 1
        site.queue.end(job)
        assert not site.queue.holds(message_id)
        assert site.queue.n_jobs() == 0

    def test_jobs_put_before_the_first_worker_are_not_lost(self, site: Site) -> None:
        site.queue.put("ann", "a1")
        until(lambda: site.queue.take("w1", wait_s=0.1) is not None)

    def test_a_delivery_that_was_no_fault_of_the_job_is_not_counted(self, site: Site) -> None:
        queue = JobQueue(site.client, alive_s=0.01, prefix=site.place.prefix)
        assert queue.take("w1", wait_s=0.01) is None  # makes the group
        queue.put("ann", "a")
        job = queue.take("w1", wait_s=1)
        for _ in range(3):
            assert job is not None
            assert job.n_deliveries == 1
            queue.forgive("w1", job)
            time.sleep(0.02)
            job = queue.take_over("w2")

    def test_only_a_silent_workers_job_is_taken_over_and_deliveries_are_counted(self, site: Site) -> None:
        queue = JobQueue(site.client, alive_s=0.2, prefix=site.place.prefix)
        queue.take("w1", wait_s=0.01)
        queue.put("ann", "a1")
        first = queue.take("w1", wait_s=1)
        taken = []
        until(lambda: bool(taken.append(queue.take_over("w2")) or taken[-1]))
        assert taken[-1].n_deliveries == 2
        assert first is not None
        assert taken[-1].message_id == first.message_id
        slow = JobQueue(site.client, alive_s=60, prefix=site.place.prefix)
        slow.beat("w2", taken[-1])
        assert slow.take_over("w3") is None

    def test_workers_are_alive_as_long_as_they_beat(self, site: Site) -> None:
        quick = JobQueue(site.client, alive_s=0.2, prefix=site.place.prefix)
        assert quick.n_workers() == 0
        site.queue.beat("w1")
        site.queue.beat("w2")
        assert site.queue.n_workers() == 2
        until(lambda: quick.n_workers() == 0)

    def test_a_worker_that_died_before_the_clock_was_set_back_is_not_alive(self, site: Site) -> None:
        site.queue.beat("dead")
        site.client.zincrby(Keys(site.place.prefix).workers, 3_600_000, "dead")
        assert site.queue.n_workers() == 0

    def test_who_leaves_with_a_job_leaves_it_to_others(self, site: Site) -> None:
        queue = JobQueue(site.client, alive_s=0.1, prefix=site.place.prefix)
        queue.take("w1", wait_s=0.01)
        queue.put("ann", "a1")
        assert queue.take("w1", wait_s=1)
        queue.leave("w1")
        until(lambda: queue.take_over("w2") is not None)


class TestQueuedGeneration:
    """The API's side, with a worker in a thread or none."""

    def test_a_worker_makes_the_task(self, site: Site, thread_worker: threading.Event) -> None:
        generation = site.queued()
        record = site.create()
        ended = generation.run("ann", record.id)
        assert ended.state == "ready"
        assert ended.bytes == len(site.bundles.get(record.id) or b"")
        until(lambda: site.queue.n_jobs() == 0)
        generation.close()

    def test_a_lost_bundle_is_remade_by_the_worker_bit_equal(self, site: Site, thread_worker: threading.Event) -> None:
        generation = site.queued()
        record = site.create()
        generation.run("ann", record.id)
        before = site.bundles.get(record.id)
        site.bundles.delete(record.id)
        assert generation.run("ann", record.id).state == "ready"
        assert before is not None
        assert site.bundles.get(record.id) == before
        assert len(pids(site.journal)) == 2

    def test_without_workers_it_generates_here(self, site: Site) -> None:
        generation = site.queued()
        record = site.create()
        assert generation.run("ann", record.id).state == "ready"
        assert site.queue.n_jobs() == 0
        generation.close()
        with pytest.raises(Unavailable):
            generation.run("ann", record.id)

    def test_when_the_last_worker_dies_it_generates_here(self, site: Site) -> None:
        quick = JobQueue(site.client, alive_s=0.5, prefix=site.place.prefix)
        quick.beat("dies at once")
        generation = QueuedGeneration(quick, site.tasks, site.local())
        record = site.create()
        assert generation.run("ann", record.id).state == "ready"

    def test_a_job_lost_by_redis_is_put_again(self, site: Site) -> None:
        site.queue.beat("w1")
        generation = site.queued()
        record = site.create()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(generation.run, "ann", record.id)
            until(lambda: site.queue.n_jobs() == 1)
            site.client.delete(Keys(site.place.prefix).jobs)
            until(lambda: bool(site.queue.beat("w1")) or site.queue.n_jobs() == 1)
            site.local().run("ann", record.id)
            assert future.result().state == "ready"

    def test_a_full_queue_says_when_to_come_again(self, site: Site) -> None:
        site.queue.beat("w1")
        for i in range(100):
            site.queue.put("ann", f"other {i}")
        generation = site.queued(max_jobs=100)
        record = site.create()
        with pytest.raises(Busy) as raised:
            generation.run("ann", record.id)
        assert 5.0 <= raised.value.retry_after_s <= 7.5  # 100 jobs of 50 ms, jittered
        with pytest.raises(Busy, match="100 classifiers are waiting"):
            generation.check_room()
        assert site.state(record) == "queued"

    def test_closing_ends_the_wait(self, site: Site) -> None:
        site.queue.beat("w1")
        generation = site.queued()
        record = site.create()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(generation.run, "ann", record.id)
            until(lambda: site.queue.n_jobs() == 1)
            generation.close()
            assert isinstance(future.exception(), Unavailable)


class TestWorker:
    """In processes of their own, ended by signals."""

    def test_the_job_of_a_killed_worker_is_finished_by_the_other(self, site: Site, spawn: SpawnContext) -> None:
        workers = [site.worker(spawn, alive_s=3.0) for _ in range(2)]
        until(lambda: site.queue.n_workers() == 2)
        record = site.create()
        site.queue.put("ann", record.id)
        until(lambda: pids(site.journal) != [])
        victim, heir = sorted(workers, key=lambda w: w.pid != pids(site.journal)[0])
        victim.kill()
        victim.join()
        assert site.state(record) == "generating"
        site.go_on.touch()
        until(lambda: site.state(record) == "ready")
        assert pids(site.journal) == [victim.pid, heir.pid]
        until(lambda: site.queue.n_jobs() == 0)
        assert site.bundles.get(record.id) is not None
        heir.terminate()
        heir.join()
        assert heir.exitcode == 0

    def test_sigterm_lets_the_current_job_end(self, site: Site, spawn: SpawnContext) -> None:
        worker = site.worker(spawn)
        records = [site.create(seed=seed) for seed in range(2)]
        for record in records:
            site.queue.put("ann", record.id)
        until(lambda: len(pids(site.journal)) == 1)
        worker.terminate()  # heard at once, since the main thread only waits
        site.go_on.touch()
        worker.join()
        assert worker.exitcode == 0
        assert [site.state(record) for record in records] == ["ready", "queued"]
        assert site.queue.n_workers() == 0
        assert site.queue.n_jobs() == 1  # the second waits for another worker
        assert site.client.xinfo_consumers(Keys(site.place.prefix).jobs, "workers") == []

    def test_a_task_that_kills_workers_fails_with_a_message(self, site: Site, spawn: SpawnContext) -> None:
        record = site.create()
        site.queue.put("ann", record.id)
        worker = site.worker(spawn, fatal=True)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        survivor = Worker(
            "survivor", JobQueue(site.client, alive_s=0.1, prefix=site.place.prefix), site.tasks,
            site.local(), lease_s=LEASE_S, max_deliveries=1,
        )  # fmt: skip
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(survivor.work, stop)
            until(lambda: site.state(record) == "failed")
            stop.set()
            future.result()
        failed = site.tasks.get("ann", record.id)
        assert failed is not None
        assert failed.error is not None
        assert "stopped while making this classifier" in failed.error
        assert site.queue.n_jobs() == 0

    def test_a_redis_outage_is_waited_out(self, tmp_path: Path) -> None:
        server = RedisServer(tmp_path)
        client = connect(server.url)
        place = Place("redis", server.url, "p")
        model = prototypes.meta_model(tmp_path / "zoo")
        stop = threading.Event()
        with place.tasks() as tasks, place.bundles() as bundles, ThreadPoolExecutor(1) as pool:
            queue = JobQueue(client, alive_s=ALIVE_S, prefix="p")
            status = pool.submit(run_worker, client, tasks, bundles, {model.name: model}, prefix="p",
                                 alive_s=ALIVE_S, stop=stop)  # fmt: skip
            until(lambda: queue.n_workers() == 1)
            server.kill()
            with pytest.raises(Unavailable):
                queue.n_workers()
            server.start()
            record, recipe = prototypes.task(model)
            tasks.create(record, recipe)
            queue.put("ann", record.id)
            until(lambda: (found := tasks.get("ann", record.id)) is not None and found.state == "ready")
            stop.set()
            assert status.result() == 0
        client.close()
        server.stop()

    def test_a_job_that_cannot_be_done_now_is_done_later_however_often_it_was_tried(self, site: Site) -> None:
        record, stop = site.create(), threading.Event()
        site.queue.put("ann", record.id)
        full = FullStore()
        worker = Worker(
            "w", JobQueue(site.client, alive_s=0.01, prefix=site.place.prefix), site.tasks,
            LocalGeneration(site.tasks, full, {site.meta_model.name: site.meta_model}), max_deliveries=1,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(worker.work, stop)
            until(lambda: full.n_refused > 2)
            stop.set()
            future.result()
        assert site.state(record) == "queued"
        assert site.queue.n_jobs() == 1

    def test_a_deleted_tasks_job_ends(self, site: Site, thread_worker: threading.Event) -> None:
        record = site.create()
        site.tasks.delete("ann", record.id)
        site.queue.put("ann", record.id)
        until(lambda: site.queue.n_jobs() == 0)
        assert pids(site.journal) == []

    def test_a_long_job_is_not_taken_from_a_living_worker(self, site: Site) -> None:
        """Each heartbeat makes the job young again, and a job is taken over by its age."""
        paused = PausedGenerator()
        worker = Worker("slow", site.queue, site.tasks, site.local(generator=paused))
        record, stop = site.create(), threading.Event()
        site.queue.put("ann", record.id)
        with ThreadPoolExecutor(1) as pool, worker.heartbeats(0.1):
            future = pool.submit(worker.work, stop)
            assert paused.entered.wait(120)
            ages_ms = [site.age_ms()]
            until(lambda: bool(ages_ms.append(site.age_ms())) or sum(a > b for a, b in pairwise(ages_ms)) >= 5)
            assert site.queue.take_over("thief") is None
            stop.set()
            paused.go_on.set()
            future.result()
        assert site.state(record) == "ready"
