"""What a crash left unfinished is taken up, whatever else is unfinished; what is refused is counted."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from models.errors import Busy
from service.generation import pending
from service.generation.jobs import JobQueue
from service.generation.once import LocalGeneration
from service.generation.pending import PendingGenerations
from service.generation.queued import QueuedGeneration
from service.observability.telemetry import Metrics
from service.ports import TaskRecord
from service.stores.files import FileBundleStore
from service.stores.sqlite import SqliteTaskStore
from tests.service import prototypes


@pytest.mark.parametrize("n_recovered", [1, 100])
def test_tasks_that_cannot_be_finished_now_stand_behind_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_recovered: int
) -> None:
    monkeypatch.setattr(pending, "N_RECOVERED", n_recovered)
    meta_model = prototypes.meta_model(tmp_path / "zoo")
    tasks, bundles = SqliteTaskStore(tmp_path / "tasks.sqlite"), FileBundleStore(tmp_path / "bundles", 10**9)
    generation = LocalGeneration(tasks, bundles, {meta_model.name: meta_model})
    left = [prototypes.task(meta_model, prototypes.spec(seed=seed)) for seed in range(4)]
    for age, (record, recipe) in enumerate(left[1:]):  # made once, where another meta-model is
        tasks.create(replace(record, created_at=float(age), meta_model="elsewhere", generate_ms=1.0), recipe)
    wanted, recipe = left[0]
    tasks.create(wanted, recipe)
    ready, done = list[TaskRecord](), threading.Event()

    def on_ready(record: TaskRecord) -> None:
        ready.append(record)
        done.set()

    async def recover() -> None:
        waiting = PendingGenerations(
            generation, tasks, n_threads=1, max_pending=4, recover_s=0.01, on_ready=on_ready
        )  # fmt: skip
        waiting.start_recovery()
        try:
            assert await asyncio.to_thread(done.wait, 60)
        finally:
            await waiting.close()

    asyncio.run(recover())
    assert [record.id for record in ready] == [wanted.id]
    assert len(tasks.unfinished(limit=9)) == 3
    tasks.close()


def test_what_the_shared_queue_refuses_is_counted(tmp_path: Path, redis_client: Redis, redis_prefix: str) -> None:
    tasks, bundles = SqliteTaskStore(tmp_path / "tasks.sqlite"), FileBundleStore(tmp_path / "bundles", 10**9)
    queue, metrics = JobQueue(redis_client, prefix=redis_prefix), Metrics()
    generation = QueuedGeneration(queue, tasks, LocalGeneration(tasks, bundles, {}), max_jobs=2)
    waiting = PendingGenerations(
        generation, tasks, n_threads=1, max_pending=4, recover_s=60.0, on_ready=lambda _: None, metrics=metrics
    )

    def n_shed() -> float | None:
        return metrics.registry.get_sample_value("classmith_shed_total", {"reason": "generation_queue_full"})

    queue.beat("w1")
    queue.put("ann", "one")
    waiting.check_queue()
    queue.put("ann", "two")
    assert n_shed() == 0
    with pytest.raises(Busy, match="2 classifiers are waiting"):
        waiting.check_queue()
    assert n_shed() == 1
    asyncio.run(waiting.close())
    tasks.close()
