"""Generation: once, whoever asks; again and the same, whatever happened to the bundle; never for another's task."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import SpawnContext
from pathlib import Path

import numpy as np
import pytest

from models import metamodel
from models.bundle import decode
from models.errors import GenerationFailed, NotFound, Unavailable
from models.generator import OnnxGenerator
from models.metamodel import MetaModel
from models.task import TaskSpec
from service.generation.once import LocalGeneration
from service.ports import BundleStore, TaskRecord, TaskStore
from service.stores.files import FileBundleStore
from tests.contract.places import Place
from tests.service import prototypes
from tests.service.processes import PausedGenerator, RecordingGenerator, generate, pids, until

LEASE_S = 60.0


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis_prefix: str) -> Place:
    if request.param == "embedded":
        return Place("embedded", str(tmp_path / "state"))
    return Place("redis", request.getfixturevalue("redis_server").url, redis_prefix)


@pytest.fixture
def tasks(place: Place) -> Iterator[TaskStore]:
    with place.tasks() as store:
        yield store


@pytest.fixture
def bundles(place: Place) -> Iterator[BundleStore]:
    with place.bundles() as store:
        yield store


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return tmp_path / "zoo"


@pytest.fixture
def meta_model(zoo: Path) -> MetaModel:
    return prototypes.meta_model(zoo)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def generation(
    tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, journal: Path
) -> Iterator[LocalGeneration]:
    generator = RecordingGenerator(journal)
    made = LocalGeneration(tasks, bundles, {meta_model.name: meta_model}, lease_s=LEASE_S, generator=generator)
    yield made
    made.close()


@pytest.fixture
def spawn() -> SpawnContext:
    return multiprocessing.get_context("spawn")


class TestGenerator:
    """OnnxGenerator alone."""

    def test_the_weights_are_what_the_graph_defines(self, meta_model: MetaModel) -> None:
        spec = prototypes.spec(n_classes=4, n_shots=3, n_unlabeled=2)
        made = OnnxGenerator().generate(meta_model, spec)
        means = np.stack([np.stack(c.images).reshape(3, -1).mean(0) / 255 for c in spec.classes])
        np.testing.assert_allclose(made.tensors["logits.weight"], means, rtol=1e-5)
        np.testing.assert_allclose(made.tensors["logits.bias"], -0.5 * (means**2).sum(1), rtol=1e-5)
        images = [i for c in spec.classes for i in c.images] + [*spec.unlabeled]
        mean = np.stack(images).reshape(len(images), -1).mean(0) / 255
        np.testing.assert_allclose(made.tensors["conv.weight"].ravel(), mean[:18], rtol=1e-5)
        assert made.header.class_names == ("class 0", "class 1", "class 2", "class 3")
        assert (made.header.meta_model, made.header.meta_model_digest) == (meta_model.name, meta_model.digest)
        assert (made.header.temperature, made.header.abstain_below) == (2.0, 0.25)

    @pytest.mark.parametrize("seed", range(3))
    def test_permuting_classes_permutes_their_rows_and_nothing_else(self, meta_model: MetaModel, seed: int) -> None:
        spec = prototypes.spec(n_classes=6)
        order = np.random.default_rng(seed).permutation(6)
        permuted = replace(spec, classes=tuple(spec.classes[k] for k in order))
        generator = OnnxGenerator()
        before, after = generator.generate(meta_model, spec), generator.generate(meta_model, permuted)
        assert after.header.class_names == tuple(before.header.class_names[k] for k in order)
        for name in ("logits.weight", "logits.bias"):
            np.testing.assert_array_equal(after.tensors[name], before.tensors[name][order])
        np.testing.assert_array_equal(after.tensors["conv.weight"], before.tensors["conv.weight"])

    def test_the_order_of_images_changes_no_weight(self, meta_model: MetaModel) -> None:
        spec = prototypes.spec(n_shots=5, n_unlabeled=4)
        classes = tuple(replace(c, images=c.images[::-1]) for c in spec.classes)
        turned = TaskSpec(classes, spec.unlabeled[::-1])
        generator = OnnxGenerator()
        before, after = generator.generate(meta_model, spec), generator.generate(meta_model, turned)
        for name, tensor in before.tensors.items():
            np.testing.assert_array_equal(after.tensors[name], tensor)

    def test_what_the_meta_model_does_not_take_fails_with_a_message(self, meta_model: MetaModel) -> None:
        whole = prototypes.spec()
        bare = replace(whole.classes[0], images=())
        large = replace(whole.classes[0], images=(np.zeros((9, 9, 1), np.uint8),))
        for spec, said in [
            (prototypes.spec(n_classes=11), "11 classes"),
            (prototypes.spec(n_shots=20), "61 images"),
            (TaskSpec((bare, *whole.classes[1:])), "without images"),
            (TaskSpec((large, *whole.classes[1:])), "not \\(8, 8, 1\\)"),
        ]:
            with pytest.raises(GenerationFailed, match=said):
                OnnxGenerator().generate(meta_model, spec)

    def test_unusable_weights_fail(self, zoo: Path) -> None:
        broken = prototypes.meta_model(zoo, name="broken", overflow=True)
        with pytest.raises(GenerationFailed, match="no usable weights"):
            OnnxGenerator().generate(broken, prototypes.spec())

    def test_a_broken_graph_fails(self, zoo: Path, meta_model: MetaModel) -> None:
        files = {name: meta_model.read(name) for name in meta_model.manifest.files}
        broken = metamodel.write(zoo / "broken", meta_model.manifest, {**files, "generator.onnx": b"not a graph"})
        with pytest.raises(GenerationFailed, match="check the service's log"):
            OnnxGenerator().generate(broken, prototypes.spec())


class TestLocalGeneration:
    """On each pair of stores."""

    def test_a_task_becomes_ready_with_its_bundle(
        self, generation: LocalGeneration, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel
    ) -> None:
        record = _create(tasks, meta_model)
        ended = generation.run("ann", record.id)
        data = bundles.get(record.id)
        assert data is not None
        assert decode(data).header.class_names == ("class 0", "class 1", "class 2")
        assert ended == replace(record, state="ready", generate_ms=ended.generate_ms, bytes=len(data))
        assert ended.generate_ms is not None
        assert 0 < ended.generate_ms < 60_000
        assert tasks.get("ann", record.id) == ended

    def test_a_ready_task_is_not_made_again(
        self, generation: LocalGeneration, tasks: TaskStore, meta_model: MetaModel, journal: Path
    ) -> None:
        record = _create(tasks, meta_model)
        assert generation.run("ann", record.id) == generation.run("ann", record.id)
        assert len(pids(journal)) == 1

    def test_unknown_and_others_tasks_are_not_found(
        self, generation: LocalGeneration, tasks: TaskStore, meta_model: MetaModel, journal: Path
    ) -> None:
        record = _create(tasks, meta_model)
        for tenant, ident in [("ann", "nope"), ("bob", record.id)]:
            with pytest.raises(NotFound):
                generation.run(tenant, ident)
        assert pids(journal) == []

    def test_a_deleted_bundle_is_made_again_bit_equal(
        self, generation: LocalGeneration, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel
    ) -> None:
        record = _create(tasks, meta_model)
        generation.run("ann", record.id)
        before = bundles.get(record.id)
        bundles.delete(record.id)
        assert generation.run("ann", record.id).state == "ready"
        assert before is not None
        assert bundles.get(record.id) == before

    def test_a_bundle_with_any_byte_flipped_is_made_again_bit_equal(
        self, generation: LocalGeneration, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, journal: Path
    ) -> None:
        record = _create(tasks, meta_model)
        generation.run("ann", record.id)
        whole = bundles.get(record.id)
        assert whole is not None
        places = np.random.default_rng(0).choice(len(whole), 20, replace=False)
        for place in places:
            broken = bytearray(whole)
            broken[place] ^= 0x10
            bundles.put(record.id, bytes(broken))
            assert generation.run("ann", record.id).state == "ready"
            assert bundles.get(record.id) == whole
        assert len(pids(journal)) == 1 + len(places)

    def test_a_failed_task_says_why_and_is_tried_again(
        self, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel
    ) -> None:
        record = _create(tasks, meta_model)
        without = LocalGeneration(tasks, bundles, {})
        failed = without.run("ann", record.id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert "not installed" in failed.error
        assert bundles.get(record.id) is None
        whole = LocalGeneration(tasks, bundles, {meta_model.name: meta_model})
        again = whole.run("ann", record.id)
        assert (again.state, again.error) == ("ready", None)

    def test_a_meta_model_that_changed_does_not_write_under_the_old_id(
        self, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, zoo: Path
    ) -> None:
        record = _create(tasks, meta_model)
        changed = prototypes.meta_model(zoo, n_loops=1)
        ended = LocalGeneration(tasks, bundles, {changed.name: changed}).run("ann", record.id)
        assert ended.state == "failed"
        assert ended.error is not None
        assert "has changed" in ended.error

    def test_a_task_made_with_another_version_is_left_to_those_who_have_it(
        self, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, zoo: Path
    ) -> None:
        record = _create(tasks, meta_model)
        ready = LocalGeneration(tasks, bundles, {meta_model.name: meta_model}).run("ann", record.id)
        data = bundles.get(record.id)
        changed = prototypes.meta_model(zoo, n_loops=1)
        for others in ({changed.name: changed}, {}):
            with pytest.raises(Unavailable, match=r"has changed|not installed"):
                LocalGeneration(tasks, bundles, others).run("ann", record.id)
        assert tasks.get("ann", record.id) == ready
        assert bundles.get(record.id) == data

    def test_a_task_deleted_while_it_is_made_leaves_nothing(
        self, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel
    ) -> None:
        record, paused = _create(tasks, meta_model), PausedGenerator()
        generation = LocalGeneration(tasks, bundles, {meta_model.name: meta_model}, generator=paused)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(generation.run, "ann", record.id)
            assert paused.entered.wait(120)
            assert tasks.delete("ann", record.id)
            bundles.delete(record.id)
            paused.go_on.set()
            assert isinstance(future.exception(), NotFound)
        assert bundles.get(record.id) is None

    def test_threads_share_one_generation(
        self, generation: LocalGeneration, tasks: TaskStore, meta_model: MetaModel, journal: Path
    ) -> None:
        record = _create(tasks, meta_model)
        start = threading.Barrier(16)

        def ask() -> TaskRecord:
            start.wait()
            return generation.run("ann", record.id)

        with ThreadPoolExecutor(16) as pool:
            ended = [future.result() for future in [pool.submit(ask) for _ in range(16)]]
        assert len(pids(journal)) == 1
        assert {r.state for r in ended} == {"ready"}
        assert len(set(ended)) == 1

    def test_processes_share_one_generation(
        self, place: Place, tasks: TaskStore, zoo: Path, journal: Path, spawn: SpawnContext
    ) -> None:
        record = _create(tasks, prototypes.meta_model(zoo, n_loops=prototypes.SLOW_LOOPS))
        with spawn.Manager() as manager, ProcessPoolExecutor(3, mp_context=spawn) as pool:
            start = manager.Barrier(3)
            asked = [pool.submit(generate, place, zoo, record.id, journal, LEASE_S, start) for _ in range(3)]
            ended = [future.result() for future in asked]
        assert len(pids(journal)) == 1
        assert {r.state for r in ended} == {"ready"}
        assert len(set(ended)) == 1

    def test_the_lease_is_renewed_while_generating(
        self, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Claimed again and again; that a claim prolongs a lease, the contract of the stores shows."""
        record, paused, claimed = _create(tasks, meta_model), PausedGenerator(), threading.Semaphore(0)
        claim = tasks.claim

        def counted(tenant: str, task_id: str, *, owner: str, lease_s: float) -> bool:
            held = claim(tenant, task_id, owner=owner, lease_s=lease_s)
            claimed.release()
            return held

        monkeypatch.setattr(tasks, "claim", counted)
        generation = LocalGeneration(tasks, bundles, {meta_model.name: meta_model}, lease_s=0.3, generator=paused)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(generation.run, "ann", record.id)
            assert paused.entered.wait(120)
            assert all(claimed.acquire(timeout=120) for _ in range(6))
            left = tasks.get("ann", record.id)
            paused.go_on.set()
            assert future.result().state == "ready"
        assert left is not None
        assert left.state == "generating"

    def test_a_killed_process_is_taken_over(
        self, place: Place, tasks: TaskStore, bundles: BundleStore, meta_model: MetaModel, zoo: Path, journal: Path,
        spawn: SpawnContext,
    ) -> None:  # fmt: skip
        record = _create(tasks, meta_model)
        never = zoo / "never"
        victim = spawn.Process(target=generate, args=(place, zoo, record.id, journal, 1.0, None, never))
        victim.start()
        until(lambda: pids(journal) == [victim.pid])
        victim.kill()
        victim.join()
        left = tasks.get("ann", record.id)
        assert left is not None
        assert left.state == "generating"
        ended = generate(place, zoo, record.id, journal, LEASE_S, None)
        assert ended.state == "ready"
        assert len(pids(journal)) == 2
        data = bundles.get(record.id)
        assert data is not None
        assert decode(data).header.meta_model_digest == meta_model.digest

    def test_closing_ends_waiting_for_another_process(self, generation: LocalGeneration, tasks: TaskStore,
                                                      meta_model: MetaModel) -> None:  # fmt: skip
        record = _create(tasks, meta_model)
        tasks.claim("ann", record.id, owner="another process", lease_s=LEASE_S)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(generation.run, "ann", record.id)
            until(lambda: future.running())
            generation.close()
            assert isinstance(future.exception(), Unavailable)
        with pytest.raises(Unavailable, match="stopping"):
            generation.run("ann", record.id)


def test_an_evicted_bundle_is_made_again_bit_equal(tmp_path: Path, meta_model: MetaModel) -> None:
    place = Place("embedded", str(tmp_path / "state"))
    bundles = FileBundleStore(tmp_path / "small", max_bytes=5_000)
    with place.tasks() as tasks:
        generation = LocalGeneration(tasks, bundles, {meta_model.name: meta_model})
        records = [_create(tasks, meta_model, seed=seed) for seed in range(8)]
        first = {r.id: _made(generation, bundles, r) for r in records}
        gone = [r for r in records if bundles.get(r.id) is None]
        assert gone
        assert records[0] in gone
        assert records[-1] not in gone
        assert {r.id: _made(generation, bundles, r) for r in records} == first


def test_a_store_out_of_order_leaves_the_task_for_later(tmp_path: Path, meta_model: MetaModel) -> None:
    place = Place("embedded", str(tmp_path / "state"))
    bundles = FileBundleStore(tmp_path / "gone", max_bytes=1_000_000)
    (tmp_path / "gone").rmdir()
    with place.tasks() as tasks:
        record = _create(tasks, meta_model)
        generation = LocalGeneration(tasks, bundles, {meta_model.name: meta_model})
        with pytest.raises(Unavailable, match="disk"):
            generation.run("ann", record.id)
        assert list(tasks.unfinished(limit=1)) == [("ann", record.id)]
        (tmp_path / "gone").mkdir()
        ready = generation.run("ann", record.id)
        assert ready.state == "ready"
        bundles.delete(record.id)
        (tmp_path / "gone").rmdir()
        with pytest.raises(Unavailable, match="disk"):
            generation.run("ann", record.id)
        left = tasks.get("ann", record.id)
        assert left is not None
        assert (left.generate_ms, left.bytes) == (ready.generate_ms, ready.bytes)  # it was made once: no new task


def _create(tasks: TaskStore, meta_model: MetaModel, *, seed: int = 0) -> TaskRecord:
    record, recipe = prototypes.task(meta_model, prototypes.spec(seed=seed))
    assert tasks.create(record, recipe)
    return record


def _made(generation: LocalGeneration, bundles: BundleStore, record: TaskRecord) -> bytes | None:
    assert generation.run("ann", record.id).state == "ready"
    return bundles.get(record.id)
