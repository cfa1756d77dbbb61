"""Bundles that are lost while others are at work: whoever asks waits for the one who makes it again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from models.bundle import Bundle, encode
from models.errors import Conflict, Unavailable
from models.metamodel import MetaModel
from service.catalogue import Catalogue
from service.generation.once import LocalGeneration
from service.generation.pending import PendingGenerations
from service.ports import TaskRecord
from service.prediction.loading import N_TRIES, Loader
from service.stores.files import FileBundleStore
from service.stores.sqlite import SqliteTaskStore
from tests.service import prototypes

MAX_BYTES = 10**9


class ForgetfulStore(FileBundleStore):
    """A store so short of room that it has forgotten the first bundles it was given when it is asked for them."""

    def __init__(self, folder: Path, n_forgotten: int) -> None:
        super().__init__(folder, MAX_BYTES)
        self.n_forgotten = n_forgotten

    def put(self, task_id: str, data: bytes) -> None:
        super().put(task_id, data)
        if self.n_forgotten > 0:
            self.n_forgotten -= 1
            self.delete(task_id)


@dataclass
class Place:
    tasks: SqliteTaskStore
    bundles: ForgetfulStore
    meta_model: MetaModel
    loader: Loader

    def create(self) -> TaskRecord:
        record, recipe = prototypes.task(self.meta_model)
        assert self.tasks.create(record, recipe)
        return record

    def ready(self) -> TaskRecord:
        record = self.create()
        return self.loader.generation.run("ann", record.id)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    meta_model = prototypes.meta_model(tmp_path / "zoo")
    tasks, bundles = SqliteTaskStore(tmp_path / "tasks.sqlite"), ForgetfulStore(tmp_path / "bundles", 0)
    by_name = {meta_model.name: meta_model}
    generation = LocalGeneration(tasks, bundles, by_name)
    yield Place(tasks, bundles, meta_model, Loader(tasks, bundles, generation, Catalogue(by_name)))
    generation.close()
    tasks.close()


def test_a_task_that_was_never_made_is_a_conflict(place: Place) -> None:
    with pytest.raises(Conflict, match="still queued"):
        place.loader.bundle(place.create())


def test_a_lost_bundle_that_another_process_is_making_again_is_waited_for(place: Place) -> None:
    record = place.ready()
    before = place.loader.bundle(record)
    data = place.bundles.get(record.id)
    place.bundles.delete(record.id)
    assert data is not None
    assert place.tasks.claim("ann", record.id, owner="another process", lease_s=60)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(place.loader.bundle, place.loader.record("ann", record.id))
        assert not asked.done()
        place.bundles.put(record.id, data)
        place.tasks.release("ann", record.id, owner="another process", state="ready", generate_ms=1.0, bytes=1)
        assert asked.result(60).header == before.header


@pytest.mark.parametrize("is_lost", [False, True])
def test_another_version_of_the_meta_model_answers_nothing_and_spoils_nothing(
    place: Place, tmp_path: Path, is_lost: bool
) -> None:
    record = place.ready()
    before = place.bundles.get(record.id)
    if is_lost:
        place.bundles.delete(record.id)
    changed = {place.meta_model.name: prototypes.meta_model(tmp_path / "changed", n_loops=1)}
    generation = LocalGeneration(place.tasks, place.bundles, changed)
    other = Loader(place.tasks, place.bundles, generation, Catalogue(changed))
    for load in (lambda: other.session("ann", record.id), lambda: other.bundle(record)):
        with pytest.raises(Unavailable, match="create the task again"):
            load()
    assert place.tasks.get("ann", record.id) == record
    assert place.bundles.get(record.id) == (None if is_lost else before)
    assert place.loader.bundle(record).header.meta_model_digest == place.meta_model.digest


def test_a_whole_bundle_with_other_tensors_is_made_again(place: Place) -> None:
    record = place.ready()
    whole = place.loader.bundle(record)
    place.bundles.put(record.id, encode(Bundle(whole.header, {"logits.bias": whole.tensors["logits.bias"]})))
    assert place.loader.bundle(record).tensors.keys() == whole.tensors.keys()


def test_a_bundle_gone_as_soon_as_it_is_made_is_made_again_and_then_told(place: Place) -> None:
    record = place.ready()
    place.bundles.delete(record.id)
    place.bundles.n_forgotten = N_TRIES - 1
    assert place.loader.bundle(record).header.meta_model == place.meta_model.name
    place.bundles.delete(record.id)
    place.bundles.n_forgotten = 10 * N_TRIES
    with pytest.raises(Unavailable, match="more memory or disk"):
        place.loader.bundle(record)


@pytest.mark.parametrize("age_s", [3_600.0, -3_600.0])
def test_what_a_crash_left_is_taken_up_also_after_the_clock_was_set_back(place: Place, age_s: float) -> None:
    record, recipe = prototypes.task(place.meta_model)
    place.tasks.create(replace(record, created_at=time.time() - age_s), recipe)
    done = threading.Event()

    async def recover() -> None:
        pending = PendingGenerations(
            place.loader.generation, place.tasks, n_threads=1, max_pending=4, recover_s=60.0, min_age_s=10.0,
            on_ready=lambda _: done.set(),
        )  # fmt: skip
        pending.start_recovery()
        assert await asyncio.to_thread(done.wait, 60)
        await pending.close()

    asyncio.run(recover())
    found = place.tasks.get("ann", record.id)
    assert found is not None
    assert found.state == "ready"
