"""The body of a request for a task: JSON, or multipart, a file for each image and a part that describes the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request

from models.errors import InvalidRequest, UnsupportedMedia
from models.task import canonical_text
from service.api import bodies
from service.api.schemas import TaskIn, TaskPartIn
from service.images import checked, from_base64
from service.requests import ClassRequest, TaskRequest, check_length
from service.settings import Settings

UNLABELED, TASK = "unlabeled", "task"


async def read_task(request: Request, settings: Settings) -> TaskRequest:
    """What a request asks for, each image within the limits; raises what is wrong, located."""
    kind = bodies.media_type(request)
    if kind == bodies.JSON:
        return await bodies.read_json(request, lambda body: _from_json(body, settings))
    if kind == bodies.MULTIPART:
        parts = await bodies.read_parts(request, max_files=bodies.MAX_FILES)
        return await asyncio.to_thread(_from_parts, parts, settings)
    raise UnsupportedMedia(
        f"A task is sent as {bodies.JSON}, or as {bodies.MULTIPART} with a file field for each image, named after its "
        f"class (curl -F zebra=@1.jpg -F horse=@2.jpg); not as {kind[:80] or 'a body without Content-Type'}."
    )


def _from_json(body: bytes, settings: Settings) -> TaskRequest:
    asked = bodies.parse_json(body, TaskIn)
    most = settings.max_image_bytes
    classes = tuple(
        ClassRequest(
            c.name,
            c.description,
            tuple(from_base64(f"classes[{i}].images[{j}]", text, max_bytes=most) for j, text in enumerate(c.images)),
        )
        for i, c in enumerate(asked.classes)
    )
    unlabeled = tuple(from_base64(f"unlabeled[{j}]", text, max_bytes=most) for j, text in enumerate(asked.unlabeled))
    return TaskRequest(classes, unlabeled, asked.generator)


def _from_parts(parts: Sequence[bodies.Part], settings: Settings) -> TaskRequest:
    """Classes in the order of the ``task`` part, then in that of their first file."""
    described, files = None, dict[str, list[bytes]]()
    for part in parts:
        if _is_task(part):
            if described is not None:
                raise InvalidRequest("The part `task` comes twice; send it once.", where=TASK)
            described = _described(part.data)
        elif part.is_file:
            if part.name != UNLABELED:  # thousands of long names take seconds to be put in canonical form
                check_length(part.name, settings.max_name_chars, part.name[:100])
            files.setdefault(canonical_text(part.name), []).append(part.data)
        else:
            raise _not_a_file(part.name[:100])
    described = described or TaskPartIn()
    most = settings.max_image_bytes
    images = {
        name: tuple(checked(f"{name}[{j}]", data, max_bytes=most) for j, data in enumerate(found))
        for name, found in files.items()
    }
    unlabeled = images.pop(UNLABELED, ())
    classes = [ClassRequest(c.name, c.description, images.pop(canonical_text(c.name), ())) for c in described.classes]
    classes += [ClassRequest(name, "", found) for name, found in images.items()]
    return TaskRequest(tuple(classes), unlabeled, described.generator)


def _is_task(part: bodies.Part) -> bool:
    """Also as a file whose type was not said (curl -F task=@task.json): no image begins with a brace."""
    return part.name == TASK and (part.media_type == bodies.JSON or not part.is_file or part.data.lstrip()[:1] == b"{")


def _described(data: bytes) -> TaskPartIn:
    try:
        return bodies.parse_json(data, TaskPartIn)
    except InvalidRequest as error:
        raise error.at(f"{TASK}.{error.where}".rstrip(".")) from error


def _not_a_file(name: str) -> InvalidRequest:
    if name in TaskPartIn.model_fields:
        return InvalidRequest(
            f"{name} is a member of the JSON in the part `task` (curl -F 'task={{...}}').", where=name
        )
    return InvalidRequest(f"The field {name!r} carries text, not a file; send it so: curl -F NAME=@1.jpg.", where=name)
