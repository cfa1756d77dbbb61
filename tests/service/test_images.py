"""Support images wait for the threads that decode them, and only so many."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from models.errors import Busy
from models.preprocess import PreprocessSpec
from service import images
from service.images import Image, Intake
from service.observability.telemetry import Metrics
from tests.service import tiny

SPEC = PreprocessSpec(size=28, channels=1)


def test_more_support_images_than_may_wait_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is alone is decoded however many it has, and what was refused is decoded once there is room."""
    begun, go_on, real = threading.Event(), threading.Event(), images.to_pixels

    def held(*given: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return real(*given, **options)

    monkeypatch.setattr(images, "to_pixels", held)
    metrics = Metrics()
    intake = Intake(n_threads=1, max_pixels=1_000_000, max_queue=4, metrics=metrics)
    many, few = ([Image(f"images[{i}]", tiny.drawing(i)) for i in range(n)] for n in (5, 2))

    async def asked() -> tuple[int, int]:
        first = asyncio.create_task(intake.pixels(many, SPEC))
        await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(Busy, match="Too many images are being decoded") as refused:
            await intake.pixels(few, SPEC)
        assert refused.value.retry_after_s
        go_on.set()
        return len(await first), len(await intake.pixels(few, SPEC))

    try:
        assert asyncio.run(asked()) == (5, 2)
    finally:
        go_on.set()
        intake.close()
    assert metrics.registry.get_sample_value("classmith_shed_total", {"reason": "decode_queue_full"}) == 1
