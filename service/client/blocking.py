"""The client that waits: Classmith and its tasks. Its twin, which awaits, is in ``awaiting``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Self

import httpx
from httpx_sse import connect_sse

from service.client import answers, bodies, calls, following
from service.client.answers import Json, MetaModelInfo, Names, Prediction, TaskInfo
from service.client.bodies import Classes
from service.client.calls import LOCAL_URL, Call
from service.client.errors import check_open, counted_from, images_as
from service.client.following import ENDED, Ending
from service.client.images import LARGE_BYTES, Images, expanded
from service.client.progress import OnImages, OnTask, of_images, of_task
from service.client.retries import Attempts, Found, Retries, answer


class Classmith:
    """A service at an address; safe to use from several threads, and as a context manager.

    ``api_key``: where the service has keys. ``timeout_s``: for one answer. ``large_bytes``: image files over this are
    sent scaled down to 1024 pixels a side; None: never. ``http``: an ``httpx.Client`` of your own instead
    (certificates, proxies), with its base URL and headers. Every method raises RequestFailed with the service's own
    problem document, or Unreachable, after ``retries``.
    """

    def __init__(
        self,
        url: str = LOCAL_URL,
        api_key: str | None = None,
        *,
        retries: Retries | None = None,
        timeout_s: float = 120.0,
        large_bytes: int | None = LARGE_BYTES,
        http: httpx.Client | None = None,
    ) -> None:
        self.url = url
        self._retries = retries or Retries()
        self._large_bytes = large_bytes
        self._http = http or httpx.Client(**calls.connection_options(url, api_key, timeout_s))

    def create(
        self,
        classes: Classes,
        *,
        unlabeled: Images | None = None,
        meta_model: str = "auto",
        wait: bool = True,
        timeout_s: float = 300.0,
        progress: OnTask | bool = False,
    ) -> Task:
        """Make a classifier, or find the one that an equal request made.

        ``classes``: name -> description (a string), images (see Images), or ``{"description": ..., "images": ...}``.
        ``unlabeled``: images of these classes, without saying of which. ``meta_model``: a name, or "auto". ``wait``:
        until it is ready, ``timeout_s`` at most; no try begins after that. ``progress``: called at each change, or
        True for a bar.

        Raises UnusableInput, TaskFailed, TimedOut; where the service took no task in that time its refusal (TooBusy),
        or Unreachable.
        """
        body = bodies.task_body(classes, unlabeled, meta_model, self._large_bytes)
        stay_s = calls.stay_s(timeout_s, self._http.timeout.read) if wait and progress is False else 0.0
        call = calls.create(body, stay_s=stay_s, patience_s=timeout_s if wait else math.inf)
        deadline = following.deadline_in(timeout_s)
        with of_task(progress) as report:
            info = self._ask(call, answers.task_info)
            report(info)
            info = self._finished(info, deadline, report) if wait else info
        return Task(self, info, answers.names_given(classes, info))

    def create_from_folder(
        self,
        folder: str | PathLike[str],
        *,
        descriptions: Mapping[str, str] | None = None,
        meta_model: str = "auto",
        wait: bool = True,
        timeout_s: float = 300.0,
        progress: OnTask | bool = False,
    ) -> Task:
        """Make a classifier of a folder with one folder of images for each class, named after it.

        Images of a folder ``unlabeled`` belong to no stated class. ``descriptions``: of some of these classes, or of
        further ones. The rest as in ``create``.
        """
        classes, unlabeled = bodies.folder_classes(folder, descriptions)
        return self.create(
            classes, unlabeled=unlabeled, meta_model=meta_model, wait=wait, timeout_s=timeout_s, progress=progress
        )

    def task(self, ident: str) -> Task:
        """A task by its id; raises NotFound."""
        return Task(self, self._ask(calls.show(ident), answers.task_info))

    def tasks(self) -> Iterator[Task]:
        """All tasks, newest first, fetched page by page."""
        after: str | None = None
        while True:
            found, after = self._ask(calls.page(after), answers.page)
            for info in found:
                yield Task(self, info)
            if after is None:
                return

    def meta_models(self) -> list[MetaModelInfo]:
        """What classifiers can be made by, by name."""
        return self._ask(calls.meta_models(), answers.meta_models)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: Call, read: Callable[[Json], Found]) -> Found:
        return answer(self._send(call), read)

    def _send(self, call: Call) -> httpx.Response:
        attempts = Attempts(self.url, self._retries, call.patience_s)
        while True:
            check_open(self.url, self._http.is_closed)
            try:
                response = self._http.request(call.method, call.path, **call.within(attempts.left_s))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                time.sleep(attempts.after_error(error))
                continue
            wait_s = attempts.after(response)
            if wait_s is None:
                return response
            time.sleep(wait_s)

    def _finished(self, info: TaskInfo, deadline: float, report: OnTask) -> TaskInfo:
        """The task once it is ready; raises TaskFailed, TimedOut, or NotFound where it was deleted meanwhile."""
        attempts = Attempts(self.url, self._retries)
        while not info.is_finished:
            before = info
            info, ending = self._watch(info, deadline, report)
            if ending is None or info != before:  # it was reached: the next failure is the first again
                attempts = Attempts(self.url, self._retries)
            time.sleep(following.pause_s(attempts, info, ending, deadline))
        return info.checked()

    def _watch(self, info: TaskInfo, deadline: float, report: OnTask) -> tuple[TaskInfo, Ending]:
        """The newest state of a task by its event stream, and how that ended."""
        call = calls.events(info.id)
        quiet_s = following.patience_s(deadline, info)
        check_open(self.url, self._http.is_closed)
        try:
            with connect_sse(self._http, call.method, call.path, timeout=quiet_s) as source:
                if not source.response.is_success:
                    source.response.read()
                    return info, source.response
                source.response.stream = following.Until(source.response.stream, deadline)
                for event in source.iter_sse():
                    newer = following.change(event, info)
                    if newer != info:
                        report(newer)
                    info = newer
        except httpx.ReadTimeout:
            return info, None
        except httpx.HTTPError as error:
            return info, error
        return info, ENDED


@dataclass(frozen=True)
class Task:
    """A task of a service: what is known of it (``info``), and what can be done with it.

    ``names``: of a task that was made here, the classes' names as they were given, where the service keeps others.
    Answers have them so; ``info`` is what the service says.
    """

    client: Classmith
    info: TaskInfo
    names: Names = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        """By which ``client.task(id)`` finds it again."""
        return self.info.id

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the task."""
        return tuple(self.names.get(name, name) for name in self.info.class_names)

    def refresh(self) -> Task:
        """The task as it is now."""
        return replace(self, info=self.client.task(self.id).info)

    def wait(self, *, timeout_s: float = 300.0, progress: OnTask | bool = False) -> Task:
        """The task once it is ready; raises TaskFailed, TimedOut."""
        with of_task(progress) as report:
            deadline = following.deadline_in(timeout_s)
            return replace(self, info=self.client._finished(self.info, deadline, report))

    def predict(
        self, images: Images, top_k: int | None = None, *, progress: OnImages | bool = False
    ) -> list[Prediction]:
        """The classifier's answers, in the order of the images; ``top_k``: only the best classes in each.

        Images are read and sent some at a time, so there may be any number. Raises UnusableInput before the first is
        sent where one of them cannot be found.
        """
        singles = expanded(images)
        found: list[Prediction] = []
        read = partial(answers.predictions, names=self.names)
        with of_images(progress, len(singles)) as report:
            for batch in bodies.batches(singles, self.client._large_bytes):
                with images_as(counted_from(len(found))):
                    found += self.client._ask(calls.predict(self.id, batch, top_k), read)
                report(len(found), len(singles))
        return found

    def explain(self, image: Images) -> Json:
        """What in the image and in the texts carried the decision, as the service says it."""
        call = calls.explain(self.id, bodies.one(image, self.client._large_bytes))
        return self.client._ask(call, partial(answers.explanation, names=self.names))

    def adaptation(self) -> list[Json]:
        """How far the task changed each layer that it adapts: ``name``, ``type`` and ``relative_change``."""
        return self.client._ask(calls.adaptation(self.id), answers.layers)

    def export(self, path: str | PathLike[str]) -> Path:
        """Write the classifier as an ONNX file that runs anywhere; its metadata name classes and preprocessing."""
        return calls.save(self.client._send(calls.export(self.id)).content, path)

    def delete(self) -> None:
        """Delete the task, and everything the service keeps of it."""
        self.client._send(calls.delete(self.id))
