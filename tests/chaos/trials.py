"""A trial: load, a fault at a random moment of it, recovery, and then every promise held against the truth."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from time import monotonic

import httpx

from tests.chaos.faults import Fault
from tests.chaos.ledger import Ledger, Reference, equal, query_body, task_body
from tests.chaos.load import Load
from tests.chaos.processes import Service, tick
from tests.chaos.sites import Site

RECOVERY_LIMIT_S = 120.0
N_CHECKED_AGAIN = 15
"""Tasks of earlier trials that a trial asks again for predictions; that all are listed is always checked."""
PAGE = 200


@dataclass(frozen=True)
class Outcome:
    """What a trial came to. ``recovery_s``: from the cause being gone to creating and predicting on every service."""

    fault: str
    n_acknowledged: int
    n_answers: int
    n_requests: int
    n_server_errors: int
    n_refused: int
    n_busy: int
    n_lost: int
    n_wrong: int
    n_reported_lost: int
    recovery_s: float
    complaints: list[str] = field(default_factory=list)


def run_trial(
    name: str, fault: Fault, site: Site, reference: Reference, known: dict[int, str], seeds: Iterator[int], rng: Random
) -> Outcome:
    """One fault on a site. ``known``: all that the site ever acknowledged, to which this trial adds."""
    ledger = Ledger()
    for seed in [next(seeds) for _ in range(2)]:
        _create(site.services[0].http, seed, ledger)
    with Load(site.urls, ledger, seeds, rng).running():
        _pause(rng.uniform(0.02, 0.3))
        with fault(site, rng) as reported:
            _pause(rng.uniform(0.0, 1.5 if rng.random() < 0.3 else 0.3))
        lifted = monotonic()
        known |= ledger.acknowledged
        _forget(known, ledger, reported)
        recovery_s = _recover(site, ledger, seeds, lifted)
    known |= ledger.acknowledged
    _forget(known, ledger, reported)
    _check(site, ledger, reference, known, rng)
    counts = ledger.counts
    return Outcome(
        name, len(ledger.acknowledged), len(ledger.answers), counts["requests"], counts["server_errors"],
        counts["refused"], counts["busy"], counts["lost"], counts["wrong"], len(reported), recovery_s,
        ledger.complaints,
    )  # fmt: skip


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def _forget(known: dict[int, str], ledger: Ledger, reported: set[str]) -> None:
    gone = {seed for seed, task_id in known.items() if task_id in reported}
    for seed in gone:
        del known[seed]
    ledger.forget(gone)


def _create(http: httpx.Client, seed: int, ledger: Ledger) -> bool:
    """Create and predict a task; False where the service cannot (yet)."""
    try:
        made = http.post("/tasks", json=task_body(seed))
        if made.status_code not in (200, 201, 202):
            return False
        ledger.acknowledge(seed, made.json())
        response = http.post(f"/tasks/{made.json()['id']}/predict", json=query_body(seed))
    except httpx.TransportError:
        return False
    if response.status_code == 200:
        ledger.answered(seed, response.json()["predictions"])
    return response.status_code == 200


def _recover(site: Site, ledger: Ledger, seeds: Iterator[int], lifted: float) -> float:
    """Seconds until every service is ready, creates a task and predicts it."""
    for one in site.services:
        seed = next(seeds)
        while not (one.is_ready() and _create(one.http, seed, ledger)):
            if monotonic() - lifted > RECOVERY_LIMIT_S:
                ledger.complain("lost", f"no recovery within {RECOVERY_LIMIT_S:.0f} s: {one.said()}")
                break
            tick()
    return monotonic() - lifted


def _check(site: Site, ledger: Ledger, reference: Reference, known: dict[int, str], rng: Random) -> None:
    """Every acknowledged task is listed, under its right id, and predicts right; so was every answer under load."""
    for seed, answer in ledger.answers:
        if not equal(answer, reference.truth(seed).answer):
            ledger.complain("wrong", f"task {seed} answered {answer} instead of {reference.truth(seed).answer}")
    for seed in ledger.missing:
        ledger.complain("lost", f"task {seed} was said not to be there")
    for one in site.services:
        listed = _listed(one.http)
        for seed, task_id in known.items():
            if task_id not in listed:
                ledger.complain("lost", f"task {seed} ({task_id}) is not listed by {one.http.base_url}")
    earlier = sorted(known.keys() - ledger.acknowledged.keys())
    chosen = sorted(ledger.acknowledged) + rng.sample(earlier, min(N_CHECKED_AGAIN, len(earlier)))
    for seed in chosen:
        _check_task(rng.choice(site.services), seed, known[seed], ledger, reference)


def _listed(http: httpx.Client) -> set[str]:
    ids: list[str] = []
    more = True
    while more:
        query = {"limit": str(PAGE)} | ({"after": ids[-1]} if ids else {})
        page = http.get("/tasks", params=query).raise_for_status().json()["tasks"]
        ids += [task["id"] for task in page]
        more = len(page) == PAGE
    return set(ids)


def _check_task(service: Service, seed: int, task_id: str, ledger: Ledger, reference: Reference) -> None:
    truth = reference.truth(seed)
    if task_id != truth.task_id:
        ledger.complain("wrong", f"task {seed} is {task_id} instead of {truth.task_id}")
    began = monotonic()
    while (task := service.http.get(f"/tasks/{task_id}").json())["state"] not in ("ready", "failed"):
        if monotonic() - began > RECOVERY_LIMIT_S:
            break
        tick()
    response = service.http.post(f"/tasks/{task_id}/predict", json=query_body(seed))
    if response.status_code != 200:
        ledger.complain("lost", f"task {seed} ({task}) does not predict: {response.text[:500]}")
    elif not equal(response.json()["predictions"], truth.answer):
        ledger.complain("wrong", f"task {seed} answers {response.text[:500]} instead of {truth.answer}")
