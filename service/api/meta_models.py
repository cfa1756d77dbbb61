"""The meta-models over HTTP: what `generator` may name, and what each takes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from models.metamodel import MetaModel
from service.api import bodies, openapi
from service.api.schemas import MetaModelListOut, MetaModelOut
from service.api.state import served
from service.requests import Specifier

router = APIRouter(tags=["tasks"], route_class=openapi.PlainRoute)


@router.get("/meta-models", **openapi.META_MODELS)
async def meta_models(request: Request) -> Response:
    """The meta-models that can make a classifier here, by name."""
    here, _ = served(request)
    bodies.check_query(request, ())
    specifier = here.tasks.registration.specifier
    catalogue = specifier.catalogue
    found = [_shown(catalogue.by_name[name], specifier) for name in catalogue.names]
    return Response(MetaModelListOut(meta_models=found).model_dump_json(), media_type=bodies.JSON)


def _shown(meta_model: MetaModel, specifier: Specifier) -> MetaModelOut:
    manifest = meta_model.manifest
    return MetaModelOut(
        name=manifest.name,
        digest=meta_model.digest,
        summary=manifest.summary,
        domain=manifest.domain,
        image_size=manifest.preprocess.size,
        min_classes=manifest.min_classes,
        max_classes=specifier.max_classes(manifest.max_classes),
        max_images=manifest.max_images,
        accepts_images=manifest.accepts_images,
        accepts_descriptions=manifest.accepts_descriptions,
        accepts_unlabeled=manifest.accepts_unlabeled,
    )
