"""What every TaskStore promises, on each of them."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.context import SpawnContext
from types import FrameType

import pytest

from models.errors import Unavailable
from service.ports import Position, TaskStore
from tests.contract.places import Place, claim_and_hang, claim_each, create_and_die, create_each, record

N_PROCESSES = 3
N_THREADS = 16


def test_a_created_task_reads_back_equal(tasks: TaskStore) -> None:
    assert tasks.create(record("a1", created_at=1234.000001), b"\x00recipe\xff")
    assert tasks.get("ann", "a1") == record("a1", created_at=1234.000001)
    assert tasks.recipe("ann", "a1") == b"\x00recipe\xff"


def test_notes_are_kept_through_every_change(tasks: TaskStore) -> None:
    noted = replace(record("a1"), notes=("The description of 'a' is blank.", "Äffchen 🐒"))
    tasks.create(noted, b"recipe")
    assert tasks.get("ann", "a1") == noted
    assert tasks.list("ann", limit=1) == [noted]
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    tasks.release("ann", "a1", owner="x", state="ready")
    assert tasks.get("ann", "a1") == replace(noted, state="ready")


def test_create_never_overwrites(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"first")
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert not tasks.create(record("a1", created_at=9.0), b"second")
    assert not tasks.create(record("a1", tenant="bob"), b"third")
    assert tasks.recipe("ann", "a1") == b"first"
    kept = tasks.get("ann", "a1")
    assert kept is not None
    assert (kept.state, kept.created_at) == ("generating", 1.0)


def test_unknown_tasks_are_none(tasks: TaskStore) -> None:
    assert tasks.get("ann", "nope") is None
    assert tasks.recipe("ann", "nope") is None
    assert tasks.list("ann", limit=10) == []
    assert not tasks.delete("ann", "nope")
    assert not tasks.claim("ann", "nope", owner="x", lease_s=600)
    assert not tasks.release("ann", "nope", owner="x", state="ready")


def test_tasks_are_counted_by_tenant(tasks: TaskStore) -> None:
    for name in ("a1", "a2", "a2"):
        tasks.create(record(name), b"recipe")
    tasks.create(record("b1", tenant="bob"), b"recipe")
    assert (tasks.count("ann"), tasks.count("bob"), tasks.count("eve")) == (2, 1, 0)
    tasks.delete("bob", "a1")
    tasks.delete("ann", "a2")
    assert (tasks.count("ann"), tasks.count("bob")) == (1, 1)


LOOKUPS: dict[str, Callable[[TaskStore, str], object]] = {
    "get": lambda tasks, ident: tasks.get("bob", ident),
    "recipe": lambda tasks, ident: tasks.recipe("bob", ident),
    "delete": lambda tasks, ident: tasks.delete("bob", ident),
    "claim": lambda tasks, ident: tasks.claim("bob", ident, owner="x", lease_s=60),
    "release": lambda tasks, ident: tasks.release("bob", ident, owner="x", state="failed"),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_foreign_task_misses_by_the_path_of_an_unknown_one(tasks: TaskStore, name: str) -> None:
    """Not a test of time: the same functions are called in the same order, so there is nothing to time."""
    tasks.create(record("a1"), b"recipe")
    look = LOOKUPS[name]
    look(tasks, "never-was")  # what is done once, e.g. a connection, is done
    assert calls(lambda: look(tasks, "a1")) == calls(lambda: look(tasks, "a2"))


def calls(work: Callable[[], object]) -> list[str]:
    """The functions that work calls, of Python and of C, in their order."""
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            found.append(frame.f_code.co_qualname)
        elif event == "c_call":
            found.append(getattr(argument, "__qualname__", ""))

    gc.collect()
    gc.disable()  # else what other tests left is taken away in the middle
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


def test_other_tenants_see_and_change_nothing(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"recipe")
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert tasks.get("bob", "a1") is None
    assert tasks.recipe("bob", "a1") is None
    assert tasks.list("bob", limit=10) == []
    assert not tasks.delete("bob", "a1")
    assert not tasks.claim("bob", "a1", owner="x", lease_s=600)
    assert not tasks.release("bob", "a1", owner="x", state="failed")
    kept = tasks.get("ann", "a1")
    assert kept is not None
    assert kept.state == "generating"
    assert tasks.list("bob", limit=10, after=Position(9.0, "a1")) == []


def test_pages_are_newest_first_then_by_id_and_meet_without_gap(tasks: TaskStore) -> None:
    ages = {"e": 5.0, "c": 3.0, "b": 3.0, "d": 3.0, "a": 1.0}
    for task_id, created_at in ages.items():
        tasks.create(record(task_id, created_at=created_at), b"")
    tasks.create(record("z", tenant="bob", created_at=4.0), b"")
    assert _listed(tasks, limit=10) == ["e", "b", "c", "d", "a"]
    assert _listed(tasks, limit=2) == ["e", "b"]
    tasks.create(record("f", created_at=6.0), b"")  # newer: pages after the first don't shift
    assert _listed(tasks, limit=2, after=Position(3.0, "b")) == ["c", "d"]
    tasks.delete("ann", "d")
    assert _listed(tasks, limit=2, after=Position(3.0, "c")) == ["a"]
    assert _listed(tasks, limit=2, after=Position(1.0, "a")) == []


def test_a_position_stays_where_it_is_when_its_task_is_deleted(tasks: TaskStore) -> None:
    ages = {"c": 3.0, "b": 1234.000001, "a": 1234.000001, "d": 1.0}
    for task_id, created_at in ages.items():
        tasks.create(record(task_id, created_at=created_at), b"")
    seen: list[str] = []
    page = tasks.list("ann", limit=1)
    while page:
        seen.append(page[0].id)
        tasks.delete("ann", page[0].id)
        page = tasks.list("ann", limit=1, after=page[0].position)
    assert seen == ["a", "b", "c", "d"]
    tasks.create(record("d"), b"")
    assert _listed(tasks, limit=1, after=Position(1.0, "c")) == ["d"]
    for beyond in (Position(1.0, "d"), Position(0.0, ""), Position(-1e300, "")):
        assert _listed(tasks, limit=1, after=beyond) == []


def test_deletion_removes_everything(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"recipe")
    assert tasks.delete("ann", "a1")
    assert not tasks.delete("ann", "a1")
    assert tasks.get("ann", "a1") is None
    assert tasks.recipe("ann", "a1") is None
    assert tasks.list("ann", limit=10) == []
    assert list(tasks.unfinished(limit=10)) == []
    assert tasks.create(record("a1", created_at=2.0), b"again")
    assert _listed(tasks, limit=10) == ["a1"]


def test_a_lease_is_one_owners_until_released(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"")
    assert tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert not tasks.claim("ann", "a1", owner="y", lease_s=600)
    assert tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert not tasks.release("ann", "a1", owner="y", state="failed", error="not mine")
    assert tasks.release("ann", "a1", owner="x", state="ready", generate_ms=1.5, bytes=10)
    assert tasks.get("ann", "a1") == replace(record("a1"), state="ready", generate_ms=1.5, bytes=10)
    assert not tasks.release("ann", "a1", owner="x", state="failed")
    assert tasks.claim("ann", "a1", owner="y", lease_s=600)


def test_claiming_again_prolongs_a_lease(tasks: TaskStore) -> None:
    for task_id in ("prolonged", "not prolonged"):
        tasks.create(record(task_id), b"")
        assert tasks.claim("ann", task_id, owner="x", lease_s=0.01)
    assert tasks.claim("ann", "prolonged", owner="x", lease_s=600)
    _until(lambda: tasks.claim("ann", "not prolonged", owner="y", lease_s=600))
    assert not tasks.claim("ann", "prolonged", owner="y", lease_s=600)


def test_a_claimed_ready_task_keeps_its_figures_and_a_failed_one_loses_its_error(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"")
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    tasks.release("ann", "a1", owner="x", state="ready", generate_ms=1.5, bytes=10)
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert tasks.get("ann", "a1") == replace(record("a1"), state="generating", generate_ms=1.5, bytes=10)
    tasks.release("ann", "a1", owner="x", state="failed", error="no")
    assert tasks.get("ann", "a1") == replace(record("a1"), state="failed", error="no")
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    assert tasks.get("ann", "a1") == replace(record("a1"), state="generating")


def test_a_lease_that_ran_out_is_taken_over(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"")
    assert tasks.claim("ann", "a1", owner="x", lease_s=0.05)
    _until(lambda: tasks.claim("ann", "a1", owner="y", lease_s=600))
    assert not tasks.release("ann", "a1", owner="x", state="ready")
    assert tasks.release("ann", "a1", owner="y", state="ready")


def test_unfinished_is_what_is_queued_or_left_behind(tasks: TaskStore) -> None:
    for i, task_id in enumerate(["queued", "running", "left", "ready", "failed", "gone"]):
        tasks.create(record(task_id, created_at=float(i)), b"")
    tasks.claim("ann", "running", owner="x", lease_s=600)
    tasks.claim("ann", "left", owner="x", lease_s=0.01)
    for task_id in ("ready", "failed"):
        tasks.claim("ann", task_id, owner="x", lease_s=600)
        tasks.release("ann", task_id, owner="x", state="ready" if task_id == "ready" else "failed")
    tasks.delete("ann", "gone")
    _until(lambda: list(tasks.unfinished(limit=10)) == [("ann", "queued"), ("ann", "left")])
    assert list(tasks.unfinished(limit=1)) == [("ann", "queued")]


def test_a_ready_task_left_while_being_remade_is_unfinished(tasks: TaskStore) -> None:
    tasks.create(record("a1"), b"")
    tasks.claim("ann", "a1", owner="x", lease_s=600)
    tasks.release("ann", "a1", owner="x", state="ready")
    assert list(tasks.unfinished(limit=10)) == []
    tasks.claim("ann", "a1", owner="x", lease_s=0.01)
    _until(lambda: list(tasks.unfinished(limit=10)) == [("ann", "a1")])


def test_many_threads_one_claim(tasks: TaskStore) -> None:
    ids = [f"t{i}" for i in range(20)]
    for task_id in ids:
        tasks.create(record(task_id), b"")
    start = threading.Barrier(N_THREADS)

    def contend(owner: str) -> list[str]:
        start.wait()
        return [i for i in ids if tasks.claim("ann", i, owner=owner, lease_s=600)]

    with ThreadPoolExecutor(N_THREADS) as pool:
        got = [i for mine in pool.map(contend, map(str, range(N_THREADS))) for i in mine]
    assert sorted(got) == sorted(ids)


def test_many_processes_one_claim(place: Place, tasks: TaskStore, spawn: SpawnContext) -> None:
    ids = [f"t{i}" for i in range(50)]
    for task_id in ids:
        tasks.create(record(task_id), b"")
    with spawn.Manager() as manager, ProcessPoolExecutor(N_PROCESSES, mp_context=spawn) as pool:
        start = manager.Barrier(N_PROCESSES)
        futures = [pool.submit(claim_each, place, ids, str(i), start) for i in range(N_PROCESSES)]
        got = [i for future in futures for i in future.result()]
    assert sorted(got) == sorted(ids)


def test_many_processes_open_and_create_at_once(place: Place, spawn: SpawnContext) -> None:
    ids = [f"t{i}" for i in range(30)]
    with spawn.Manager() as manager, ProcessPoolExecutor(N_PROCESSES, mp_context=spawn) as pool:
        start = manager.Barrier(N_PROCESSES)
        futures = {str(i): pool.submit(create_each, place, ids, str(i), start) for i in range(N_PROCESSES)}
        made = {owner: future.result() for owner, future in futures.items()}
    assert sorted(i for mine in made.values() for i in mine) == sorted(ids)
    with place.tasks() as tasks:
        assert all(tasks.recipe("ann", i) == owner.encode() for owner, mine in made.items() for i in mine)


def test_what_create_returned_for_survives_kill_9(place: Place, spawn: SpawnContext) -> None:
    process = spawn.Process(target=create_and_die, args=(place, "a1"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with place.tasks() as tasks:
        assert tasks.get("ann", "a1") == record("a1")
        assert tasks.recipe("ann", "a1") == b"recipe"
        assert list(tasks.unfinished(limit=10)) == [("ann", "a1")]


def test_the_lease_of_a_killed_process_runs_out(place: Place, tasks: TaskStore, spawn: SpawnContext) -> None:
    tasks.create(record("a1"), b"")
    claimed = spawn.Event()
    process = spawn.Process(target=claim_and_hang, args=(place, "a1", 0.5, claimed))
    process.start()
    assert claimed.wait(120)
    process.kill()
    process.join()
    _until(lambda: tasks.claim("ann", "a1", owner="heir", lease_s=600))
    assert tasks.release("ann", "a1", owner="heir", state="ready")


def test_a_closed_store_is_unavailable_from_new_threads(tasks: TaskStore, place: Place) -> None:
    if place.kind == "redis":
        pytest.skip("a Redis client opens connections again by itself")
    tasks.close()
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(tasks.get, "ann", "a1").exception()
    assert isinstance(error, Unavailable)
    with pytest.raises(Unavailable):
        tasks.ping()


def _listed(tasks: TaskStore, *, limit: int, after: Position | None = None) -> list[str]:
    return [r.id for r in tasks.list("ann", limit=limit, after=after)]


def _until(condition: Callable[[], bool], *, within_s: float = 120.0) -> None:
    """Time itself is the event here: a lease that has to run out."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
