"""Predictions over HTTP: the path that has to be short.

One raw image is the fast way: no base64, no multipart, no model of the body.
"""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from models.errors import InvalidRequest, TooLarge, UnsupportedMedia
from service.api import bodies, openapi
from service.api.leaving import while_there
from service.api.middleware.context import add_timings
from service.api.schemas import PredictIn
from service.api.state import served
from service.images import checked, from_base64
from service.prediction.batching import Prediction
from service.settings import Settings

router = APIRouter(tags=["predictions"], route_class=openapi.PlainRoute)
LARGEST_TOP_K = 1_000
ADDRESS = "/tasks/{task_id}/predict"


@router.post(ADDRESS, **openapi.PREDICT)
async def predict(request: Request) -> Response:
    """Classify images: one as the body itself, or several as multipart files or base64 in JSON."""
    here, tenant = served(request)
    task_id, top_k = request.path_params["task_id"], _top_k(request)
    with here.tasks.reading(tenant, task_id):
        images = await encoded_images(request, here.settings)
        await bodies.check_pixels(images, here.settings)
    prediction = await while_there(request, here.tasks.predict(tenant, task_id, images, top_k))
    add_timings(request.scope, queue=prediction.queue_ms, decode=prediction.decode_ms, run=prediction.run_ms)
    return Response(encode(prediction), media_type=bodies.JSON)


def _top_k(request: Request) -> int | None:
    if not request.scope["query_string"]:
        return None
    bodies.check_query(request, ("top_k",))
    return bodies.integer(request, "top_k", least=1, most=LARGEST_TOP_K)


async def encoded_images(request: Request, settings: Settings) -> list[bytes]:
    """The encoded images of a request, each within the limits; raises what is wrong, located."""
    kind = bodies.media_type(request)
    most = settings.max_image_bytes
    if kind.startswith("image/"):
        return [checked("images[0]", await request.body(), max_bytes=most).data]
    if kind == bodies.JSON:
        return await bodies.read_json(request, lambda body: _from_json(body, settings))
    if kind == bodies.MULTIPART:
        return await _from_multipart(request, settings)
    raise UnsupportedMedia(
        f"Images are sent as one image/png, image/jpeg or image/webp body, as {bodies.MULTIPART} files, or as "
        f"{bodies.JSON} with base64; not as {kind[:80] or 'a body without Content-Type'}."
    )


def _from_json(body: bytes, settings: Settings) -> list[bytes]:
    texts = bodies.parse_json(body, PredictIn).images
    _check_count(len(texts), settings)
    most = settings.max_image_bytes
    return [from_base64(f"images[{i}]", text, max_bytes=most).data for i, text in enumerate(texts)]


async def _from_multipart(request: Request, settings: Settings) -> list[bytes]:
    """Every file part is an image, whatever its name."""
    parts = await bodies.read_parts(request, max_files=bodies.MAX_FILES)
    if not all(part.is_file for part in parts):
        raise InvalidRequest("A field carries text, not a file; send files (curl -F image=@1.jpg).", where="images")
    _check_count(len(parts), settings)
    most = settings.max_image_bytes
    return [checked(f"images[{i}]", part.data, max_bytes=most).data for i, part in enumerate(parts)]


def _check_count(n_images: int, settings: Settings) -> None:
    if n_images == 0:
        raise InvalidRequest("There is no image to classify; send at least one.", where="images")
    if n_images > settings.max_images_per_predict:
        message = f"{n_images} images are over the limit of {settings.max_images_per_predict} a call; send fewer."
        raise TooLarge(message, where="images")


def encode(prediction: Prediction) -> bytes:
    """The body of an answer."""
    return orjson.dumps({"predictions": prediction.decisions})  # 1 us for 20 classes; the standard library takes 50
