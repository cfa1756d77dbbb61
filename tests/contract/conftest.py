"""Both implementations of each port: every test that takes ``place``, ``tasks`` or ``bundles`` runs on each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import SpawnContext
from pathlib import Path

import pytest

from service.ports import BundleStore, TaskStore
from tests.contract.places import Place


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis_prefix: str) -> Place:
    if request.param == "embedded":
        return Place("embedded", str(tmp_path))
    return Place("redis", request.getfixturevalue("redis_server").url, redis_prefix)


@pytest.fixture
def tasks(place: Place) -> Iterator[TaskStore]:
    with place.tasks() as store:
        yield store


@pytest.fixture
def bundles(place: Place) -> Iterator[BundleStore]:
    with place.bundles() as store:
        yield store


@pytest.fixture
def spawn() -> SpawnContext:
    return multiprocessing.get_context("spawn")
