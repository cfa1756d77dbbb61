"""Keys and tenants: who may do what, and nobody learns of another's tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from models.errors import Forbidden, Unauthenticated
from service.api.auth import Keyring
from service.demo.alphabet import drawing
from service.settings import Grant, Settings
from tests.service import centroids
from tests.service.live import Live, live, places, problem

PNG = {"Content-Type": "image/png"}
ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"Authorization": "Bearer key-of-bob"}
KEYS = {"key-of-ann": "ann", "key-of-bob": "bob", "other-key-of-ann": "ann"}


@pytest.fixture(scope="module")
def guarded(meta_models: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    settings = Settings(meta_models=meta_models, state_dir=tmp_path_factory.mktemp("state"), api_keys=KEYS)
    with live(settings) as running:
        yield running


NO_KEYS = ["", "Bearer", "Bearer nope", "Basic key-of-ann", "key-of-ann", "Bearer key-of-anna", "Bearer \xff"]


@pytest.mark.parametrize("header", NO_KEYS)
def test_without_a_known_key_nothing_is_answered(guarded: Live, header: str) -> None:
    headers = httpx.Headers([("Authorization", header)] if header else [], encoding="latin-1")
    for method, target in [("GET", "/tasks"), ("POST", "/tasks"), ("POST", f"/tasks/{'0' * 32}/predict"),
                           ("GET", "/meta-models"),
                           ("DELETE", f"/tasks/{'0' * 32}"), ("GET", f"/tasks/{'0' * 32}/model.onnx")]:  # fmt: skip
        response = guarded.http.request(method, target, headers=headers)
        assert places(problem(response, 401)) == ["Authorization"]
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_the_scheme_is_read_without_regard_to_case(guarded: Live) -> None:
    assert guarded.http.get("/tasks", headers={"Authorization": "bearer key-of-ann"}).status_code == 200


def test_health_and_documentation_need_no_key(guarded: Live) -> None:
    for target in ("/healthz", "/readyz", "/docs", "/openapi.json", "/"):
        assert guarded.http.get(target).status_code == 200
    document = guarded.http.get("/openapi.json").json()
    assert document["paths"]["/tasks"]["post"]["security"] == [{"key": []}]


def test_tasks_of_another_tenant_are_not_there(guarded: Live) -> None:
    task = guarded.task(centroids.task_json(), **ANN)
    address = f"/tasks/{task['id']}"
    query = {"content": drawing(0, 0), "headers": {"Content-Type": "image/png", **BOB}}
    for response in [
        guarded.http.get(address, headers=BOB),
        guarded.http.get(f"{address}/events", headers=BOB),
        guarded.http.get(f"{address}/model.onnx", headers=BOB),
        guarded.http.post(f"{address}/predict", **query),
        guarded.http.delete(address, headers=BOB),
    ]:
        foreign = problem(response, 404)
        unknown = problem(guarded.http.get(f"/tasks/{'0' * 32}", headers=BOB), 404)
        assert foreign["detail"].replace(task["id"], "0" * 32) == unknown["detail"]
    assert guarded.http.get("/tasks", headers=BOB).json()["tasks"] == []
    assert guarded.http.get(address, headers=ANN).json() == task


def test_equal_requests_of_two_tenants_are_two_tasks(guarded: Live) -> None:
    body = centroids.task_json(centroids.characters(4))
    of_ann = guarded.http.post("/tasks", json=body, headers=ANN)
    of_bob = guarded.http.post("/tasks", json=body, headers=BOB)
    assert (of_ann.status_code, of_bob.status_code) == (201, 201)
    assert of_ann.json()["id"] != of_bob.json()["id"]
    guarded.http.delete(f"/tasks/{of_bob.json()['id']}", headers=BOB)
    assert guarded.http.get(f"/tasks/{of_ann.json()['id']}", headers=ANN).status_code == 200


def test_two_keys_of_a_tenant_see_the_same_tasks(guarded: Live) -> None:
    task = guarded.task(centroids.task_json(centroids.characters(5)), **ANN)
    other = {"Authorization": "Bearer other-key-of-ann"}
    assert guarded.http.get(f"/tasks/{task['id']}", headers=other).json() == task


def test_idempotency_keys_belong_to_their_tenant(guarded: Live) -> None:
    key = {"Idempotency-Key": "shared"}
    guarded.task(centroids.task_json(centroids.characters(6)), **ANN, **key)
    guarded.task(centroids.task_json(centroids.characters(7)), **BOB, **key)


def test_a_foreign_task_is_looked_up_as_an_unknown_one(guarded: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores are asked the same questions, so that there is nothing to time (tests/contract: within the stores)."""
    task = guarded.task(centroids.task_json(), **ANN)
    asked: list[str] = []
    for store in (guarded.served.tasks.store, guarded.served.tasks.bundles):
        for name in ("get", "recipe", "list", "delete", "claim", "release"):
            if hasattr(store, name):
                monkeypatch.setattr(type(store), name, noted(asked, getattr(type(store), name)))

    def questions(method: str, rest: str, ident: str) -> list[str]:
        asked.clear()
        body = drawing(0, 0) if method == "POST" else None
        answer = guarded.http.request(method, f"/tasks/{ident}{rest}", content=body, headers={**PNG, **BOB})
        assert answer.status_code == 404
        return list(asked)

    for method, rest in [("POST", "/predict"), ("GET", ""), ("GET", "/events"), ("GET", "/model.onnx"), ("DELETE", "")]:
        foreign = questions(method, rest, task["id"])
        assert foreign == questions(method, rest, "0" * 32)
        assert foreign


def noted(names: list[str], work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, which also adds its name."""

    def noting(*arguments: Any, **options: Any) -> Any:
        names.append(work.__qualname__)
        return work(*arguments, **options)

    return noting


OF_THIS_MACHINE = ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "box", "app.localhost", ""]


@pytest.mark.parametrize("host", OF_THIS_MACHINE)
def test_without_keys_this_machine_is_answered(host: str) -> None:
    assert Keyring({}).caller({"host": host}).tenant == "local"
    assert Keyring({}).caller({"host": host, "origin": f"http://{host}"}).tenant == "local"


@pytest.mark.parametrize("headers", [
    {"host": "evil.example"}, {"host": "evil.example:8000"}, {"host": "192.168.1.5:8000"},
    {"host": "localhost:8000", "origin": "https://evil.example"}, {"host": "localhost:8000", "origin": "null"},
    {"host": "127.0.0.1.evil.example"}, {"host": "localhost:8000", "origin": "http://localhost:9000"},
    {"host": "["}, {"host": "[::1"}, {"host": "[x]:8000"}, {"host": "localhost", "origin": "http://["},
    {"host": "localhost", "origin": "http://[x]"}, {"host": "[", "origin": "http://["},
])  # fmt: skip
def test_without_keys_other_names_and_other_sites_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        Keyring({}).caller(headers)


def test_with_keys_names_and_sites_do_not_matter() -> None:
    keyring = Keyring({"k": Grant(tenant="t")})
    headers = {"host": "api.example", "origin": "https://app.example", "authorization": "Bearer k"}
    assert keyring.caller(headers).tenant == "t"
    with pytest.raises(Unauthenticated):
        keyring.caller({"host": "localhost"})


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "[x]:80"}, {"Origin": "http://["}])
def test_what_is_no_name_is_refused_as_another_name_is(service: Live, headers: dict[str, str]) -> None:
    for method, target in [("GET", "/tasks"), ("POST", f"/tasks/{'0' * 32}/predict")]:
        problem(service.http.request(method, target, headers=headers), 403)


def test_another_site_cannot_make_a_browser_make_tasks(service: Live) -> None:
    files = [(name, ("1.png", drawing(k, 8), "image/png")) for k, name in enumerate("ab")]
    refused = service.http.post("/tasks", files=files, headers={"Origin": "https://evil.example"})
    problem(refused, 403)
