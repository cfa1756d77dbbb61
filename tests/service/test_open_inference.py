"""The Open Inference Protocol as its clients use it: tritonclient as it is on PyPI, and plain HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from models.preprocess import PreprocessSpec, to_pixels
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live

UNKNOWN = "0" * 32
IMAGES = [drawing(k, 1) for k in (2, 0, 1)]
SPEC = PreprocessSpec(centroids.SIZE, 1)
PIXELS = np.stack([to_pixels(image, SPEC) for image in IMAGES])


@pytest.fixture(scope="module")
def model(service: Live) -> str:
    ident: str = service.task(centroids.task_json())["id"]
    return ident


@pytest.fixture
def client(service: Live) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(address(service))


def address(service: Live) -> str:
    return service.url.removeprefix("http://")


def encoded(images: list[bytes] = IMAGES) -> Any:
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    return tensor.set_data_from_numpy(np.array(images, dtype=object))


def pixels(values: Any = PIXELS, *, binary: bool = True) -> Any:
    name, datatype = ("pixels", "UINT8") if values.dtype == np.uint8 else ("pixels_fp32", "FP32")
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


def predictions(service: Live, model: str) -> list[dict[str, Any]]:
    body = {"images": [centroids.encoded(image) for image in IMAGES]}
    found: list[dict[str, Any]] = service.http.post(f"/tasks/{model}/predict", json=body).json()["predictions"]
    return found


def check(result: Any, expected: list[dict[str, Any]]) -> None:
    """An answer says what the service's own call says."""
    classes = list(centroids.characters())
    assert [label.decode() for label in result.as_numpy("labels")] == [p["label"] for p in expected]
    assert result.as_numpy("abstain").tolist() == [p["abstain"] for p in expected]
    probabilities = np.array([[p["probabilities"][name] for name in classes] for p in expected], np.float32)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities)
    assert result.as_numpy("probabilities").dtype == np.float32


def refusal(service: Live, method: str, target: str, status: int, **sent: Any) -> str:
    """The message of a refusal, which has the protocol's shape and no other."""
    response = service.http.request(method, target, **sent)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message: str = response.json()["error"]
    assert message
    return message


def test_health_and_metadata_of_the_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    found = client.get_server_metadata()
    assert found["name"] == "classmith"
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(found["extensions"])


def test_a_task_is_a_model(client: triton.InferenceServerClient, model: str) -> None:
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, "1")
    found = client.get_model_metadata(model)
    assert found == client.get_model_metadata(model, "1")
    assert (found["name"], found["versions"]) == (model, ["1"])
    shape = [-1, centroids.SIZE, centroids.SIZE, 1]
    assert [(t["name"], t["datatype"], t["shape"]) for t in found["inputs"]] == [
        ("image", "BYTES", [-1]), ("pixels", "UINT8", shape), ("pixels_fp32", "FP32", shape),
    ]  # fmt: skip
    assert found["outputs"][0]["parameters"]["labels"] == list(centroids.characters())
    config = client.get_model_config(model)
    assert [tensor["name"] for tensor in config["output"]] == [tensor["name"] for tensor in found["outputs"]]


def test_unknown_models_versions_and_extensions_are_errors_of_the_protocol(
    service: Live, client: triton.InferenceServerClient, model: str
) -> None:
    assert not client.is_model_ready(UNKNOWN)
    assert not client.is_model_ready(model, "2")
    for call in [
        lambda: client.get_model_metadata(UNKNOWN), lambda: client.get_model_metadata(model, "2"),
        lambda: client.infer(UNKNOWN, [encoded()]), lambda: client.load_model(UNKNOWN),
        lambda: client.unload_model(UNKNOWN), lambda: client.get_inference_statistics(UNKNOWN),
        lambda: client.get_system_shared_memory_status(), lambda: client.get_trace_settings(),
    ]:  # fmt: skip
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "404"
    assert UNKNOWN in refusal(service, "GET", f"/v2/models/{UNKNOWN}", 404)
    refusal(service, "GET", "/v2/", 404)
    refusal(service, "DELETE", f"/v2/models/{model}", 405)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("values", [PIXELS, PIXELS.astype(np.float32) / 255], ids=["UINT8", "FP32"])
def test_pixels_are_answered_as_the_image_is(service: Live, model: str, values: Any, binary: bool) -> None:
    client = triton.InferenceServerClient(address(service))
    check(client.infer(model, [pixels(values, binary=binary)]), predictions(service, model))


def test_encoded_images_are_answered_as_by_the_service_s_own_call(
    service: Live, client: triton.InferenceServerClient, model: str
) -> None:
    expected = predictions(service, model)
    result = client.infer(model, [encoded()], request_id="mine", model_version="1")
    check(result, expected)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (model, "1", "mine")
    running = client.async_infer(model, [encoded()])
    check(running.get_result(), expected)


def test_a_thousand_images_are_answered_in_their_order(client: triton.InferenceServerClient, model: str) -> None:
    many = np.concatenate([PIXELS] * 333 + [PIXELS[:1]])
    found = client.infer(model, [pixels(many)])
    few = client.infer(model, [pixels()])
    for name in ("probabilities", "labels", "abstain"):
        expected = np.concatenate([few.as_numpy(name)] * 333 + [few.as_numpy(name)[:1]])
        np.testing.assert_array_equal(found.as_numpy(name), expected)


def test_the_asynchronous_client_works_too(service: Live, model: str) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(address(service)) as client:
            assert await client.is_model_ready(model)
            with pytest.raises(InferenceServerException, match="There is no task"):
                await client.infer(UNKNOWN, [encoded()])
            return await asyncio.gather(*(client.infer(model, [encoded()]) for _ in range(8)))

    for result in asyncio.run(ask()):
        check(result, predictions(service, model))


def test_outputs_are_those_asked_for_in_the_form_asked_for(client: triton.InferenceServerClient, model: str) -> None:
    wanted = [
        triton.InferRequestedOutput("abstain", binary_data=False),
        triton.InferRequestedOutput("labels", binary_data=True),
    ]
    result = client.infer(model, [encoded()], outputs=wanted)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["abstain", "labels"]
    assert result.get_output("abstain")["data"] == [False, False, False]
    assert "data" not in result.get_output("labels")
    assert result.as_numpy("probabilities") is None


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (100, 3)])
def test_the_classification_extension_gives_the_best(
    service: Live, client: triton.InferenceServerClient, model: str, asked: int, given: int
) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=asked)
    found = client.infer(model, [encoded()], outputs=[wanted]).as_numpy("probabilities")
    assert found.shape == (len(IMAGES), given)
    classes = list(centroids.characters())
    for row, expected in zip(found, predictions(service, model), strict=True):
        best = [text.decode().split(":", 2) for text in row]
        assert [name for _, _, name in best] == list(expected["probabilities"])[:given]
        assert [classes[int(k)] for _, k, _ in best] == [name for _, _, name in best]
        assert [float(p) for p, _, _ in best] == list(expected["probabilities"].values())[:given]


def test_json_data_comes_flat_or_nested(service: Live, model: str) -> None:
    answers = []
    for data in (PIXELS.tolist(), PIXELS.ravel().tolist()):
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": data}
        response = service.http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
        assert response.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in response.headers
        answers.append(response.json())
    assert answers[0] == answers[1]
    assert answers[0]["outputs"][1]["data"] == [p["label"] for p in predictions(service, model)]


def test_an_image_is_base64_in_json_and_the_body_itself_without_json(service: Live, model: str) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [centroids.encoded(IMAGES[0])]}
    in_json = service.http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    headers = {"Inference-Header-Content-Length": "0"}
    alone = service.http.post(f"/v2/models/{model}/infer", content=IMAGES[0], headers=headers)
    assert alone.json() == in_json.json()
    assert alone.json()["outputs"][1]["data"] == [predictions(service, model)[0]["label"]]


def test_the_answer_says_where_the_time_went(service: Live, model: str) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    alone = service.http.post(f"/v2/models/{model}/infer", content=IMAGES[0], headers=headers)
    assert {part.partition(";")[0] for part in alone.headers["server-timing"].split(", ")} == {
        "queue", "decode", "run", "total",
    }  # fmt: skip


def test_statistics_count_every_call_of_this_process(service: Live) -> None:
    client = triton.InferenceServerClient(address(service))
    model = service.task(centroids.task_json(centroids.characters(5)))["id"]
    assert statistics(client, model)["inference_count"] == 0
    client.infer(model, [encoded()])
    predictions(service, model)
    with pytest.raises(InferenceServerException, match=r"images\[1\]"):
        client.infer(model, [encoded([IMAGES[0], IMAGES[1][:-100]])])
    found = statistics(client, model)
    assert (found["inference_count"], found["execution_count"]) == (6, 2)
    assert found["inference_stats"]["success"]["count"] == 2
    assert found["inference_stats"]["fail"]["count"] == 1
    assert 0 < found["inference_stats"]["compute_infer"]["ns"] < found["inference_stats"]["success"]["ns"]
    assert found in client.get_inference_statistics()["model_stats"]
    assert found == client.get_inference_statistics(model, "1")["model_stats"][0]


def statistics(client: triton.InferenceServerClient, model: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get_inference_statistics(model)["model_stats"][0]
    return found


def test_the_repository_loads_and_unloads_memory_and_keeps_tasks(meta_models: Any, tmp_path: Any) -> None:
    with live(Settings(meta_models=meta_models, state_dir=tmp_path)) as service:
        client = triton.InferenceServerClient(address(service))
        model = service.task(centroids.task_json())["id"]
        client.load_model(model)
        sessions = service.served.tasks.sessions
        assert len(sessions) == 1
        client.unload_model(model)
        assert len(sessions) == 0
        index = [{"name": model, "version": "1", "state": "READY", "reason": ""}]
        assert client.get_model_repository_index() == index
        assert client.is_model_ready(model)
        check(client.infer(model, [encoded()]), predictions(service, model))
        client.load_model(model)
        assert len(sessions) == 1


def test_a_failed_task_is_listed_and_is_not_ready(service: Live) -> None:
    """Its images are too many for one forward pass only after the store lost them: so it is marked by hand."""
    model = service.task(centroids.task_json(centroids.characters(6)))["id"]
    store = service.served.tasks.store
    store.claim("local", model, owner="test", lease_s=60)
    client = triton.InferenceServerClient(address(service))
    assert not client.is_model_ready(model)
    store.release("local", model, owner="test", state="failed", error="It broke.")
    assert not client.is_model_ready(model)
    assert {"name": model, "version": "1", "state": "UNAVAILABLE", "reason": "It broke."} in (
        client.get_model_repository_index()
    )
    ready = service.http.post("/v2/repository/index", json={"ready": True}).json()
    assert model not in [entry["name"] for entry in ready]


def test_models_of_the_client_s_own_are_not_loaded(service: Live, model: str) -> None:
    client = triton.InferenceServerClient(address(service))
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model(model, config="{}")
    for target in (f"/v2/repository/models/{model}/load", f"/v2/repository/models/{model}/unload"):
        assert service.http.post(target).status_code == 200
        refusal(service, "POST", target, 400, content=b"[1")


TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [centroids.encoded(IMAGES[0])]}
BAD: dict[str, tuple[Any, int, str]] = {
    "no input": ({"inputs": []}, 400, "inputs: "),
    "two inputs": ({"inputs": [TENSOR, TENSOR]}, 400, "inputs: "),
    "an unknown input": ({"inputs": [{**TENSOR, "name": "x"}]}, 400, "inputs[0].name: "),
    "another datatype": ({"inputs": [{**TENSOR, "datatype": "UINT8"}]}, 400, "inputs[0].datatype: "),
    "two axes": ({"inputs": [{**TENSOR, "shape": [1, 1]}]}, 400, "inputs[0].shape: "),
    "no image": ({"inputs": [{**TENSOR, "shape": [0], "data": []}]}, 400, "inputs[0].shape: "),
    "less than none": ({"inputs": [{**TENSOR, "shape": [-1]}]}, 400, "inputs[0].shape: "),
    "too many images": ({"inputs": [{**TENSOR, "shape": [1001]}]}, 413, "inputs[0].shape: "),
    "fewer than it says": ({"inputs": [{**TENSOR, "shape": [2]}]}, 400, "inputs[0].data: "),
    "no data": ({"inputs": [{k: v for k, v in TENSOR.items() if k != "data"}]}, 400, "inputs[0].data: "),
    "not base64": ({"inputs": [{**TENSOR, "data": ["@"]}]}, 400, "inputs[0].data[0]: "),
    "a number": ({"inputs": [{**TENSOR, "data": [7]}]}, 400, "inputs[0].data[0]: "),
    "not an image": ({"inputs": [{**TENSOR, "data": ["AAAA"]}]}, 415, "images[0]: "),
    "an unknown output": ({"inputs": [TENSOR], "outputs": [{"name": "logits"}]}, 400, "outputs[0].name: "),
    "an output twice": ({"inputs": [TENSOR], "outputs": [{"name": "labels"}] * 2}, 400, "outputs[1].name: "),
    "best labels": (
        {"inputs": [TENSOR], "outputs": [{"name": "labels", "parameters": {"classification": 1}}]}, 400, "outputs[0]",
    ),
    "shared memory": (
        {"inputs": [{**TENSOR, "parameters": {"shared_memory_region": "x"}}]}, 400, "inputs[0].parameters: ",
    ),
    "shared memory for an output": (
        {"inputs": [TENSOR], "outputs": [{"name": "labels", "parameters": {"shared_memory_region": "x"}}]},
        400, "outputs[0].parameters: ",
    ),
    "binary as a number": ({"inputs": [TENSOR], "parameters": {"binary_data_output": 1}}, 400, "parameters."),
    "an unknown member": ({"inputs": [TENSOR], "input": 1}, 400, "input: "),
    "a size without data": (
        {"inputs": [{**TENSOR, "parameters": {"binary_data_size": 9}}]}, 400, "inputs[0].parameters.binary_data_size: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_the_place(service: Live, model: str, case: str) -> None:
    body, status, place = BAD[case]
    assert refusal(service, "POST", f"/v2/models/{model}/infer", status, json=body).startswith(place)


BAD_PIXELS: dict[str, tuple[Any, str]] = {
    "another size": (np.zeros((1, 9, 8, 1), np.uint8), "images: "),
    "more channels": (np.zeros((1, 8, 8, 3), np.uint8), "images: "),
    "levels as FP32": (np.full((1, 8, 8, 1), 200, np.float32), "inputs[0].data: "),
    "not a number": (np.full((1, 8, 8, 1), np.nan, np.float32), "inputs[0].data: "),
    "without an axis": (np.zeros((1, 8, 8), np.uint8), "inputs[0].shape: "),
}


@pytest.mark.parametrize("case", BAD_PIXELS)
def test_bad_pixels_are_refused(service: Live, model: str, case: str) -> None:
    values, place = BAD_PIXELS[case]
    client = triton.InferenceServerClient(address(service))
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [pixels(values)])
    assert (caught.value.status(), caught.value.message().startswith(place)) == ("400", True)


def test_the_length_of_the_json_is_given_once_and_bodies_come_uncompressed(service: Live, model: str) -> None:
    target, body = f"/v2/models/{model}/infer", json.dumps({"inputs": [TENSOR]}).encode()
    twice = [("Inference-Header-Content-Length", "5"), ("Inference-Header-Content-Length", str(len(body)))]
    assert "twice" in refusal(service, "POST", target, 400, content=body, headers=twice)
    for length in ("-1", "x", "1e3", str(len(body) + 1), "9" * 30, "\u00b2"):
        headers = [(b"Inference-Header-Content-Length", length.encode())]
        refusal(service, "POST", target, 400, content=body, headers=headers)
    client = triton.InferenceServerClient(address(service))
    with pytest.raises(InferenceServerException, match="Content-Encoding"):
        client.infer(model, [encoded()], request_compression_algorithm="gzip")


def test_a_body_over_the_limit_is_refused(service: Live, model: str) -> None:
    target = f"/v2/models/{model}/infer"
    refusal(service, "POST", target, 413, content=b"\0" * 1_000_001)
    headers = {"Inference-Header-Content-Length": "0"}
    assert refusal(service, "POST", target, 413, content=b"\0" * 200_001, headers=headers).startswith("image: ")


HELLO = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}
WHOLE = json.dumps({"inputs": [HELLO]}).encode() + b"\x05\0\0\0hello"
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4)), max_size=4)


@settings(max_examples=100, derandomize=True, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(changes=CHANGES, cut=st.integers(0, len(WHOLE)), length=st.none() | st.integers(0, len(WHOLE) + 3))
def test_any_body_is_refused_with_less_than_500(
    service: Live, model: str, changes: list[tuple[int, bytes]], cut: int, length: int | None
) -> None:
    """Nearly right ones with bytes put in, cut off, and another length of their JSON; none holds an image."""
    body = WHOLE[:cut]
    for place, inserted in changes:
        body = body[:place] + inserted + body[place:]
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    answer = service.http.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert list(answer.json()) == ["error"]


def test_the_document_has_the_protocol(service: Live) -> None:
    document = service.http.get("/openapi.json").json()
    answers = document["paths"]["/v2/models/{model}/infer"]["post"]["responses"]
    assert {"application/json", "application/octet-stream"} <= set(answers["200"]["content"])
    assert answers["404"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorOut")
