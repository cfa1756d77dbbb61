"""`classmith task ...` and `classmith predict`: the client, with its answers printed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from service.cli.output import FAILED, UNREACHABLE, WRONG_USE, CommandFailed, complain, print_json, wants_progress
from service.client import LOCAL_URL, Classmith, ClientError, Retries, Task, Unreachable, UnusableInput
from service.client.bodies import folder_classes
from service.client.errors import images_as
from service.client.images import expanded

BEST_SHOWN, STRONGEST_SHOWN = 3, 10
N_COMPLETED = 200


def address(asked: argparse.Namespace) -> str:
    """Of the service asked for."""
    return asked.url or LOCAL_URL


@contextmanager
def service(asked: argparse.Namespace) -> Iterator[Classmith]:
    """A client of the service asked for; its errors as commands end with them."""
    try:
        with Classmith(address(asked), asked.api_key or None) as client:
            yield client
    except UnusableInput as error:
        raise CommandFailed(str(error), WRONG_USE) from error
    except Unreachable as error:
        raise CommandFailed(str(error), UNREACHABLE) from error
    except ClientError as error:
        raise CommandFailed(str(error), FAILED) from error


def create(asked: argparse.Namespace) -> int:
    """Make a classifier of all that was given: a folder, images, words."""
    with service(asked) as client:
        classes, unlabeled = _given(asked)
        task = client.create(
            classes,
            unlabeled=unlabeled or None,
            meta_model=asked.meta_model,
            wait=asked.wait > 0,
            timeout_s=asked.wait,
            progress=wants_progress(),
        )
        return _show_tasks([task], asked)


def list_all(asked: argparse.Namespace) -> int:
    """All tasks."""
    with service(asked) as client:
        return _show_tasks(list(client.tasks()), asked, many=True)


def show(asked: argparse.Namespace) -> int:
    """One task."""
    with service(asked) as client:
        return _show_tasks([client.task(asked.task)], asked)


def delete(asked: argparse.Namespace) -> int:
    """Delete one task."""
    with service(asked) as client:
        task = client.task(asked.task)
        task.delete()
        return print_json({"deleted": task.id}) if asked.json else 0


def explain(asked: argparse.Namespace) -> int:
    """Print the label and its probability, then the words that carried most for and against it, strongest first."""
    with service(asked) as client:
        answer = client.task(asked.task).explain(asked.image)
    if asked.json:
        return print_json(answer)
    print(f"{answer['label']}\t{answer['probability']:.3f}")
    words = [(name, word) for name, found in (answer["words"] or {}).items() for word in found]
    for name, word in sorted(words, key=lambda pair: -abs(pair[1]["weight"]))[:STRONGEST_SHOWN]:
        print(f"{name}\t{word['text']}\t{word['weight']:+.2g}")
    for note in answer["notes"]:
        complain(f"note: {note}", 0)
    return 0


def export(asked: argparse.Namespace) -> int:
    """Save a classifier; prints where."""
    with service(asked) as client:
        path = client.task(asked.task).export(asked.output or Path(f"{asked.task}.onnx"))
    if asked.json:
        return print_json({"path": str(path)})
    print(path)
    return 0


def predict(asked: argparse.Namespace) -> int:
    """Classify images; a line for each, in their order."""
    with service(asked) as client:
        paths = expanded(asked.images)
        task = client.task(asked.task)
        with images_as(lambda i: str(paths[i])):
            answers = task.predict(paths, asked.top_k, progress=wants_progress())
    found_in = list(zip(paths, answers, strict=True))
    if asked.json:
        return print_json({"predictions": [{"path": str(path), **asdict(found)} for path, found in found_in]})
    for path, found in found_in:
        ranked = "  ".join(
            f"{name} {p:.3f}" for name, p in islice(found.probabilities.items(), asked.top_k or BEST_SHOWN)
        )
        print(f"{path!s}\t{'(unsure) ' if found.abstain else ''}{found.label}\t{ranked}")
    return 0


def known_ids(asked: argparse.Namespace, prefix: str) -> list[str]:
    """The newest tasks' ids that begin so; none where no service answers at once."""
    try:
        with Classmith(address(asked), asked.api_key or None, retries=Retries(most=0), timeout_s=2.0) as client:
            return [task.id for task in islice(client.tasks(), N_COMPLETED) if task.id.startswith(prefix)]
    except ClientError:
        return []


def _given(asked: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """(classes, unlabelled images), in the order: folder, images, words."""
    folder = asked.folder or asked.positional_folder
    found, unlabeled = folder_classes(folder, None) if folder else ({}, None)
    classes: dict[str, Any] = dict(found)
    for text in asked.images:
        name, images = _pair(text, "=", "NAME=IMAGES")
        classes.setdefault(name, {"description": "", "images": []})["images"] += [images]
    for text in asked.describe:
        name, description = _pair(text, ":=", "'NAME: TEXT'")
        classes.setdefault(name, {"images": []})["description"] = description
    if not classes:
        raise UnusableInput("Name the classes: --class NAME=IMAGES, --describe 'NAME: TEXT', or --folder FOLDER.")
    return classes, [*(unlabeled or ()), *asked.unlabeled]


def _pair(text: str, separators: str, form: str) -> tuple[str, str]:
    """The parts before and after the first separator."""
    at = min((text.find(s) for s in separators if s in text), default=0)
    name, value = text[:at].strip(), text[at + 1 :].strip()
    if not name or not value:
        raise UnusableInput(f"{text!r} should be {form}.")
    return name, value


def _show_tasks(tasks: list[Task], asked: argparse.Namespace, *, many: bool = False) -> int:
    if asked.json:
        documents = [task.info.document for task in tasks]
        return print_json(documents if many else documents[0])
    for task in tasks:
        info = task.info
        made = f"{info.generate_ms:.0f} ms" if info.generate_ms is not None else "-"
        print(f"{info.id}\t{info.state}\t{info.meta_model}\t{made}\t{', '.join(info.class_names)}")
        for note in () if many else info.notes:
            complain(f"note: {note}", 0)
    return 0
