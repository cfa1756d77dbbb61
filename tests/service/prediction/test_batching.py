import asyncio
import dataclasses
import gc
import random
import threading

import numpy as np
import pytest

from models.decision import decide
from models.errors import BrokenImage, Busy, InvalidRequest, TooLarge, Unavailable, UnsupportedMedia
from models.preprocess import to_pixels
from service.observability.telemetry import Metrics
from service.prediction.batching import Batcher, Prediction
from service.prediction.costs import FIRST_GUESS_S
from service.prediction.pieces import Piece, Request
from service.prediction.sessions import SharedNetworks, build_session
from tests.service import tiny

DRAWINGS = [tiny.drawing(seed) for seed in range(40)]
BROKEN = DRAWINGS[0][:200]


@pytest.fixture(scope="module")
def meta_model(tmp_path_factory):
    return tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")


@pytest.fixture(scope="module")
def session(meta_model):
    return build_session(meta_model, tiny.bundle(meta_model), "t", "a")


class Gate:
    """A network that tells when it runs and on how much, and waits to be let through."""

    def __init__(self, network, runs, name):
        self.network, self.runs, self.name = network, runs, name
        self.entered, self.open = threading.Semaphore(0), threading.Event()

    def run(self, tasks, pixels):
        self.runs.append((self.name, len(pixels)))
        self.entered.release()
        assert self.open.wait(120)
        return self.network.run(tasks, pixels)


def gated(session, runs, name="a"):
    gate = Gate(session.network, runs, name)
    return dataclasses.replace(session, task_id=name, network=gate), gate


def run(scenario, *, n_runners=1, max_batch=16, max_queue_images=10_000, deadline_s=1000.0, batch_s=1000.0, **options):
    """On a batcher that takes as much at once as ``max_batch`` allows, however long that takes."""

    async def main():
        batcher = Batcher(n_runners=n_runners, max_batch=max_batch, max_queue_images=max_queue_images,
                          deadline_s=deadline_s, batch_s=batch_s, **options)  # fmt: skip
        try:
            return await asyncio.wait_for(scenario(batcher), 240)
        finally:
            await batcher.drain()

    return asyncio.run(main())


def start(batcher, session, images, top_k=None):
    return asyncio.create_task(batcher.predict(session, images, top_k))


async def hold(batcher, session, gate):
    """Occupy one runner with a request that waits at the gate."""
    held = start(batcher, session, DRAWINGS[:1])
    await asyncio.to_thread(gate.entered.acquire)
    return held


def expected(session, images):
    logits = np.concatenate([session.run(to_pixels(image, session.preprocess)[None]) for image in images])
    header = session.header
    return decide(logits, header.class_names, temperature=header.temperature, abstain_below=header.abstain_below)


def test_an_image_gets_the_same_answer_alone_in_any_batch_and_permuted(session):
    alone = expected(session, DRAWINGS)
    order = random.Random(0).sample(range(40), 40)

    async def scenario(batcher):
        whole = await batcher.predict(session, DRAWINGS)
        permuted = await batcher.predict(session, [DRAWINGS[i] for i in order])
        singles = await asyncio.gather(*(batcher.predict(session, [image]) for image in DRAWINGS))
        assert whole.decisions == alone
        assert permuted.decisions == [alone[i] for i in order]
        assert [single.decisions[0] for single in singles] == alone

    run(scenario, n_runners=2, max_batch=7)


def test_what_waits_is_run_together_and_one_alone_waits_for_nobody(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        waiting = [start(batcher, task, DRAWINGS[i : i + 2]) for i in range(0, 20, 2)]
        await asyncio.sleep(0)
        assert batcher.n_images == 20
        gate.open.set()
        results = await asyncio.gather(held, *waiting)
        assert [d for result in results[1:] for d in result.decisions] == expected(session, DRAWINGS[:20])
        assert batcher.n_images == 0

    run(scenario, max_batch=16)
    assert runs == [("a", 1), ("a", 16), ("a", 4)]


def test_times_are_told_in_milliseconds(session):
    async def scenario(batcher):
        return await batcher.predict(session, DRAWINGS[:3])

    prediction = run(scenario)
    assert 0 <= prediction.queue_ms < 10_000
    assert 0 < prediction.decode_ms < 10_000
    assert 0 < prediction.run_ms < 10_000


def test_top_k_is_each_requests_own(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        waiting = [start(batcher, task, DRAWINGS[:1], top_k) for top_k in (1, 3, None)]
        gate.open.set()
        results = await asyncio.gather(held, *waiting)
        return [len(result.decisions[0].probabilities) for result in results]

    assert run(scenario) == [20, 1, 3, 20]


@pytest.mark.parametrize(("bad", "error"), [(BROKEN, BrokenImage), (b"GIF89a" + b"0" * 50, UnsupportedMedia),
                                            (tiny.drawing(0, size=300), TooLarge)])  # fmt: skip
def test_a_bad_image_fails_only_its_own_request(session, bad, error):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        good = start(batcher, task, DRAWINGS[:2])
        wrong = start(batcher, task, [DRAWINGS[0], bad, DRAWINGS[1]])
        last = start(batcher, task, DRAWINGS[2:4])
        gate.open.set()
        with pytest.raises(error) as failure:
            await wrong
        assert failure.value.where == "images[1]"
        assert (await good).decisions + (await last).decisions == expected(session, DRAWINGS[:4])
        await held

    run(scenario, max_pixels=200 * 200)
    assert runs == [("a", 1), ("a", 4)]


def test_a_request_of_broken_images_alone_runs_nothing(session):
    runs = []
    task, gate = gated(session, runs)
    gate.open.set()

    async def scenario(batcher):
        with pytest.raises(BrokenImage):
            await batcher.predict(task, [BROKEN])
        await batcher.predict(task, DRAWINGS[:1])

    run(scenario)
    assert runs == [("a", 1)]


def test_the_index_of_a_broken_image_counts_over_the_whole_request(session):
    async def scenario(batcher):
        with pytest.raises(BrokenImage) as failure:
            await batcher.predict(session, [*DRAWINGS[:33], BROKEN])
        assert failure.value.where == "images[33]"

    run(scenario, n_runners=2)


def test_tasks_take_turns(session):
    """A task with five full batches does not keep another's single image waiting for more than one of them."""
    runs = []
    greedy, gate = gated(session, runs, "greedy")
    modest, other = gated(session, runs, "modest")
    other.open.set()

    async def scenario(batcher):
        held = await hold(batcher, greedy, gate)
        many = [start(batcher, greedy, DRAWINGS[:8]) for _ in range(10)]
        few = [start(batcher, modest, DRAWINGS[:1]) for _ in range(3)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(held, *many, *few)

    run(scenario)
    assert runs == [("greedy", 1), ("greedy", 16), ("modest", 3)] + [("greedy", 16)] * 4


def test_a_big_request_is_split_over_the_runners_and_put_together_in_order(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        big = start(batcher, task, DRAWINGS)
        for _ in range(2):  # both runners are at it at once
            await asyncio.to_thread(gate.entered.acquire)
        gate.open.set()
        assert (await big).decisions == expected(session, DRAWINGS)

    run(scenario, n_runners=2, max_batch=64)
    assert runs == [("a", 20), ("a", 20)]


def test_a_full_queue_refuses_with_a_computed_time_and_then_empties(session):
    runs, metrics = [], Metrics()
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        batcher._line.costs.learn("tiny", 1, 1.0)
        waiting = [start(batcher, task, DRAWINGS[:5]) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="10 images are waiting") as refused:
            await batcher.predict(task, DRAWINGS[:1])
        assert 0.75 * 5 <= refused.value.retry_after_s <= 1.5 * 5.1  # half of 10 s, give or take the jitter
        assert metrics.registry.get_sample_value("classmith_queue_depth") == 10
        gate.open.set()
        await asyncio.gather(held, *waiting)
        assert batcher.n_images == 0
        assert len((await batcher.predict(task, DRAWINGS[:10])).decisions) == 10

    run(scenario, max_queue_images=10, metrics=metrics)
    assert metrics.registry.get_sample_value("classmith_shed_total", {"reason": "queue_full"}) == 1


def test_a_wait_predicted_past_the_deadline_is_refused_at_once(session):
    runs, metrics = [], Metrics()
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        batcher._line.costs.learn("tiny", 1, 1.0)
        waiting = start(batcher, task, DRAWINGS[:8])
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await batcher.predict(task, DRAWINGS[:1])
        assert 0.75 * 6 <= refused.value.retry_after_s <= 1.5 * 6.1  # from a wait of 8 s to one of half the deadline
        gate.open.set()
        await asyncio.gather(held, waiting)
        await batcher.predict(task, DRAWINGS[:1])

    run(scenario, deadline_s=4.0, metrics=metrics)
    assert metrics.registry.get_sample_value("classmith_shed_total", {"reason": "deadline"}) == 1


def test_a_task_that_waits_past_the_limits_is_refused_before_its_images_are_read_and_another_is_not(session):
    runs, metrics = [], Metrics()
    task, gate = gated(session, runs)

    async def scenario(batcher):
        batcher.refuse_if_full(task.tenant, task.task_id)  # nothing waits
        held = await hold(batcher, task, gate)
        waiting = start(batcher, task, DRAWINGS[:10])
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="10 images are waiting") as refused:
            batcher.refuse_if_full(task.tenant, task.task_id)
        assert refused.value.retry_after_s > 0
        batcher.refuse_if_full(task.tenant, "another")
        batcher.refuse_if_full("another", task.task_id)
        gate.open.set()
        await asyncio.gather(held, waiting)
        batcher.refuse_if_full(task.tenant, task.task_id)

    run(scenario, max_queue_images=10, metrics=metrics)
    assert metrics.registry.get_sample_value("classmith_shed_total", {"reason": "queue_full"}) == 1


def test_one_request_larger_than_the_queue_is_taken_when_nothing_waits(session):
    async def scenario(batcher):
        return len((await batcher.predict(session, DRAWINGS)).decisions)

    assert run(scenario, max_queue_images=10) == 40


def test_an_overload_of_a_hundred_clients_ends_with_every_one_answered_or_refused(session):
    task, gate = gated(session, [])

    async def scenario(batcher):
        held = [await hold(batcher, task, gate) for _ in range(2)]
        clients = [start(batcher, task, DRAWINGS[:3]) for _ in range(100)]
        await asyncio.sleep(0)
        gate.open.set()
        outcomes = await asyncio.gather(*clients, return_exceptions=True)
        assert sum(isinstance(o, Prediction) for o in outcomes) == 13  # what the queue had room for
        refused = [o for o in outcomes if isinstance(o, Busy)]
        assert len(refused) == 87
        assert all(0.05 <= busy.retry_after_s < 10 for busy in refused)
        await asyncio.gather(*held)
        assert batcher.n_images == 0

    run(scenario, n_runners=2, max_queue_images=40)


def test_drain_finishes_what_is_queued_and_refuses_what_comes(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        waiting = [start(batcher, task, DRAWINGS[:4]) for _ in range(10)]
        await asyncio.sleep(0)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await batcher.predict(task, DRAWINGS[:1])
        gate.open.set()
        await draining
        results = await asyncio.gather(held, *waiting)
        assert sum(len(result.decisions) for result in results) == 41
        assert not any(runner.is_alive() for runner in batcher._runners)

    run(scenario)


def test_cancelled_requests_are_skipped_and_leave_nothing_behind(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        doomed = [start(batcher, task, DRAWINGS[:2]) for _ in range(200)]
        await asyncio.sleep(0)
        assert batcher.n_images == 400
        for request in doomed:
            request.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*doomed, return_exceptions=True))
        assert batcher.n_images == 0
        survivor = start(batcher, task, DRAWINGS[:1])
        gate.open.set()
        await asyncio.gather(held, survivor)
        del doomed
        assert batcher._line.backlog_s == 0
        assert batcher._line._turns.is_empty

    run(scenario)
    assert runs == [("a", 1), ("a", 1)]
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) in (Request, Piece)]


def test_cancelling_what_runs_already_harms_nobody(session):
    runs = []
    task, gate = gated(session, runs)

    async def scenario(batcher):
        held = await hold(batcher, task, gate)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        other = start(batcher, task, DRAWINGS[:1])
        gate.open.set()
        assert (await other).decisions == expected(session, DRAWINGS[:1])
        assert batcher._line.backlog_s == 0

    run(scenario)


def test_requests_are_freed_without_the_cycle_collector(session):
    """Each may hold megabytes; they must go when they end, not when the collector happens to run."""

    async def scenario(batcher):
        for images in (DRAWINGS[:2], DRAWINGS, [BROKEN]):
            await asyncio.gather(batcher.predict(session, images), return_exceptions=True)
        await batcher.drain()

    gc.collect()
    gc.disable()
    try:
        run(scenario, n_runners=2)
        left = [o for o in gc.get_objects() if type(o) in (Request, Piece)]
    finally:
        gc.enable()
    assert left == []


def test_a_network_that_fails_fails_its_batch_and_no_other(session, caplog):
    class Failing:
        def run(self, tasks, pixels):
            raise RuntimeError("out of memory")

    sick = dataclasses.replace(session, network=Failing())

    async def scenario(batcher):
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.predict(sick, DRAWINGS[:2])
        assert (await batcher.predict(session, DRAWINGS[:2])).decisions == expected(session, DRAWINGS[:2])

    run(scenario)
    assert "a batch failed" in caplog.text


def test_no_image_is_a_malformed_request(session):
    async def scenario(batcher):
        with pytest.raises(InvalidRequest, match="at least one"):
            await batcher.predict(session, [])

    run(scenario)


def test_a_measured_time_replaces_the_guess(session):
    async def scenario(batcher):
        for _ in range(5):
            await batcher.predict(session, DRAWINGS)
        assert 0 < batcher._line.costs.image_s("tiny") != FIRST_GUESS_S
        assert batcher._line.backlog_s == 0

    run(scenario)


def test_metrics_count_batches_and_times(session):
    metrics = Metrics()

    async def scenario(batcher):
        await asyncio.gather(*(batcher.predict(session, DRAWINGS[:5]) for _ in range(4)))

    run(scenario, metrics=metrics)
    sample = metrics.registry.get_sample_value
    assert sample("classmith_batch_size_sum") == 20
    assert sample("classmith_queue_duration_seconds_count") == 4
    assert sample("classmith_decode_duration_seconds_count") == 4
    assert sample("classmith_infer_duration_seconds_sum") > 0


def test_a_storm_of_mixed_requests_ends_in_order(meta_model):
    """Three tasks; requests of many sizes, some broken, some cancelled: each right, nothing left."""
    dice = random.Random(5)
    tasks = [build_session(meta_model, tiny.bundle(meta_model, seed=i), "t", str(i)) for i in range(3)]
    answers = [expected(task, DRAWINGS) for task in tasks]

    async def client(batcher):
        k, size = dice.randrange(3), dice.choice([1, 1, 1, 2, 5, 40])
        chosen = [dice.randrange(40) for _ in range(size)]
        images = [DRAWINGS[i] for i in chosen]
        if dice.random() < 0.2:
            images[dice.randrange(size)] = BROKEN
            with pytest.raises(BrokenImage):
                await batcher.predict(tasks[k], images)
        elif dice.random() < 0.3:
            request = start(batcher, tasks[k], images)
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        else:
            assert (await batcher.predict(tasks[k], images)).decisions == [answers[k][i] for i in chosen]

    async def scenario(batcher):
        await asyncio.gather(*(client(batcher) for _ in range(150)))
        await batcher.drain()
        assert batcher.n_images == 0
        assert batcher._line.backlog_s == 0
        assert batcher._line._turns.is_empty

    run(scenario, n_runners=3)


def test_tasks_that_share_a_network_run_together_and_answer_as_alone(meta_model):
    """To the last bit, whatever they were run with: other tasks, other numbers of classes, other tenants."""
    networks, runs = SharedNetworks(), []
    made = [networks.session(meta_model, tiny.bundle(meta_model, n_classes=2 + i, seed=i), f"tenant {i % 3}", str(i))
            for i in range(12)]  # fmt: skip
    alone = [expected(task, DRAWINGS[i : i + 2]) for i, task in enumerate(made)]
    gate = Gate(made[0].network, runs, "shared")
    tasks = [dataclasses.replace(task, network=gate) for task in made]

    async def scenario(batcher):
        held = await hold(batcher, tasks[0], gate)
        waiting = [start(batcher, task, DRAWINGS[i : i + 2]) for i, task in enumerate(tasks)]
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(*waiting)
        await held
        assert [result.decisions for result in results] == alone

    run(scenario, max_batch=24)
    assert runs == [("shared", 1), ("shared", 24)]
