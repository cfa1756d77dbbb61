"""Hostile input: the API from its own OpenAPI document, and corrupt images. No 5xx, no growth, answers as documented.

Bounded and derandomised: the same cases in every run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.e2e.processes import Service, serve
from tests.service import centroids

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
N_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
BOUNDED = settings(
    max_examples=N_EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
GROWTH_BYTES = 100_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzz")
    centroids.meta_model(folder / "meta-models")
    settings = {"state_dir": folder / "state", "meta_models": folder / "meta-models", "max_request_bytes": 2_000_000}
    with serve(**settings) as running:
        yield running


@pytest.fixture(scope="module")
def task_id(service: Service) -> str:
    ident: str = service.http.post("/tasks", json=centroids.task_json()).json()["id"]
    return ident


@pytest.fixture(scope="module", autouse=True)
def no_growth(service: Service, task_id: str) -> Iterator[None]:
    before = resident_bytes(service)
    yield
    assert resident_bytes(service) - before < GROWTH_BYTES
    assert service.http.get("/readyz").status_code == 200


def resident_bytes(service: Service) -> int:
    command = ["ps", "-o", "rss=", "-p", str(service.process.pid)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


@schemathesis.serializer("image/png", "image/jpeg", "image/webp")
def raw(context: object, value: object) -> bytes:
    """Any generated value as a raw body."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


api = schemathesis.openapi.from_dict(create_app(Settings()).openapi())


@api.parametrize()
@BOUNDED
def test_the_api_keeps_to_its_document(case: Case, service: Service, task_id: str) -> None:
    if case.method != "DELETE" and len(repr(case.body)) % 2:  # half of them about a task that is there
        case.path_parameters.update({name: task_id for name in case.path_parameters})
    case.call_and_validate(base_url=service.url, checks=CHECKS, timeout=240)


def corruptions(whole: bytes) -> st.SearchStrategy[bytes]:
    """Cut short, with bytes overwritten, with bytes between: mostly still recognised as an image."""
    place = st.integers(0, len(whole))
    cut = place.map(lambda n: whole[:n])
    patches = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=12)
    inserted = st.tuples(place, st.binary(max_size=64)).map(lambda p: whole[: p[0]] + p[1] + whole[p[0] :])
    return st.one_of(cut, patches.map(lambda found: patched(whole, found)), inserted)


def patched(whole: bytes, patches: list[tuple[int, int]]) -> bytes:
    data = bytearray(whole)
    for place, value in patches:
        data[place] = value
    return bytes(data)


IMAGES = [drawing(0, 0), *(centroids.photograph(1, format=format) for format in ("JPEG", "PNG", "WEBP"))]


@BOUNDED
@given(image=st.sampled_from(IMAGES).flatmap(corruptions) | st.binary(max_size=300))
def test_corrupt_images_are_refused_or_read(service: Service, task_id: str, image: bytes) -> None:
    n_tasks = len(service.http.get("/tasks?limit=500").json()["tasks"])
    headers = {"Content-Type": "image/png"}
    answer = service.http.post(f"/tasks/{task_id}/predict", content=image, headers=headers)
    assert answer.status_code in (200, 400, 413, 415), answer.text
    asked = centroids.task_json({"a": drawing(1, 0), "b": image})
    made = service.http.post("/tasks", json=asked)
    assert made.status_code in (200, 201, 400, 413, 415, 422), made.text
    n_more = len(service.http.get("/tasks?limit=500").json()["tasks"]) - n_tasks
    assert n_more == (made.status_code == 201)


KINDS = ["application/json", "multipart/form-data; boundary=x", "image/png", "x"]


@BOUNDED
@given(body=st.binary(max_size=400), kind=st.sampled_from(KINDS))
def test_any_bytes_are_answered(service: Service, task_id: str, body: bytes, kind: str) -> None:
    for target in ("/tasks", f"/tasks/{task_id}/predict"):
        answer = service.http.post(target, content=body, headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_store_holds_nothing_of_refused_requests(service: Service, tmp_path: Path) -> None:
    """What the fuzzing left behind is what was acknowledged: every task that is listed can be shown."""
    for task in service.http.get("/tasks?limit=500").json()["tasks"]:
        assert service.http.get(f"/tasks/{task['id']}").json()["state"] == "ready"
