import asyncio
import dataclasses
import queue
import threading
import time
from functools import partial

import pytest

from models.errors import Busy
from service.observability.telemetry import Metrics
from service.prediction.pieces import Request
from service.prediction.sessions import SharedNetworks
from service.prediction.waiting import RUNNER_S, WaitingLine
from tests.service import tiny

IMAGE = b"an image"  # nothing here decodes it


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    meta_model = tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")
    return SharedNetworks().session(meta_model, tiny.bundle(meta_model), "t", "a")


class Line:
    """A line without runners: what is taken, in which order, is told as (tenant, task, images)."""

    def __init__(
        self,
        session,
        loop,
        *,
        n_runners=1,
        image_s=0.001,
        max_batch=4,
        max_images=1000,
        deadline_s=1000.0,
        batch_s=0.004,
    ):
        self.session, self.loop, self.metrics = session, loop, Metrics()
        self.line = WaitingLine(n_runners=n_runners, max_batch=max_batch, max_images=max_images, deadline_s=deadline_s,
                                batch_s=batch_s, metrics=self.metrics)  # fmt: skip
        self.line.costs.learn(session.kind, 1, image_s)
        self.sessions = {}

    def task(self, tenant, task_id, network=None):
        """The one session of a task; ``network``: another than the one shared by the others."""
        if (tenant, task_id) not in self.sessions:
            made = dataclasses.replace(self.session, tenant=tenant, task_id=task_id)
            self.sessions[tenant, task_id] = dataclasses.replace(made, network=network) if network else made
        return self.sessions[tenant, task_id]

    def put(self, tenant, task_id, n_images=1, *, times=1, network=None):
        made = []
        for _ in range(times):
            made.append(Request(self.task(tenant, task_id, network), None, lambda _: None, self.loop))
            self.line.put(made[-1], [IMAGE] * n_images)
        return made

    def take(self):
        """One batch, finished at once; costs are not learned, so that what follows can be foretold."""
        batch = self.line.take()
        self.line.done(batch, 0.0, 0)
        return [(p.request.session.tenant, p.request.session.task_id, len(p.images)) for p in batch]

    def take_all(self):
        batches = []
        while self.line.n_images:
            batches.append(self.take())
        assert self.line.backlog_s == 0
        assert self.line._turns.is_empty
        return batches

    def sample(self, reason):
        return self.metrics.registry.get_sample_value("classmith_shed_total", {"reason": reason})


@pytest.fixture
def make(session):
    loop = asyncio.new_event_loop()
    yield partial(Line, session, loop)
    loop.close()


def test_tasks_of_a_shared_network_are_run_together(make):
    line = make()
    for task in "abcdef":
        line.put("t", task)
    assert line.take_all() == [[("t", task, 1) for task in "abcd"], [("t", task, 1) for task in "ef"]]


def test_one_hot_task_does_not_keep_the_others_waiting(make):
    line = make()
    line.put("t", "hot", times=20)
    for task in "abcdefg":
        line.put("t", task)
    batches = line.take_all()
    assert batches[0] == [("t", "hot", 1)] * 4  # it was first
    assert [task for batch in batches[1:3] for _, task, _ in batch] == [*"abcdefg", "hot"]


def test_every_task_is_served_in_a_round_however_much_each_has_waiting(make):
    line = make()
    for task in "abc":
        line.put("t", task, times=8)
    batches = line.take_all()
    assert [{task for _, task, _ in batch} for batch in batches] == [{"a"}, {"b"}, {"c"}] * 2


def test_tenants_share_the_time_whatever_their_number_of_tasks(make):
    line = make()
    for task in range(40):
        line.put("many", str(task))
    line.put("one", "x", times=40)
    first = [tenant for batch in line.take_all()[:10] for tenant, _, _ in batch]
    assert first.count("one") == first.count("many") == 20


def test_a_tenant_of_costly_networks_gets_as_much_time_not_as_many_images(make, session):
    line = make()
    costly = dataclasses.replace(session, tensors={})  # another kind: a network of its own
    line.line.costs.learn(costly.kind, 1, 0.004)
    own = object()
    line.sessions["slow", "s"] = dataclasses.replace(costly, tenant="slow", task_id="s", network=own)
    line.put("slow", "s", times=40)
    line.put("fast", "f", times=160)
    first = [tenant for batch in line.take_all()[:40] for tenant, _, _ in batch]
    assert 3.5 <= first.count("fast") / first.count("slow") <= 4.5


def test_room_in_a_batch_goes_to_other_tenants_of_the_same_network(make):
    line = make()
    line.put("ann", "a")
    line.put("bob", "b", times=2)
    line.put("cyd", "c", network=object())
    assert line.take_all() == [[("ann", "a", 1), ("bob", "b", 1), ("bob", "b", 1)], [("cyd", "c", 1)]]


def test_networks_of_their_own_take_turns_with_the_shared_one(make):
    line, own = make(), object()
    line.put("t", "own", times=12, network=own)
    for task in range(12):
        line.put("t", str(task))
    kinds = [{"own" if task == "own" else "shared" for _, task, _ in batch} for batch in line.take_all()]
    assert kinds == [{"own"}, {"shared"}] * 3


def test_a_piece_that_does_not_fit_comes_first_in_the_next_batch(make):
    line = make(max_batch=8, batch_s=1.0)
    line.put("t", "a", times=3)
    line.put("t", "big", 6)
    line.put("t", "c")
    assert line.take() == [("t", "a", 1)] * 3
    assert line.take() == [("t", "big", 6), ("t", "c", 1)]


def test_a_batch_grows_no_longer_than_the_time_it_may_take(make):
    line = make(image_s=0.003, max_batch=64, batch_s=0.013)
    line.put("t", "a", times=9)
    assert [len(batch) for batch in line.take_all()] == [4, 4, 1]


def test_a_task_that_fills_the_line_keeps_out_itself_and_nobody_else(make):
    line = make(max_images=20)
    line.put("t", "hot", times=20)
    with pytest.raises(Busy, match="20 images are waiting"):
        line.put("t", "hot")
    line.put("t", "modest", 5)
    line.put("other", "x", 5)
    for tenant, task in (("t", "hot"), ("t", "modest"), ("other", "x")):
        with pytest.raises(Busy):
            line.put(tenant, task, 6)
    assert line.sample("queue_full") == 4
    assert line.line.n_images == 30
    assert sum(n for batch in line.take_all() for *_, n in batch) == 30


def test_the_line_is_bounded_however_many_tasks_come(make):
    line, n_refused = make(max_images=100), 0
    for task in range(2000):
        try:
            line.put("t", str(task), 5)
        except Busy:
            n_refused += 1
    assert line.line.n_images <= 100
    assert n_refused == 2000 - line.line.n_images / 5


def test_the_wait_of_a_task_is_that_of_its_turns(make):
    """One task has queued more than the deadline; another is served within a round, and is taken."""
    line = make(image_s=0.1, batch_s=0.1, deadline_s=5.0)
    line.put("t", "hot", 52)
    with pytest.raises(Busy) as refused:
        line.put("t", "hot")
    assert 0.75 * 2.5 <= refused.value.retry_after_s <= 1.5 * 2.8  # from a wait of 5.2 s to one of half the deadline
    line.put("t", "other")
    assert line.sample("deadline") == 1


def test_while_more_comes_than_is_served_the_line_is_short(make):
    line = make(image_s=0.1, batch_s=0.1, deadline_s=20.0)
    line.put("t", "hot", 10, times=20)
    with pytest.raises(Busy):
        line.put("t", "hot", times=20)
    while line.line.backlog_s > 3:
        line.take()
    with pytest.raises(Busy) as refused:
        line.put("t", "hot")
    assert 0.75 * 1 <= refused.value.retry_after_s <= 1.5 * 2  # from a wait of 2 to 3 s to one of half the short line
    line.put("t", "other")  # nothing of it waits: its turn comes as ever
    line.put("modest", "x", 5, times=4)  # another's burst is taken whole
    while line.line.backlog_s > 1.5:
        line.take()
    line.put("t", "hot", 4)
    line.take_all()


def test_when_nobody_was_refused_for_a_while_a_burst_is_taken_whole(make):
    line = make(image_s=0.1, batch_s=0.1, deadline_s=20.0)
    line.put("t", "hot", 10, times=20)
    with pytest.raises(Busy):
        line.put("t", "hot", times=20)
    line.take_all()
    line.line._refused_at["t"] -= 20
    line.put("t", "hot", 10, times=20)
    assert line.line.n_images == 200
    line.take_all()


def test_what_is_being_read_counts_as_coming(make):
    line = make(image_s=0.1, deadline_s=1.0)
    line.put("ann", "a", n_images=6)  # learns that a request is some work, of which 0.6 s wait
    line.line._request_s = 0.6
    with line.line.reading("ann", "a"):
        with pytest.raises(Busy), line.line.reading("ann", "a"):
            raise AssertionError("it is refused before the block")
        line.line.refuse_if_full("ann", "b")  # has its own turns, and nothing waiting
    line.line._refused_at["ann"] -= 1
    line.line.refuse_if_full("ann", "a")  # what was read is counted no longer
    line.take_all()
    assert not line.line._reading


def test_what_has_waited_past_the_deadline_is_refused_and_not_run(make):
    line = make(deadline_s=30.0)
    late, in_time = line.put("t", "a", times=2)
    late.queued_at -= 31
    batch = line.line.take()
    assert [piece.request for piece in batch] == [late, in_time]
    assert isinstance(batch[0].error, Busy)
    assert batch[1].error is None
    assert line.sample("expired") == 1


def test_a_request_that_has_begun_is_finished_however_long_that_takes(make):
    line = make(deadline_s=30.0)
    (request,) = line.put("t", "a", 8)
    assert line.line.take()[0].error is None
    request.queued_at -= 31
    assert line.line.take()[0].error is None


def test_withdrawn_work_leaves_nothing_behind(make):
    line = make()
    doomed = [request for task in "ab" for request in line.put("t", task, 6, times=3)]
    kept = line.put("t", "c")
    for request in doomed:
        line.line.withdraw(request)
        line.line.withdraw(request)
    assert line.line.n_images == 1
    assert [piece.request for piece in line.line.take()] == kept
    assert line.line._turns.is_empty


class Runners:
    """Threads that take from a line and finish a batch when told to."""

    def __init__(self, line, n):
        self.line, self.taken, self.go_on = line, queue.Queue(), threading.Semaphore(0)
        self.threads = [threading.Thread(target=self.work) for _ in range(n)]

    def work(self):
        while (batch := self.line.take()) is not None:
            self.taken.put(sum(len(piece.images) for piece in batch))
            assert self.go_on.acquire(timeout=60)
            self.line.done(batch, 0.0, 0)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        while self.line._n_idle < len(self.threads):
            time.sleep(0.001)
        return self

    def __exit__(self, *_):
        for _ in self.threads * 10:
            self.go_on.release()
        self.line.close()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()

    def next(self):
        return self.taken.get(timeout=60)


def test_little_work_is_left_to_the_runner_that_is_awake_and_more_wakes_another(make):
    line = make(n_runners=2, image_s=RUNNER_S / 10, batch_s=1.0)
    with Runners(line.line, 2) as runners:
        line.put("t", "a")
        assert runners.next() == 1
        line.put("t", "b", 2)
        assert (line.line.n_images, line.line._n_idle) == (2, 1)
        line.put("t", "c", 8)
        assert runners.next() == 2  # of 4 at most in a batch: b's two, then c's first do not fit
    assert line.line.n_images == 0


def test_a_runner_comes_for_little_work_where_the_other_takes_longer_than_was_expected(make):
    line = make(n_runners=2, image_s=RUNNER_S / 10, batch_s=1.0)
    with Runners(line.line, 2) as runners:
        line.put("t", "a")
        assert runners.next() == 1
        line.put("t", "b")
        line.line._taken_at = time.perf_counter() + 60  # expected back
        assert line.line.nudge()
        assert line.line._n_idle == 1
        line.line._taken_at -= 120
        assert line.line.nudge()
        assert runners.next() == 1
        assert not line.line.nudge()


def test_one_runner_that_comes_back_takes_what_was_left_to_it(make):
    line = make(n_runners=2, image_s=RUNNER_S / 10, batch_s=1.0)
    with Runners(line.line, 2) as runners:
        line.put("t", "a")
        assert runners.next() == 1
        line.put("t", "b", 2)
        runners.go_on.release()
        assert runners.next() == 2
        assert line.line._n_idle == 1
