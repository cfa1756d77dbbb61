"""Any process of a port tells the metrics of all: every sample under its process, whole and well formed."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service.generation.jobs import JobQueue
from service.observability.siblings import Siblings, merged
from service.observability.telemetry import SCRAPE_S, Metrics
from service.stores.redis_client import connect


def used(n: int) -> Metrics:
    """The metrics of a process that has answered ``n`` requests."""
    metrics = Metrics()
    for _ in range(n):
        metrics.requests.labels("/tasks", "200").inc()
        metrics.request_seconds.labels("/tasks").observe(0.002)
    metrics.queue_depth.set_function(lambda: n)
    return metrics


def samples(text: bytes) -> dict[tuple[str, str, str], float]:
    """(name, bucket, process) -> value; no name is told in two places."""
    families = [*text_string_to_metric_families(text.decode())]
    assert len({family.name for family in families}) == len(families)
    return {
        (s.name, s.labels.get("le", ""), s.labels["process"]): s.value for family in families for s in family.samples
    }


def test_every_sample_is_there_under_its_process() -> None:
    texts = {i: used(n).render().decode() for i, n in ((0, 3), (1, 5))}
    found = samples(merged(texts))
    for process, n in (("0", 3), ("1", 5)):
        assert found["classmith_request_total", "", process] == n
        assert found["classmith_request_duration_seconds_count", "", process] == n
        assert found["classmith_request_duration_seconds_bucket", "0.001", process] == 0
        assert found["classmith_request_duration_seconds_bucket", "0.0025", process] == n
        assert found["classmith_queue_depth", "", process] == n
    alone = [line for line in texts[0].splitlines() if line and not line.startswith("#")]
    assert len(found) <= 2 * len(alone)
    assert len(found) > len(alone)
    types = {line for line in texts[0].splitlines() if line.startswith("# TYPE")}
    assert types <= {*merged(texts).decode().splitlines()}


def test_a_process_tells_those_of_the_others_and_leaves_out_the_silent(tmp_path: Path) -> None:
    async def scenario() -> tuple[bytes, bytes]:
        first, second = Siblings(tmp_path, 3, 0), Siblings(tmp_path, 3, 1)
        (tmp_path / "1").touch()  # left by one that was killed
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(first.answering(used(3)))
            async with second.answering(used(5)):
                both = await first.render(used(3))
            return both, await first.render(used(3))

    both, alone = asyncio.run(scenario())
    assert {process for _, _, process in samples(both)} == {"0", "1"}
    assert samples(both)["classmith_request_total", "", "1"] == 5
    assert {process for _, _, process in samples(alone)} == {"0"}


def test_processes_that_wait_for_a_silent_redis_are_told_of_all_the_same(tmp_path: Path) -> None:
    async def scenario(*metrics: Metrics) -> bytes:
        first, second = (Siblings(tmp_path, 2, i) for i in range(2))
        async with first.answering(metrics[0]), second.answering(metrics[1]):
            return await first.render(metrics[0])

    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # and never answers
        metrics = [used(3), used(5)]
        for one in metrics:
            client = connect(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout_s=SCRAPE_S)
            queue = JobQueue(stack.enter_context(client))
            one.watch_queue(queue.n_jobs, queue.n_workers)
        found = samples(asyncio.run(scenario(*metrics)))
    assert [found["classmith_redis_up", "", process] for process in "01"] == [0, 0]
    assert found["classmith_request_total", "", "1"] == 5
