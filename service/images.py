"""Images of a request -> checked bytes -> pixels, off the event loop and within limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from PIL.Image import Image as Opened

from models.errors import BrokenImage, Busy, ClassmithError, InvalidRequest, TooLarge
from models.preprocess import PreprocessSpec, claimed_pixels, decode, to_pixels
from models.task import Pixels
from service.backpressure import jittered
from service.observability.telemetry import Metrics
from service.prediction.pieces import Given

PEEK = PreprocessSpec(size=32, channels=3)
N_PEEKED = 8
NEAR_GREY = 6.0
"""Mean distance of the colour channels, of 255, below which an image counts as a drawing; coloured paper has more."""
N_PAPER_LEVELS, PAPER = 24, 0.75
"""Of a drawing on evenly lit paper this share of pixels is within so many levels of the median. Omniglot: 0.77 and
more in each of 1,200 drawings; photographs without colour, means of four: 0.71 and less in 900 samples."""
LEAST_SHARE_BYTES = 30_000
"""Of the images that a thread decodes: opening small ones holds Python's lock, which two threads only pass around."""
LEAST_SIDE = 16
"""Of an image whose ground can be judged: strokes fill a smaller one (scikit-learn's digits), and no photograph is."""


@dataclass(frozen=True)
class Image:
    """An encoded image and its place in the request."""

    where: str
    data: bytes


def checked(where: str, data: bytes, *, max_bytes: int) -> Image:
    """An image of a permitted size; raises TooLarge or BrokenImage."""
    if not data:
        raise BrokenImage("The image is empty; send a complete JPEG, PNG or WebP file.", where=where)
    if len(data) > max_bytes:
        message = f"The image is {len(data):,} bytes, over the limit of {max_bytes:,}; scale it down before sending it."
        raise TooLarge(message, where=where)
    return Image(where, data)


def from_base64(where: str, text: str, *, max_bytes: int) -> Image:
    """The image in a base64 text; raises InvalidRequest where it is not base64."""
    if len(text) > (max_bytes + 2) // 3 * 4:
        message = f"The image is over the limit of {max_bytes:,} bytes; scale it down before sending it."
        raise TooLarge(message, where=where)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        remedy = "send the file's bytes in standard base64, without line breaks and without a data: prefix"
        raise InvalidRequest(f"This is not valid base64; {remedy}.", where=where) from error
    return checked(where, data, max_bytes=max_bytes)


def check_pixels(images: Sequence[Given], spec: PreprocessSpec) -> None:
    """Raise InvalidRequest where images that come as pixels, all of one shape, are not what a network takes."""
    first, expected = images[0] if images else b"", (spec.size, spec.size, spec.channels)
    if not isinstance(first, bytes) and first.shape != expected:
        message = f"This classifier takes pixels (height, width, channels) of {expected}; these are {first.shape}."
        raise InvalidRequest(message, where="images")


async def check_total_pixels(images: Sequence[bytes], *, max_image: int, max_total: int) -> None:
    """Raise TooLarge where images claim more pixels than a request may; a few within their own limit cannot."""
    if len(images) * max_image <= max_total:
        return
    total = await asyncio.to_thread(lambda: sum(min(claimed_pixels(data), max_image) for data in images))
    if total > max_total:
        message = f"The images have {total / 1e6:.0f} megapixels together, a request at most {max_total / 1e6:g}"
        raise TooLarge(f"{message}; send fewer at once, or scale them down.", where="images")


class Looks(NamedTuple):
    """Of some images. ``near_grey``: drawings rather than photographs, for they have next to no colour.

    ``on_paper``: drawings indeed, if they have no colour, for most of them is plain ground.
    """

    near_grey: bool
    on_paper: bool


class Intake:
    """Decodes support images in a few threads; more images than ``max_queue`` at once are refused as Busy."""

    def __init__(self, *, n_threads: int, max_pixels: int, max_queue: int, metrics: Metrics | None = None) -> None:
        self._pool = ThreadPoolExecutor(n_threads, "classmith-intake")
        self._shed = (metrics or Metrics()).shed.labels("decode_queue_full")
        self._n_threads, self._max_pixels, self._max_queue = n_threads, max_pixels, max_queue
        self._n_waiting = 0

    async def pixels(self, images: Sequence[Image], spec: PreprocessSpec) -> list[Pixels]:
        """``(size, size, channels)`` uint8 for each image, in order; raises the first image's error, located."""
        if self._n_waiting and self._n_waiting + len(images) > self._max_queue:
            self._shed.inc()
            raise Busy("Too many images are being decoded; try again in a moment.", retry_after_s=jittered(1.0))
        self._n_waiting += len(images)
        try:
            return await self._pixels(images, spec)
        finally:
            self._n_waiting -= len(images)

    async def looks(self, images: Sequence[Image]) -> Looks:
        """What a sample of the images looks like; raises an image's error, located."""
        step = max(1, len(images) // N_PEEKED)
        sample = images[::step][:N_PEEKED]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._looks, sample)

    def close(self) -> None:
        """Let the images being decoded end, and stop the threads."""
        self._pool.shutdown()

    async def _pixels(self, images: Sequence[Image], spec: PreprocessSpec) -> list[Pixels]:
        loop = asyncio.get_running_loop()
        n_bytes = sum(len(image.data) for image in images)
        n_shares = max(1, min(self._n_threads, len(images), n_bytes // LEAST_SHARE_BYTES))
        shares = [images[i::n_shares] for i in range(n_shares)]
        decoding = [loop.run_in_executor(self._pool, self._decode, share, spec) for share in shares]
        found = [await share for share in [asyncio.ensure_future(d) for d in decoding]]
        in_order = [found[i % len(shares)][i // len(shares)] for i in range(len(images))]
        for result in in_order:
            if isinstance(result, ClassmithError):
                raise result
        return [result for result in in_order if not isinstance(result, ClassmithError)]

    def _decode(self, share: Sequence[Image], spec: PreprocessSpec) -> list[Pixels | ClassmithError]:
        results: list[Pixels | ClassmithError] = []
        for image in share:
            try:
                results.append(to_pixels(image.data, spec, max_pixels=self._max_pixels))
            except ClassmithError as error:
                results.append(error.at(image.where))
        return results

    def _looks(self, sample: Sequence[Image]) -> Looks:
        seen = [self._peeked(image) for image in sample]
        return Looks(fmean(map(_colour, seen)) < NEAR_GREY, fmean(map(_ground, seen)) >= PAPER)

    def _peeked(self, image: Image) -> Opened:
        try:
            opened = decode(image.data, PEEK, max_pixels=self._max_pixels)
        except ClassmithError as error:
            raise error.at(image.where) from error
        opened.thumbnail((64, 64))
        return opened


def _colour(opened: Opened) -> float:
    """Mean distance between the highest and the lowest channel, of 255."""
    channels = np.asarray(opened, dtype=np.int16)
    return float((channels.max(axis=2) - channels.min(axis=2)).mean())


def _ground(opened: Opened) -> float:
    """The share of pixels that are about as light as the median one."""
    if max(opened.size) < LEAST_SIDE:
        return 1.0
    shades = np.asarray(opened.convert("L"), dtype=np.int16)
    return float((np.abs(shades - np.median(shades)) <= N_PAPER_LEVELS).mean())
