"""Progress, told to a function of the caller's, or shown as a bar on standard error (``progress=True``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from service.client.answers import TaskInfo

OnTask: TypeAlias = Callable[[TaskInfo], None]
"""Called with a task as it is stored, and again at each change."""
OnImages: TypeAlias = Callable[[int, int], None]
"""Called with the number of images answered, and of all."""
STEPS = ("queued", "generating", "ready")


@contextmanager
def of_task(progress: OnTask | bool) -> Iterator[OnTask]:
    """What to call while a task is made."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda info: None
    else:
        with _task_bar() as show:
            yield show


@contextmanager
def of_images(progress: OnImages | bool, n_images: int) -> Iterator[OnImages]:
    """What to call while images are answered."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda n_done, n_images: None
    else:
        with _image_bar(n_images) as show:
            yield show


@contextmanager
def _task_bar() -> Iterator[OnTask]:
    from tqdm import tqdm

    with tqdm(total=len(STEPS) - 1, bar_format="{desc} |{bar:20}| {elapsed}", leave=False) as bar:

        def show(info: TaskInfo) -> None:
            bar.set_description_str(f"{len(info.classes)} classes: {info.state}")
            bar.update(max(0, STEPS.index(info.state) - bar.n) if info.state in STEPS else 0)

        yield show


@contextmanager
def _image_bar(n_images: int) -> Iterator[OnImages]:
    from tqdm import tqdm

    with tqdm(total=n_images, unit=" images", leave=False) as bar:

        def show(n_done: int, n_images: int) -> None:
            bar.update(n_done - bar.n)

        yield show
