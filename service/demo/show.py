"""What `make demo` runs: classifiers made over HTTP from images, words and both, tried on others; what came of it.

    python -m service.demo              leaves the service running until Ctrl-C
    DEMO_ONCE=1 python -m service.demo  stops it and ends

The service runs as a user would run it, in a process of its own, on a free port of the loopback interface and with its
embedded store in ``.demo/``. A showcase is a task and images to try it on: a new kind of task adds a function to
``SHOWCASES``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from service.demo.images import (
    Example,
    Showcase,
    drawings,
    media_type,
    photographs,
    words,
    words_and_photographs,
)

FOLDER = Path(".demo")
START_TIMEOUT_S = 60.0
USUAL_PORT = 8000


@dataclass(frozen=True)
class Outcome:
    """What came of a showcase. ``task``: the service's record. Times are of HTTP round trips."""

    task: dict[str, Any]
    create_ms: float
    predict_ms: float
    n_right: int


SHOWCASES: tuple[Callable[[], Showcase], ...] = (drawings, words, photographs, words_and_photographs)


def main() -> int:
    """Run every showcase against a fresh service; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with _service() as (url, process):
            for make in SHOWCASES:
                _show(url, make.__name__.replace("_", "-"), make())
            if not os.environ.get("DEMO_ONCE"):
                print("The service keeps running; Ctrl-C stops it.", flush=True)
                return process.wait()
    except KeyboardInterrupt:
        print("\nThe service is stopped.")
    except (ServiceFailed, httpx.HTTPError) as error:
        print(f"The demo failed: {error}\nThe service's log is {FOLDER / 'service.log'}.", file=sys.stderr)
        return 1
    return 0


class ServiceFailed(Exception):
    """The service did not start, or did not do what was asked."""


@contextmanager
def _service() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running service: its address and process; stopped at the end."""
    FOLDER.mkdir(exist_ok=True)
    port = _port()
    settings = {name: value for name, value in os.environ.items() if not name.startswith("CLASSMITH_")}
    settings["CLASSMITH_STATE_DIR"] = str(FOLDER / "state")
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (FOLDER / "service.log").open("wb") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        started = time.perf_counter()
        _wait_until_ready(f"http://127.0.0.1:{port}", process)
        print(f"The service started in {time.perf_counter() - started:.1f} s.", flush=True)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    reason = "no answer"
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                response = client.get("/readyz")
                if response.is_success:
                    return
                reason = response.text
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    if process.poll() is not None:
        raise ServiceFailed("the service ended at once")
    raise ServiceFailed(f"the service is not ready after {START_TIMEOUT_S:g} s: {reason}")


def _show(url: str, name: str, showcase: Showcase) -> None:
    print(f"\n{showcase.title}", flush=True)
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        outcome = _try_out(client, showcase)
    _print_outcome(outcome, len(showcase.queries))
    _print_invitation(url, outcome.task["id"], name, showcase)


def _try_out(client: httpx.Client, showcase: Showcase) -> Outcome:
    task, create_ms = _create(client, showcase.request)
    times_ms, n_right = [], 0
    for query in showcase.queries:
        started = time.perf_counter()
        answer = _checked(
            client.post(
                f"/tasks/{task['id']}/predict", content=query.image, headers={"Content-Type": media_type(query.image)}
            )
        )
        times_ms.append(1e3 * (time.perf_counter() - started))
        n_right += answer["predictions"][0]["label"] == query.label
    return Outcome(task, create_ms, statistics.median(times_ms), n_right)


def _create(client: httpx.Client, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Make the task; one that an earlier demo left in the store is deleted first, so that the time is of making it."""
    while True:
        started = time.perf_counter()
        response = client.post("/tasks", json=request)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        task = _checked(response)
        if response.status_code == httpx.codes.CREATED:
            return task, elapsed_ms
        if response.status_code != httpx.codes.OK:
            raise ServiceFailed(f"the classifier was not made in time (state {task['state']})")
        client.delete(f"/tasks/{task['id']}").raise_for_status()


def _checked(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise ServiceFailed(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _print_outcome(outcome: Outcome, n_queries: int) -> None:
    task = outcome.task
    n_classes = len(task["classes"])
    print(f"  task          {task['id']}, made by {task['meta_model']}")
    print(f"  made in       {outcome.create_ms:.0f} ms over HTTP, {task['generate_ms']:.0f} ms of it the generator's")
    print(f"  a prediction  {outcome.predict_ms:.1f} ms over HTTP (median of {n_queries}, one image a request)")
    print(
        f"  accuracy      {outcome.n_right / n_queries:.1%}: {outcome.n_right} of {n_queries} other images right "
        f"(guessing: {1 / n_classes:.0%})"
    )
    print(f"  size          {task['bytes'] / 1e3:.1f} kB")


def _print_invitation(url: str, task_id: str, name: str, showcase: Showcase) -> None:
    """The page's address, and a line to paste; the images are laid out in the demo's folder for both."""
    folders = [_write_images(FOLDER / name / "made-from", showcase.support)] if showcase.support else []
    one_of_each = {query.label: query for query in showcase.queries}
    others = _write_images(FOLDER / name / "others", tuple(one_of_each.values()))
    folders.append(others)
    print(f"  the page      {url}/     (images to try: {', '.join(str(paths[0].parent) for paths in folders)})")
    print("  by hand       the name of the file is the right answer:")
    print(f"    curl -s -H 'Content-Type: {media_type(others[0].read_bytes())}' --data-binary @{others[0]} \\")
    print(f"      '{url}/tasks/{quote(task_id)}/predict?top_k=3'\n", flush=True)


def _write_images(folder: Path, examples: tuple[Example, ...]) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = []
    for example in examples:
        path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', example.label).strip('-')}{_suffix(example.image)}"
        path.write_bytes(example.image)
        paths.append(path)
    return paths


def _suffix(image: bytes) -> str:
    return "." + media_type(image).removeprefix("image/")


def _port() -> int:
    """The service's own where nobody has it, so that the README's next commands find it; else any that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", USUAL_PORT))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
