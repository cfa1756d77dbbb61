"""Tasks over HTTP: made once, known again, listed, followed, deleted, taken away as a file."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest

import service.registration
from models.errors import Unavailable
from models.preprocess import PreprocessSpec, to_pixels
from service.api import bodies
from service.demo.alphabet import drawing
from service.ports import TaskRecord
from service.prediction.loading import Loader
from service.requests import TaskRequest
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, held_generations, live, places, problem
from tests.service.prototypes import SLOW_LOOPS


@pytest.fixture
def fresh(settings: Settings) -> Iterator[Live]:
    """A service with a store of its own."""
    with live(settings) as running:
        yield running


def as_files(images: dict[str, list[bytes]]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [(name, ("image.png", image, "image/png")) for name, shown in images.items() for image in shown]


def test_making_a_task_answers_with_all_there_is_to_know_of_it(fresh: Live) -> None:
    response = fresh.http.post("/tasks", json=centroids.task_json())
    assert response.status_code == 201
    task = response.json()
    assert task["state"] == "ready"
    assert task["classes"] == [{"name": f"character {k}", "description": "", "n_images": 1} for k in range(3)]
    assert task["meta_model"] == "centroids"
    assert task["generate_ms"] > 0
    assert task["bytes"] > 0
    assert response.headers["location"] == f"/tasks/{task['id']}"
    assert response.headers["etag"] == f'"{task["id"]}"'
    assert "total;dur=" in response.headers["server-timing"]


def test_the_same_request_is_the_same_task(fresh: Live) -> None:
    first = fresh.http.post("/tasks", json=centroids.task_json())
    second = fresh.http.post("/tasks", json=centroids.task_json())
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert len(fresh.http.get("/tasks").json()["tasks"]) == 1


def test_json_and_multipart_make_the_same_task(service: Live) -> None:
    shown = centroids.characters(4)
    task = service.task(centroids.task_json(shown))
    response = service.http.post("/tasks", files=as_files({name: [image] for name, image in shown.items()}))
    assert response.status_code == 200
    assert response.json()["id"] == task["id"]


def test_multipart_takes_descriptions_an_order_and_unlabelled_images(service: Live) -> None:
    described = {"classes": [{"name": "b", "description": "second letter"}, {"name": "a", "description": ""}]}
    files = as_files({"a": [drawing(0, 0), drawing(0, 1)], "b": [drawing(1, 0)], "unlabeled": [drawing(1, 2)]})
    files.append(("task", ("task.json", json.dumps(described).encode(), "application/json")))
    response = service.http.post("/tasks", files=files)
    assert response.status_code == 201, response.text
    assert response.json()["classes"] == [
        {"name": "b", "description": "second letter", "n_images": 1},
        {"name": "a", "description": "", "n_images": 2},
    ]
    assert response.json()["n_unlabeled"] == 1


def test_the_task_part_may_be_a_plain_text_field(service: Live) -> None:
    files = as_files({"a": [drawing(0, 3)], "b": [drawing(1, 3)]})
    response = service.http.post("/tasks", files=files, data={"task": '{"generator": "photos"}'})
    assert response.json()["meta_model"] == "photos"


def test_the_task_part_may_be_a_file_whose_type_nobody_said(service: Live) -> None:
    files = as_files({"a": [drawing(0, 3)], "b": [drawing(1, 3)]})
    files.append(("task", ("task.json", b' {"generator": "photos"}', "application/octet-stream")))
    assert service.http.post("/tasks", files=files).json()["meta_model"] == "photos"


def test_files_belong_to_the_class_of_the_same_name_however_it_is_written(service: Live) -> None:
    described = json.dumps({"classes": [{"name": "cafe\u0301", "description": "with cups"}, {"name": "sea "}]})
    files = as_files({"caf\u00e9": [drawing(0, 6)], "sea": [drawing(1, 6)]})
    response = service.http.post("/tasks", files=files, data={"task": described})
    assert response.status_code == 201, response.text
    assert [(c["name"], c["n_images"]) for c in response.json()["classes"]] == [("caf\u00e9", 1), ("sea", 1)]


@pytest.mark.parametrize(
    ("data", "said", "where"),
    [
        ({"task": ["{}", "{}"]}, "comes twice", "task"),
        ({"task": "{"}, "not valid JSON", "task"),
        ({"task": '{"classes": 3}'}, "this must be an array", "task.classes"),
        ({"generator": "photos"}, "member of the JSON in the part `task`", "generator"),
        ({"a": "an apple"}, "not a file", "a"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_where_it_is(
    service: Live, data: dict[str, Any], said: str, where: str
) -> None:
    refused = problem(service.http.post("/tasks", files=as_files({"b": [drawing(0, 0)]}), data=data), 400)
    assert said in refused["detail"]
    assert refused["errors"][0]["where"] == where


def test_a_model_file_that_the_client_has_is_not_sent_again(service: Live) -> None:
    address = f"/tasks/{service.task(centroids.task_json())['id']}/model.onnx"
    etag = service.http.get(address).headers["etag"]
    for held in (etag, f'"other", {etag}', "*"):
        again = service.http.get(address, headers={"If-None-Match": held})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert service.http.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_names_are_kept_in_their_canonical_form(service: Live) -> None:
    task = service.task(centroids.task_json({" zebra\n fish ": drawing(0, 4), "é": drawing(1, 4)}))
    assert [c["name"] for c in task["classes"]] == ["zebra fish", "é"]


@pytest.mark.parametrize(("kind", "expected"), [("drawings", "centroids"), ("photographs", "photos")])
def test_the_meta_model_follows_from_the_images(service: Live, kind: str, expected: str) -> None:
    images = [drawing(k, 5) if kind == "drawings" else centroids.photograph(k) for k in range(2)]
    task = service.task(centroids.task_json({"a": images[0], "b": images[1]}))
    assert task["meta_model"] == expected


def test_a_named_meta_model_is_taken(service: Live) -> None:
    task = service.task(centroids.task_json({"a": drawing(0, 6), "b": drawing(1, 6)}, generator="photos"))
    assert task["meta_model"] == "photos"


def test_pages_go_through_all_tasks_newest_first(fresh: Live) -> None:
    made = [fresh.task(centroids.task_json({"a": drawing(0, k), "b": drawing(1, k)}))["id"] for k in range(5)]
    address, seen, n_pages = "/tasks?limit=2", [], 0
    while address:
        response = fresh.http.get(address)
        page = response.json()
        assert ("link" in response.headers) == (page["next"] is not None)
        seen += [task["id"] for task in page["tasks"]]
        address, n_pages = page["next"], n_pages + 1
    assert n_pages == 3
    assert seen == made[::-1]


def test_pages_go_on_where_tasks_are_deleted_on_the_way(fresh: Live) -> None:
    made = [fresh.task(centroids.task_json({"a": drawing(0, k), "b": drawing(1, k)}))["id"] for k in range(4)]
    address, deleted = "/tasks?limit=1", []
    while address:
        page = fresh.http.get(address).json()
        for task in page["tasks"]:
            assert fresh.http.delete(f"/tasks/{task['id']}").status_code == 204
            deleted.append(task["id"])
        address = page["next"]
    assert deleted == made[::-1]


def test_a_task_is_shown_and_not_sent_twice_to_who_has_it(service: Live) -> None:
    task = service.task(centroids.task_json())
    address = f"/tasks/{task['id']}"
    response = service.http.get(address)
    assert response.json() == task
    for method in ("GET", "HEAD"):
        again = service.http.request(method, address, headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""


OF_A_TASK = ["", "/events", "/model.onnx", "/adaptation"]
OF_NONE = ["/", "/docs", "/openapi.json", "/examples", "/assets/style.css", "/healthz", "/readyz", "/metrics", "/tasks",
           "/v2", "/v2/health/ready", "/v2/models/stats"]  # fmt: skip


def test_head_is_get_without_its_body(service: Live) -> None:
    address = f"/tasks/{service.task(centroids.task_json())['id']}"
    for target in [*OF_NONE, *(address + rest for rest in OF_A_TASK), f"/v2/models/{address[7:]}", "/nope"]:
        got, asked = service.http.get(target), service.http.head(target)
        assert asked.status_code == got.status_code, target
        assert asked.content == b""
        assert set(asked.headers) == set(got.headers) - {"transfer-encoding"}
        assert asked.headers.get("content-type") == got.headers.get("content-type")
    refused = service.http.head("/v2/repository/index")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    document = service.http.get("/openapi.json").json()
    assert not [path for path, calls in document["paths"].items() if "head" in calls]


def test_head_does_not_follow_a_stream(settings: Settings) -> None:
    with live(settings) as running, held_generations():
        made = running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "respond-async"})
        asked = running.http.head(f"{made.headers['location']}/events")
        assert asked.headers["content-type"].startswith("text/event-stream")
        assert running.http.get(made.headers["location"]).json()["state"] != "ready"


def test_a_deleted_task_is_gone_and_can_be_made_again(fresh: Live) -> None:
    task = fresh.task(centroids.task_json())
    address = f"/tasks/{task['id']}"
    query = {"content": centroids.characters()["character 0"], "headers": {"Content-Type": "image/png"}}
    assert fresh.http.post(f"{address}/predict", **query).status_code == 200
    response = fresh.http.delete(address)
    assert (response.status_code, response.content) == (204, b"")
    problem(fresh.http.get(address), 404)
    problem(fresh.http.post(f"{address}/predict", **query), 404)
    problem(fresh.http.get(f"{address}/model.onnx"), 404)
    problem(fresh.http.delete(address), 404)
    assert fresh.http.get("/tasks").json()["tasks"] == []
    assert fresh.http.post("/tasks", json=centroids.task_json()).status_code == 201


def test_concurrent_equal_requests_make_one_task_once(settings: Settings, tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "slow", n_loops=SLOW_LOOPS // 5)
    with live(settings.model_copy(update={"meta_models": tmp_path / "slow"})) as running:
        answers: list[httpx.Response] = []

        def make() -> None:
            answers.append(running.http.post("/tasks", json=centroids.task_json()))

        threads = [threading.Thread(target=make) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
        assert len({answer.text for answer in answers}) == 1


def test_a_wait_that_runs_out_is_answered_202_and_the_work_goes_on(settings: Settings) -> None:
    with live(settings) as running, held_generations() as go_on:
        response = running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "wait=0"})
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "wait=0"
        assert response.headers["retry-after"] == "1"
        assert "etag" not in response.headers
        task = response.json()
        assert task["state"] in ("queued", "generating")
        address = response.headers["location"]
        too_early = {"content": drawing(0, 0), "headers": {"Content-Type": "image/png"}}
        problem(running.http.post(f"{address}/predict", **too_early), 409)
        go_on.set()
        states = [event for event, _ in events(running, address)]
        assert states[-1] == "ready"
        assert set(states) <= {"queued", "generating", "ready"}
        again = running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "wait=30"})
        assert again.status_code == 200
        assert again.headers["preference-applied"] == "wait=30"


BOTH = [[("Prefer", "respond-async, wait=30")], [("Prefer", "wait=30, respond-async")],
        [("Prefer", "respond-async"), ("Prefer", "wait=30; x=1")]]  # fmt: skip


@pytest.mark.parametrize("headers", BOTH)
def test_who_asks_for_an_early_answer_after_a_wait_is_waited_for(fresh: Live, headers: list[tuple[str, str]]) -> None:
    response = fresh.http.post("/tasks", json=centroids.task_json(), headers=headers)
    assert response.headers["preference-applied"] == "wait=30"
    assert (response.status_code, response.json()["state"]) == (201, "ready")


def events(running: Live, address: str) -> list[tuple[str, dict[str, object]]]:
    response = running.http.get(f"{address}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block.startswith("event:")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_the_events_of_a_ready_task_are_one(service: Live) -> None:
    task = service.task(centroids.task_json())
    assert events(service, f"/tasks/{task['id']}") == [("ready", task)]
    problem(service.http.get(f"/tasks/{'0' * 32}/events"), 404)


def test_a_deleted_task_ends_its_events(settings: Settings) -> None:
    with live(settings) as running, held_generations():
        response = running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "respond-async"})
        address = response.headers["location"]
        with running.http.stream("GET", f"{address}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            assert running.http.delete(address).status_code == 204
            assert "event: deleted" in list(lines)


def test_events_go_on_after_the_store_was_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(settings) as running, held_generations() as go_on:
        made = running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "respond-async"})
        looks, record = itertools.count(), Loader.record

        def away_at_first(loader: Loader, tenant: str, ident: str) -> TaskRecord:
            look = next(looks)
            if look == 3:
                go_on.set()
            if 0 < look < 3:  # the first is before the stream begins
                raise Unavailable("The task store does not answer.")
            return record(loader, tenant, ident)

        monkeypatch.setattr(Loader, "record", away_at_first)
        assert [event for event, _ in events(running, made.headers["location"])][-1] == "ready"


def noted(threads: list[str], work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, which also adds the name of its thread."""

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return work(*arguments, **options)

    return noting


def test_the_event_loop_does_not_read_a_whole_task(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one at the limit it would take a tenth of a second, in which nobody is answered."""
    threads: list[str] = []
    registration = service.registration
    for place, name in [(TaskRequest, "fingerprint"), (registration, "encode_recipe"), (registration, "task_id")]:
        monkeypatch.setattr(place, name, noted(threads, getattr(place, name)))
    fresh.task(centroids.task_json(), **{"Idempotency-Key": "4f6d9a3e-6"})
    assert len(threads) == 3
    assert "uvicorn" not in threads


def test_large_json_is_read_off_the_event_loop(fresh: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    files = as_files({name: [image] for name, image in centroids.characters().items()})
    load = f"/v2/repository/models/{fresh.task(centroids.task_json())['id']}/load"
    monkeypatch.setattr(bodies, "parse_json", noted(threads, bodies.parse_json))
    for padding in (b"", b" " * bodies.OFF_LOOP_BYTES):
        threads.clear()
        part = ("task", ("task.json", b"{}" + padding, "application/json"))
        for answer in [
            fresh.http.post("/tasks", files=[*files, part]),
            fresh.http.post("/v2/repository/index", content=b"{}" + padding),
            fresh.http.post(load, content=b"{}" + padding),
        ]:
            assert answer.status_code == 200, answer.text
        assert [thread == "uvicorn" for thread in threads] == [False, not padding, not padding]


def test_the_exported_file_answers_in_plain_onnx_runtime(service: Live) -> None:
    shown = centroids.characters(5)
    task = service.task(centroids.task_json(shown))
    response = service.http.get(f"/tasks/{task['id']}/model.onnx")
    assert response.status_code == 200
    assert f"{task['id']}.onnx" in response.headers["content-disposition"]
    session = ort.InferenceSession(response.content)
    properties = session.get_modelmeta().custom_metadata_map
    names = json.loads(properties["class_names"])
    spec = PreprocessSpec(**json.loads(properties["preprocess"]))
    query = drawing(2, 7)
    (row,) = session.run(["probabilities"], {"pixels": to_pixels(query, spec)[None]})[0]
    answer = service.http.post(f"/tasks/{task['id']}/predict", content=query, headers={"Content-Type": "image/png"})
    served = answer.json()["predictions"][0]["probabilities"]
    np.testing.assert_allclose([served[name] for name in names], row, atol=2e-6)


def test_a_repeated_idempotency_key_repeats_the_first_answer(fresh: Live) -> None:
    headers = {"Idempotency-Key": "4f6d9a3e-1"}
    first = fresh.http.post("/tasks", json=centroids.task_json(), headers=headers)
    again = fresh.http.post("/tasks", json=centroids.task_json(), headers=headers)
    files = as_files({name: [image] for name, image in centroids.characters().items()})
    other_form = fresh.http.post("/tasks", files=files, headers=headers)
    assert [first.status_code, again.status_code, other_form.status_code] == [201, 201, 201]
    assert first.json() == again.json() == other_form.json()


def test_an_idempotency_key_is_not_reused_for_another_request(fresh: Live) -> None:
    headers = {"Idempotency-Key": "4f6d9a3e-2"}
    fresh.task(centroids.task_json(), **headers)
    refused = fresh.http.post("/tasks", json=centroids.task_json(centroids.characters(4)), headers=headers)
    assert places(problem(refused, 422)) == ["Idempotency-Key"]
    assert len(fresh.http.get("/tasks").json()["tasks"]) == 1


def test_a_refused_request_does_not_use_its_key_up(fresh: Live) -> None:
    headers = {"Idempotency-Key": "4f6d9a3e-3"}
    problem(fresh.http.post("/tasks", json={"classes": []}, headers=headers), 422)
    assert fresh.http.post("/tasks", json=centroids.task_json(), headers=headers).status_code == 201


def test_a_key_whose_task_was_deleted_makes_it_again(fresh: Live) -> None:
    headers = {"Idempotency-Key": "4f6d9a3e-4"}
    task = fresh.task(centroids.task_json(), **headers)
    fresh.http.delete(f"/tasks/{task['id']}")
    assert fresh.http.post("/tasks", json=centroids.task_json(), headers=headers).status_code == 201


def test_a_restart_keeps_tasks_and_idempotency_keys(settings: Settings) -> None:
    headers = {"Idempotency-Key": "4f6d9a3e-5"}
    with live(settings) as running:
        task = running.task(centroids.task_json(), **headers)
    with live(settings) as running:
        assert running.http.get(f"/tasks/{task['id']}").json() == task
        assert running.http.post("/tasks", json=centroids.task_json(), headers=headers).status_code == 201
        refused = running.http.post("/tasks", json=centroids.task_json(centroids.characters(4)), headers=headers)
        problem(refused, 422)


def test_a_failed_generation_is_said_and_tried_again(settings: Settings, tmp_path: Path) -> None:
    centroids.meta_model(tmp_path / "zoo")
    other = centroids.meta_model(tmp_path / "zoo", name="other")  # no first choice: read when it is asked for
    file, whole = other.folder / "generator.onnx", other.read("generator.onnx")
    body = centroids.task_json(generator="other")
    with live(settings.model_copy(update={"meta_models": tmp_path / "zoo"})) as running:
        file.write_bytes(b"not a graph")
        refused = problem(running.http.post("/tasks", json=body), 500)
        (task,) = running.http.get("/tasks").json()["tasks"]
        assert task["state"] == "failed"
        assert task["error"] in refused["detail"]
        predict = {"content": drawing(0, 0), "headers": {"Content-Type": "image/png"}}
        problem(running.http.post(f"/tasks/{task['id']}/predict", **predict), 409)
        file.write_bytes(whole)
        assert running.task(body)["id"] == task["id"]
        assert running.http.post(f"/tasks/{task['id']}/predict", **predict).status_code == 200


def test_too_many_pending_generations_are_refused_with_a_time(settings: Settings) -> None:
    with live(settings.model_copy(update={"max_pending_generations": 1})) as running, held_generations():
        running.http.post("/tasks", json=centroids.task_json(), headers={"Prefer": "wait=0"})
        refused = running.http.post("/tasks", json=centroids.task_json(centroids.characters(4)))
        problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert len(running.http.get("/tasks").json()["tasks"]) == 1
