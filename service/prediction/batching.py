"""Predictions in small batches: what waits for one network is decoded and run together, and nothing waits to be full.

A free runner thread takes what is there for the next task in turn, with other tasks' images where they share a network
(``waiting`` says how much, and ``turns`` in what order), decodes it, runs the network once, decides, and hands all the
answers back to the event loop with one call: one hop a request, however many share it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter

import numpy as np

from models.decision import decide
from models.errors import ClassmithError, InvalidRequest
from models.preprocess import DEFAULT_MAX_PIXELS, PreprocessSpec, to_pixels
from models.task import Pixels
from service.observability.telemetry import Metrics
from service.prediction.pieces import Given, Piece, Prediction, Request
from service.prediction.sessions import Session
from service.prediction.waiting import RUNNER_S, WaitingLine

__all__ = ["Batcher", "Prediction"]
log = logging.getLogger(__name__)


class Batcher:
    """Runner threads and the line of what waits for them, for one event loop.

    Tenants and tasks with waiting images take turns, so that one with a thousand does not keep the others waiting. At
    most ``max_queue_images`` wait; ``deadline_s`` bounds the predicted wait. A batch is of ``max_batch`` images,
    or of no more than take ``batch_s``, as learned.
    """

    def __init__(
        self,
        *,
        n_runners: int,
        max_batch: int,
        max_queue_images: int,
        deadline_s: float,
        batch_s: float,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics, self._max_pixels = metrics or Metrics(), max_pixels
        self._line = WaitingLine(
            n_runners=n_runners, max_batch=max_batch, max_images=max_queue_images, deadline_s=deadline_s,
            batch_s=batch_s, metrics=self._metrics,
        )  # fmt: skip
        self._nudge: asyncio.TimerHandle | None = None
        self._metrics.queue_depth.set_function(lambda: self._line.n_images)
        names = [f"classmith-runner-{i}" for i in range(n_runners)]
        self._runners = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for runner in self._runners:
            runner.start()

    @property
    def n_images(self) -> int:
        """Images that wait for a runner."""
        return self._line.n_images

    def refuse_if_full(self, tenant: str, task_id: str) -> None:
        """Raise Busy where ``predict`` would for this task, before its images are read; it may still do so after."""
        self._line.refuse_if_full(tenant, task_id)

    def reading(self, tenant: str, task_id: str) -> AbstractContextManager[None]:
        """Around the reading of a request's images; raises as ``refuse_if_full``."""
        return self._line.reading(tenant, task_id)

    async def predict(self, session: Session, images: Sequence[Given], top_k: int | None = None) -> Prediction:
        """Images, encoded or as pixels -> decisions in their order; the caller holds the session's lease meanwhile.

        Raises what ``to_pixels`` raises, located at the image (the other requests of its batch are not touched), Busy
        with ``retry_after_s``, or Unavailable once draining. Cancelling takes what still waits out of the line.
        """
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        request = self.submit(session, images, top_k, partial(_settle, future))
        try:
            return await future
        finally:
            self.withdraw(request)
            del request, images, future  # a failed future holds this frame, which must not hold it and the images

    def submit(
        self,
        session: Session,
        images: Sequence[Given],
        top_k: int | None,
        answer: Callable[[Prediction | BaseException], None],
    ) -> Request:
        """``predict`` without a coroutine: ``answer`` gets what that returns or raises, but for what refuses it here.

        ``answer`` is called by the event loop, never before this returns.
        """
        if not images:
            raise InvalidRequest("There is no image to classify; send at least one.", where="images")
        loop = asyncio.get_running_loop()
        request = Request(session, top_k, answer, loop)
        self._line.put(request, images)
        if self._nudge is None:
            self._nudge = loop.call_later(RUNNER_S, self._look_after_line)
        return request

    def withdraw(self, request: Request) -> None:
        """Let go of a request. One that is not over leaves the line, and its ``answer`` gets a CancelledError."""
        if not request.is_over:
            self._line.withdraw(request)
            request.answer(asyncio.CancelledError())
        request.pieces.clear()

    async def drain(self) -> None:
        """Refuse new requests, finish those that wait, and end the runners."""
        self._line.close()
        for runner in self._runners:
            await asyncio.to_thread(runner.join)
        if self._nudge is not None:
            self._nudge.cancel()

    def _look_after_line(self) -> None:
        """While anything waits, see that a runner comes for it in time."""
        again = self._line.nudge()
        self._nudge = asyncio.get_running_loop().call_later(RUNNER_S, self._look_after_line) if again else None

    def _work(self) -> None:
        """One runner, until the line is closed and empty."""
        while (batch := self._line.take()) is not None:
            began_at, n_run = perf_counter(), 0
            try:
                n_run = self._run(batch)
            except Exception as error:
                log.exception("a batch failed")
                for piece in batch:
                    piece.error = piece.error or error
            self._line.done(batch, perf_counter() - began_at, n_run)
            loop = batch[0].request.loop
            try:
                loop.call_soon_threadsafe(self._deliver, batch)
            except RuntimeError:  # the loop was closed: nobody waits any more
                return
            del batch

    def _run(self, batch: list[Piece]) -> int:
        """Decode, run once, decide: the number of images run. A piece with a broken image only gets its error."""
        whole = [piece for piece in batch if self._decode(piece)]
        if not whole:
            return 0
        began_at = perf_counter()
        tasks = [piece.request.session.tensors for piece in whole for _ in piece.pixels]
        pixels = np.stack([image for piece in whole for image in piece.pixels])
        logits = whole[0].request.session.network.run(tasks, pixels)
        run_s, stop = perf_counter() - began_at, 0
        for piece in whole:
            start, stop, header = stop, stop + len(piece.pixels), piece.request.session.header
            piece.run_s, piece.pixels = run_s, []
            piece.decisions = decide(
                np.asarray(logits[start:stop]), header.class_names, temperature=header.temperature,
                abstain_below=header.abstain_below, top_k=piece.request.top_k,
            )  # fmt: skip
        self._metrics.batch_size.observe(len(pixels))
        self._metrics.infer_seconds.observe(run_s)
        return len(pixels)

    def _decode(self, piece: Piece) -> bool:
        """Images -> pixels; False where the request is over or refused, or one of them is broken."""
        request, began_at = piece.request, perf_counter()
        if piece.error is not None:
            return False
        for i, image in enumerate(piece.images, piece.first):
            if request.is_over:
                return False
            try:
                piece.pixels.append(self._pixels_of(image, request.session.preprocess))
            except ClassmithError as error:
                piece.error = without_frames(error.at(f"images[{i}]"))
                return False
        piece.decode_s = perf_counter() - began_at
        return True

    def _pixels_of(self, image: Given, spec: PreprocessSpec) -> Pixels:
        return to_pixels(image, spec, max_pixels=self._max_pixels) if isinstance(image, bytes) else image

    def _deliver(self, batch: list[Piece]) -> None:
        """On the event loop: give each request of a batch its part, and its answer once all parts are there."""
        for piece in batch:
            request = piece.request
            request.n_left -= 1
            if request.is_over:
                continue
            if piece.error is not None:
                self._line.withdraw(request)
                request.answer(piece.error)
            elif request.n_left == 0:
                request.is_over = True
                request.answer(self._assemble(request))

    def _assemble(self, request: Request) -> Prediction:
        pieces = request.pieces
        queue_s = min(piece.taken_at for piece in pieces) - request.queued_at
        decode_s, run_s = sum(piece.decode_s for piece in pieces), sum(piece.run_s for piece in pieces)
        self._metrics.queue_seconds.observe(queue_s)
        self._metrics.decode_seconds.observe(decode_s)
        decisions = [decision for piece in pieces for decision in piece.decisions]
        return Prediction(decisions, queue_s * 1e3, decode_s * 1e3, run_s * 1e3)


def _settle(future: asyncio.Future[Prediction], result: Prediction | BaseException) -> None:
    if future.done():  # cancelled
        return
    if isinstance(result, Prediction):
        future.set_result(result)
    else:
        future.set_exception(result)


def without_frames(error: BaseException) -> BaseException:
    """The same error and what led to it without their tracebacks, which would hold the request's images."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    return error
