"""Clients that create tasks and ask for predictions while something happens to the service, and try again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from random import Random

import httpx

from tests.chaos.ledger import Ledger, query_body, task_body

CLIENT_TIMEOUT_S = 20.0
RETRY_S = 0.1


class Load:
    """Threads of clients on some services; ``seeds`` numbers the tasks they make."""

    def __init__(self, urls: Sequence[str], ledger: Ledger, seeds: Iterator[int], rng: Random) -> None:
        self._urls, self._ledger, self._seeds = urls, ledger, seeds
        self._seed_lock = threading.Lock()
        self._rngs = (Random(rng.getrandbits(64)) for _ in count())
        self._stop = threading.Event()

    @contextmanager
    def running(self, *, n_creators: int = 2, n_predictors: int = 2) -> Iterator[None]:
        work = [self._create] * n_creators + [self._predict] * n_predictors
        threads = [threading.Thread(target=self._client, args=(one, next(self._rngs))) for one in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _client(self, work: object, rng: Random) -> None:
        assert callable(work)
        with httpx.Client(timeout=CLIENT_TIMEOUT_S, trust_env=False) as http:
            while not self._stop.is_set():
                work(http, rng)

    def _create(self, http: httpx.Client, rng: Random) -> None:
        """One task, asked for until it is acknowledged (or the load ends: then nothing was promised)."""
        with self._seed_lock:
            seed = next(self._seeds)
        while not self._stop.is_set():
            headers = {"Prefer": "wait=0"} if rng.random() < 0.25 else {}
            response = self._send(http, rng, "/tasks", task_body(seed), headers)
            if response is not None and response.status_code in (200, 201, 202):
                self._ledger.acknowledge(seed, response.json())
                break
            if response is not None and response.status_code < 429:
                self._ledger.complain("wrong", f"creating task {seed}: {response.status_code} {response.text[:300]}")
                break
            self._stop.wait(RETRY_S)
        self._stop.wait(rng.uniform(0, 0.1))

    def _predict(self, http: httpx.Client, rng: Random) -> None:
        """One prediction of a task that is known to be ready."""
        seed = self._ledger.some_ready(rng)
        if seed is None:
            self._stop.wait(RETRY_S)
            return
        path = f"/tasks/{self._ledger.acknowledged[seed]}/predict"
        response = self._send(http, rng, path, query_body(seed), {})
        if response is None or response.status_code >= 429:
            self._stop.wait(RETRY_S)
        elif response.status_code == 200:
            self._ledger.answered(seed, response.json()["predictions"])
        elif response.status_code == 404:
            self._ledger.missed(seed)
        else:
            self._ledger.complain("wrong", f"task {seed} predicts: {response.status_code} {response.text[:300]}")

    def _send(
        self, http: httpx.Client, rng: Random, path: str, body: dict[str, object], headers: dict[str, str]
    ) -> httpx.Response | None:
        """The response, or None where no connection held; counted either way."""
        self._ledger.count("requests")
        try:
            response = http.post(rng.choice(self._urls) + path, json=body, headers=headers)
        except httpx.TransportError:
            self._ledger.count("refused")
            return None
        if response.status_code >= 500:
            self._ledger.count("server_errors")
            self._ledger.count(f"status_{response.status_code}")
            if response.status_code not in (503, 504):
                self._ledger.complain("wrong", f"{path}: {response.status_code} {response.text[:300]}")
        elif response.status_code == 429:
            self._ledger.count("busy")
        return response
