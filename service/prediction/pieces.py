"""What a prediction request is made of on its way through the waiting line and the runners, and what comes of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from models.decision import Decision
from models.task import Pixels
from service.prediction.sessions import Network, Session

Given = bytes | Pixels
"""An image as it came: encoded, or as the pixels ``(H, W, C)`` that the network takes."""


@dataclass(frozen=True)
class Prediction:
    """The answers to one request, in its order, and where the time went.

    ``queue_ms``: until the first of its images was taken; ``decode_ms``: decoding of its images; ``run_ms``: the runs
    they were part of, which other requests may have shared.
    """

    decisions: list[Decision]
    queue_ms: float
    decode_ms: float
    run_ms: float


@dataclass(eq=False)
class Request:
    """The images of one caller for one task, cut into pieces.

    ``answer`` is called on ``loop`` once, with the prediction or what went wrong, unless the request is over before.
    """

    session: Session
    top_k: int | None
    answer: Callable[[Prediction | BaseException], None]
    loop: asyncio.AbstractEventLoop
    queued_at: float = field(default_factory=perf_counter)
    pieces: list[Piece] = field(default_factory=list)
    n_left: int = 0
    has_begun: bool = False
    is_over: bool = False
    """Answered, cancelled or failed: what is left of it is skipped."""


@dataclass(eq=False)
class Piece:
    """Images ``first`` and following of a request: what one runner does of it, and what came of that."""

    request: Request
    first: int
    images: Sequence[Given]
    cost_s: float
    taken_at: float = 0.0
    decode_s: float = 0.0
    run_s: float = 0.0
    pixels: list[Pixels] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(eq=False)
class TaskQueue:
    """What waits for one task."""

    pieces: deque[Piece] = field(default_factory=deque)
    n_images: int = 0
    cost_s: float = 0.0


@dataclass(eq=False)
class TenantQueue:
    """What waits for one tenant, by network and task, each in the order of their turns."""

    networks: OrderedDict[Network, OrderedDict[Session, TaskQueue]] = field(default_factory=OrderedDict)
    deficit_s: float = 0.0
    n_tasks: int = 0


@dataclass(eq=False)
class Batch:
    """Pieces to be run together: at most ``limit`` images, or one piece."""

    limit: int
    pieces: list[Piece] = field(default_factory=list)
    n_images: int = 0

    def fits(self, piece: Piece) -> bool:
        """Whether there is room for it."""
        return not self.pieces or self.n_images + len(piece.images) <= self.limit
