"""The process that serves a port says so, or why it cannot."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from service.serving.server import _listen, serve_on
from service.settings import Settings


@pytest.fixture(autouse=True)
def _same_switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_of_two_that_start_at_once_on_a_port_one_says_that_it_cannot(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    if loop == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    started = threading.Event()
    with _listen(settings.model_copy(update={"port": 0})) as first:
        port = first.getsockname()[1]
        with _listen(settings.model_copy(update={"port": port})) as second:  # none of them listens yet
            first.listen()
            with caplog.at_level(logging.ERROR):
                assert serve_on(settings, second, None, started.set) == 1
    assert not started.is_set()
    assert "another process has begun to use the port" in caplog.text
