"""JPEG decoders side by side, processor time an image, each at the scale that a network's size allows.

    .venv-peers/bin/python -m tests.bench.decoders [IMAGE.jpg ...]      (after make bench-peers; PYTHONPATH=.)

Without images it takes made-up ones. Says for each whether its pixels are those that models.preprocess gets. "whole":
models.preprocess.to_pixels, which also checks, turns and fits the image.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import PreprocessSpec, decode, to_pixels
from tests.bench.photographs import photograph

SIZES, ROUNDS = (32, 84, 224), 7
Array = NDArray[np.uint8]


def decoders(size: int) -> dict[str, Callable[[bytes], Array]]:
    spec = PreprocessSpec(size, 3, "crop")

    def pillow(data: bytes) -> Array:
        return np.asarray(decode(data, spec))

    def with_simplejpeg(data: bytes) -> Array:
        image = Image.open(io.BytesIO(data))  # its header says which scale is large enough
        image.draft("RGB", (2 * size, 2 * size))
        width, height = image.size
        found: Array = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        return found

    def with_opencv(data: bytes) -> Array:
        image = Image.open(io.BytesIO(data))
        width = image.width
        image.draft("RGB", (2 * size, 2 * size))
        flags = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
        found = cv2.imdecode(np.frombuffer(data, np.uint8), flags.get(round(width / image.width), cv2.IMREAD_COLOR))
        return np.asarray(found[..., ::-1], np.uint8)

    whole = lambda data: to_pixels(data, spec)  # noqa: E731
    return {"pillow": pillow, "simplejpeg": with_simplejpeg, "opencv": with_opencv, "whole": whole}


def image_us(run: Callable[[bytes], Array], images: Sequence[bytes]) -> float:
    """The second best of the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for image in images:
            run(image)
        rounds.append(1e6 * (time.thread_time() - started) / len(images))
    return sorted(rounds)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="*")
    paths = parser.parse_args().images
    images = [path.read_bytes() for path in paths] or [photograph(seed) for seed in range(20)]
    cv2.setNumThreads(1)
    for size in SIZES:
        runs = decoders(size)
        reference = [runs["pillow"](image) for image in images]
        for name, run in runs.items():
            n_same = sum(np.array_equal(a, run(image)) for a, image in zip(reference, images, strict=True))
            same = "" if name == "whole" else f"{n_same} of {len(images)} the same pixels"
            print(f"{size:4} px  {name:10} {image_us(run, images):7.0f} us  {same}".rstrip())


if __name__ == "__main__":
    main()
