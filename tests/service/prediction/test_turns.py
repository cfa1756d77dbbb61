"""Whose turn it is, by the work that each tenant had while others wanted some, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from service.prediction.pieces import Piece, Request
from service.prediction.sessions import OwnNetwork, Session, build_session
from service.prediction.turns import Turns
from tests.service import tiny

WORK_S, TURN_S = 0.1, 0.1


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    meta_model = tiny.meta_model(tmp_path_factory.mktemp("zoo") / "tiny")
    return build_session(meta_model, tiny.bundle(meta_model), "ann", "a")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def of_another(tenant: str, session: Session) -> Session:
    assert isinstance(session.network, OwnNetwork)
    return replace(session, tenant=tenant, network=OwnNetwork(session.network.network))


def add(turns: Turns, session: Session, n_pieces: int, loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(n_pieces):
        turns.add(session, [Piece(Request(session, None, print, loop), 0, [b""], WORK_S)])


def served(turns: Turns, n_batches: int) -> list[str]:
    return [turns.next_batch()[0].request.session.tenant for _ in range(n_batches)]


def test_work_that_nobody_else_wanted_is_not_owed_to_who_comes_later(
    session: Session, loop: asyncio.AbstractEventLoop
) -> None:
    turns, bob = Turns(TURN_S, lambda kind: 1), of_another("bob", session)
    add(turns, session, 110, loop)
    assert served(turns, 100) == ["ann"] * 100
    add(turns, bob, 10, loop)
    assert sorted(served(turns, 6)) == ["ann"] * 3 + ["bob"] * 3


def test_who_needs_more_work_gets_fewer_turns(session: Session, loop: asyncio.AbstractEventLoop) -> None:
    turns, bob = Turns(TURN_S, lambda kind: 1), of_another("bob", session)
    add(turns, session, 40, loop)
    for _ in range(40):
        turns.add(bob, [Piece(Request(bob, None, print, loop), 0, [b""], 3 * WORK_S)])
    assert served(turns, 40).count("bob") == pytest.approx(10, abs=1)
