"""Single flight: equal work asked for at once by several threads is done by one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from models.errors import Unavailable

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Work in flight, by key. ``closing`` is set once no more is taken, for work that waits."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._in_flight: dict[tuple[str, ...], Future[Result]] = {}

    def run(self, key: tuple[str, ...], work: Callable[[], Result]) -> Result:
        """The result of ``work``, done here or by the thread that asked first; its exception reaches all of them."""
        with self._lock:
            self.check_open()
            future = self._in_flight.get(key)
            if leads := future is None:
                future = self._in_flight[key] = Future()
        if leads:
            self._lead(key, future, work)
        return future.result()

    def check_open(self) -> None:
        """Raise Unavailable after ``close``."""
        if self.closing.is_set():
            raise Unavailable("The service is stopping; try again in a moment.")

    def close(self) -> None:
        """Take no more work, and return when what is in flight has ended."""
        with self._lock:
            self.closing.set()
            in_flight = [*self._in_flight.values()]
        wait(in_flight)

    def _lead(self, key: tuple[str, ...], future: Future[Result], work: Callable[[], Result]) -> None:
        try:
            result = work()
        except BaseException as error:
            self._land(key)
            future.set_exception(error)
        else:
            self._land(key)
            future.set_result(result)

    def _land(self, key: tuple[str, ...]) -> None:
        with self._lock:
            del self._in_flight[key]
