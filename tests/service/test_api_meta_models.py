"""`GET /meta-models`: what `generator` may name, and what each takes."""

from __future__ import annotations

from pathlib import Path

from models import metamodel
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live, places, problem


def test_all_whole_meta_models_are_listed_by_name(service: Live, meta_models: Path) -> None:
    listed = service.http.get("/meta-models").json()["meta_models"]
    assert [m["name"] for m in listed] == ["centroids", "photos"]
    drawings, photographs = listed
    manifest = metamodel.load(meta_models / "centroids").manifest
    assert (drawings["domain"], photographs["domain"]) == ("drawings", "photographs")
    assert (drawings["accepts_unlabeled"], photographs["accepts_unlabeled"]) == (True, False)
    assert drawings["image_size"] == manifest.preprocess.size
    assert (drawings["min_classes"], drawings["max_classes"]) == (manifest.min_classes, manifest.max_classes)


def test_each_of_them_makes_what_it_is_asked_for(service: Live) -> None:
    for listed in service.http.get("/meta-models").json()["meta_models"]:
        task = service.task({**centroids.task_json(), "generator": listed["name"]})
        assert task["meta_model"] == listed["name"]


def test_the_services_own_limit_of_classes_is_said(meta_models: Path, tmp_path: Path) -> None:
    with live(Settings(meta_models=meta_models, state_dir=tmp_path, max_classes=3)) as running:
        assert {m["max_classes"] for m in running.http.get("/meta-models").json()["meta_models"]} == {3}


def test_a_parameter_is_refused(service: Live) -> None:
    assert places(problem(service.http.get("/meta-models?limit=3"), 400)) == ["query.limit"]
