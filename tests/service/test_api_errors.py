"""Bad input: each gets a problem document that says what to do, and changes nothing."""

from __future__ import annotations

import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image

from service.api.openapi import PlainRoute
from service.app import create_app
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, places, problem

WHOLE = drawing(0, 0)
UNKNOWN = "0" * 32


@pytest.fixture(autouse=True)
def nothing_changes(service: Live) -> Iterator[None]:
    before = service.http.get("/tasks?limit=500").json()
    yield
    assert service.http.get("/tasks?limit=500").json() == before


@pytest.fixture(scope="module")
def address(service: Live) -> str:
    return f"/tasks/{service.task(centroids.task_json())['id']}/predict"


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header claims very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


BAD_IMAGES = {
    "truncated": (WHOLE[: len(WHOLE) // 2], 400),
    "corrupt": (WHOLE[:60] + b"\0" * 40 + WHOLE[100:], 400),
    "empty": (b"", 400),
    "gif": (gif(), 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
    "text": (b"not an image at all", 415),
    "bomb by header": (bomb(), 413),
    "over the pixel limit": (bomb(2_000, 1_000), 413),
    "over the byte limit": (WHOLE + b"\0" * 200_000, 413),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_refused_wherever_it_comes(service: Live, address: str, case: str) -> None:
    image, status = BAD_IMAGES[case]
    raw = service.http.post(address, content=image, headers={"Content-Type": "image/png"})
    as_json = service.http.post(address, json={"images": [centroids.encoded(WHOLE), centroids.encoded(image)]})
    as_file = service.http.post(address, files=[("image", ("1.png", image, "image/png"))])
    assert places(problem(raw, status)) == places(problem(as_file, status)) == ["images[0]"]
    assert places(problem(as_json, status)) == ["images[1]"]
    body = centroids.task_json({"a": WHOLE, "b": image})
    assert places(problem(service.http.post("/tasks", json=body), status)) == ["classes[1].images[0]"]
    files = [("a", ("1.png", WHOLE, "image/png")), ("b", ("2.png", image, "image/png"))]
    assert places(problem(service.http.post("/tasks", files=files), status)) == ["b[0]"]


def classes(*names: Any, **more: Any) -> dict[str, Any]:
    return {"classes": [{"name": name, "images": [centroids.encoded(WHOLE)]} for name in names], **more}


def one_class(**members: Any) -> dict[str, Any]:
    return {"classes": [*classes("a")["classes"], {"name": "b", "images": [centroids.encoded(WHOLE)], **members}]}


IMPOSSIBLE: dict[str, tuple[dict[str, Any], int, str]] = {
    "no class": (classes(), 422, "classes"),
    "one class": (classes("a"), 422, "classes"),
    "more classes than the meta-model knows": (classes(*map(str, range(13))), 422, "classes"),
    "very many classes": (classes(*map(str, range(900))), 422, "classes"),
    "duplicate names": (classes("a", "b", "a"), 422, "classes[2].name"),
    "names that only look different": (classes("a b", " a  b\t"), 422, "classes[1].name"),
    "empty name": (classes("a", ""), 422, "classes[1].name"),
    "blank name": (classes("a", " \n\u200b"), 422, "classes[1].name"),
    "long name": (classes("a", "b" * 201), 413, "classes[1].name"),
    "long description": (one_class(description="x" * 2001), 413, "classes[1].description"),
    "a class without an image": (one_class(images=[]), 422, "classes[1].images"),
    "descriptions alone": ({"classes": [{"name": n, "description": "striped"} for n in "ab"]}, 422, "classes"),
    "too many images of a class": (
        one_class(images=[centroids.encoded(drawing(0, 0, size=16))] * 65), 413, "classes[1].images",
    ),
    "unknown meta-model": (classes("a", "b", generator="nope"), 422, "generator"),
    "unlabelled images for one that takes none": (
        classes("a", "b", generator="photos", unlabeled=[centroids.encoded(WHOLE)]), 422, "unlabeled",
    ),
    "not base64": (one_class(images=["@@@"]), 400, "classes[1].images[0]"),
    "base64 with line breaks": (one_class(images=[centroids.encoded(WHOLE)[:40] + "\n"]), 400, "classes[1].images[0]"),
    "a data url": (one_class(images=["data:image/png;base64,AAAA"]), 400, "classes[1].images[0]"),
    "base64 that is not ASCII": (one_class(images=["é" * 8]), 400, "classes[1].images[0]"),
    "a number for a name": (classes("a", 7), 400, "classes[1].name"),
    "null for a name": (classes("a", None), 400, "classes[1].name"),
    "images as text": (one_class(images="AAAA"), 400, "classes[1].images"),
    "a member that does not exist": (classes("a", "b", colour="red"), 400, "colour"),
    "classes missing": ({}, 400, "classes"),
    "classes as an object": ({"classes": {"a": []}}, 400, "classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_task_is_refused_with_the_place(service: Live, case: str) -> None:
    body, status, place = IMPOSSIBLE[case]
    assert places(problem(service.http.post("/tasks", json=body), status)) == [place]


def test_descriptions_alone_are_told_what_is_missing(service: Live) -> None:
    for generator in ("auto", "centroids"):
        body = {"classes": [{"name": n, "description": "striped"} for n in "ab"], "generator": generator}
        assert "descriptions alone" in problem(service.http.post("/tasks", json=body), 422)["detail"]


def test_more_images_than_the_meta_model_takes_are_refused(service: Live) -> None:
    image = centroids.encoded(drawing(0, 0, size=16))
    body = {"classes": [{"name": str(k), "images": [image] * 60} for k in range(3)]}
    problem(service.http.post("/tasks", json=body), 422)


@pytest.mark.parametrize(("case", "words"), [
    ("a member that does not exist", "colour: there is no such field; leave it out, or check its spelling. See /docs"),
    ("classes missing", "classes: this field is missing."),
    ("a number for a name", "classes[1].name: this must be a string."),
    ("images as text", "classes[1].images: this must be an array, [...]."),
])  # fmt: skip
def test_json_of_another_shape_is_refused_in_the_words_of_json(service: Live, case: str, words: str) -> None:
    detail = problem(service.http.post("/tasks", json=IMPOSSIBLE[case][0]), 400)["detail"]
    assert detail.startswith(words)


BAD_JSON: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{classes: []}",
    "cut off": b'{"classes": [',
    "something after it": b'{"classes": []} x',
    "NaN": b'{"classes": NaN}',
    "infinity": b'{"classes": [-Infinity]}',
    "not UTF-8": b'{"classes": "\xff\xfe"}',
    "UTF-16": '{"classes": []}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"classes": []}',
    "a lone surrogate": b'{"classes": [{"name": "\\ud800", "images": []}, {"name": "b", "images": []}]}',
    "a lone surrogate as a member": b'{"\\udfff": 1}',
    "the same member twice": b'{"classes": [], "classes": []}',
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a huge integer": b'{"classes": ' + b"9" * 10_000 + b"}",
    "an array": b"[]",
    "null": b"null",
    "a number": b"1e400",
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused(service: Live, address: str, case: str) -> None:
    headers = {"Content-Type": "application/json"}
    for target in ("/tasks", address):
        problem(service.http.post(target, content=BAD_JSON[case], headers=headers), 400)


def test_json_of_very_many_values_is_refused_before_it_is_read(service: Live) -> None:
    body = b'{"classes": [' + b"[]," * 300_000 + b"[]]}"
    problem(service.http.post("/tasks", content=body, headers={"Content-Type": "application/json"}), 413)


OTHER_TYPES = ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "", "image"]


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_content_types_are_refused(service: Live, address: str, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for target in ("/tasks", address):
        problem(service.http.post(target, content=WHOLE, headers=headers), 415)
    problem(service.http.post("/tasks", content=WHOLE, headers={"Content-Type": "image/png"}), 415)


def test_compressed_bodies_are_refused(service: Live, address: str) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    problem(service.http.post(address, content=WHOLE, headers=headers), 415)


MULTIPART = "multipart/form-data"
BOUNDED = f"{MULTIPART}; boundary=x"
DISPOSITION = b"--x\r\nContent-Disposition: form-data; "
BAD_MULTIPART: dict[str, tuple[str, bytes, int]] = {
    "no boundary": (MULTIPART, b"", 400),
    "an empty boundary": (f"{MULTIPART}; boundary=", b"", 400),
    "another boundary": (BOUNDED, b"--y\r\n\r\n--y--", 400),
    "cut off": (BOUNDED, DISPOSITION + b'name="a"; filename="1"\r\n\r\nab', 400),
    "no name": (BOUNDED, DISPOSITION + b'filename="1"\r\n\r\n\r\n--x--', 400),
    "headers without end": (BOUNDED, b"--x\r\n" + b"a: b\r\n" * 5000 + b"\r\n\r\n--x--", 400),
    "garbage": (BOUNDED, bytes(range(256)) * 4, 400),
    "text instead of a file": (BOUNDED, DISPOSITION + b'name="a"\r\n\r\nhi\r\n--x--', 400),
    "many text fields": (
        BOUNDED, (DISPOSITION + b'name="a"\r\n\r\nhi\r\n') * 20 + b"--x--", 413,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MULTIPART)
def test_bad_multipart_is_refused(service: Live, address: str, case: str) -> None:
    kind, body, status = BAD_MULTIPART[case]
    for target in ("/tasks", address):
        problem(service.http.post(target, content=body, headers={"Content-Type": kind}), status)


def test_a_multipart_task_with_nothing_in_it_is_refused(service: Live, address: str) -> None:
    headers, body = {"Content-Type": f"{MULTIPART}; boundary=x"}, b"--x--\r\n"
    problem(service.http.post("/tasks", content=body, headers=headers), 422)
    problem(service.http.post(address, content=body, headers=headers), 400)


@pytest.mark.parametrize("part", ["{", "[]", '{"classes": [{"name": "a", "images": ["AAAA"]}]}', '{"generator": 1}'])
def test_a_bad_task_part_is_refused(service: Live, part: str) -> None:
    files = [("a", ("1.png", WHOLE, "image/png")), ("task", ("task.json", part.encode(), "application/json"))]
    problem(service.http.post("/tasks", files=files), 400)


def test_a_described_class_without_a_file_is_refused(service: Live) -> None:
    described = {"classes": [{"name": "zebra", "description": "striped"}]}
    files = [(name, ("1.png", WHOLE, "image/png")) for name in "ab"]
    files.append(("task", ("task.json", json.dumps(described).encode(), "application/json")))
    assert places(problem(service.http.post("/tasks", files=files), 422)) == ["classes[0].images"]


BAD_QUERIES = [
    ("GET", "/tasks?limit=0"), ("GET", "/tasks?limit=501"), ("GET", "/tasks?limit=x"), ("GET", "/tasks?limit=%C2%B2"),
    ("GET", "/tasks?limit=1&limit=2"), ("GET", "/tasks?after=nope"), ("GET", f"/tasks?after={UNKNOWN}"),
    ("GET", "/tasks?after="), ("GET", f"/tasks?after={'0' * 48}0"), ("GET", f"/tasks?after={'g' * 48}"),
    ("GET", f"/tasks?after=7ff8{'0' * 44}"), ("GET", f"/tasks?after=fff0{'0' * 44}"),
    ("GET", "/tasks?page=2"), ("POST", "/tasks?wait=3"), ("GET", f"/tasks/{UNKNOWN}?x"),
    ("POST", "{address}?top_k=0"), ("POST", "{address}?top_k=-1"), ("POST", "{address}?top_k=1.5"),
    ("POST", "{address}?top_k="), ("POST", "{address}?topk=3"), ("POST", "{address}?top_k=99999999999999999999"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "target"), BAD_QUERIES)
def test_unknown_query_values_are_refused(service: Live, address: str, method: str, target: str) -> None:
    body = {"content": WHOLE, "headers": {"Content-Type": "image/png"}} if method == "POST" else {}
    found = problem(service.http.request(method, target.format(address=address), **body), 400)
    assert places(found)


@pytest.mark.parametrize("ident", [UNKNOWN, "x", "0" * 31, "0" * 5000, "..%2F..%2Fetc", "%00", "A" * 32, "%ED%A0%80"])
def test_unknown_ids_are_not_found(service: Live, ident: str) -> None:
    predict = {"content": WHOLE, "headers": {"Content-Type": "image/png"}}
    calls = [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/model.onnx")]
    responses = [service.http.request(method, f"/tasks/{ident}{rest}") for method, rest in calls]
    for response in [*responses, service.http.post(f"/tasks/{ident}/predict", **predict)]:
        problem(response, 404)


@pytest.mark.parametrize(("method", "target", "status"), [
    ("GET", "/nope", 404), ("GET", "/assets/nope.js", 404), ("GET", "/assets/..%2Findex.html", 404),
    ("PUT", "/tasks", 405), ("PATCH", f"/tasks/{UNKNOWN}", 405), ("POST", "/healthz", 405),
    ("POST", "/openapi.json", 405),
])  # fmt: skip
def test_unknown_addresses_and_methods_are_problems_too(service: Live, method: str, target: str, status: int) -> None:
    response = service.http.request(method, target)
    problem(response, status)
    assert ("allow" in response.headers) == (status == 405)
    if status == 405:
        others = {"/tasks": "GET, HEAD, POST", f"/tasks/{UNKNOWN}": "DELETE, GET, HEAD"}
        assert response.headers["allow"] == others.get(target, "GET, HEAD")


def test_no_call_is_read_by_the_framework() -> None:
    """So it never refuses a value itself, in words of its own."""
    routes = [route for route in create_app(Settings()).routes if isinstance(route, APIRoute)]
    assert routes
    assert all(isinstance(route, PlainRoute) for route in routes)


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\u00e9"])
def test_a_bad_idempotency_key_is_refused(service: Live, key: str) -> None:
    headers = httpx.Headers([("Idempotency-Key", key)], encoding="utf-8")
    refused = service.http.post("/tasks", json=classes("a", "b"), headers=headers)
    assert places(problem(refused, 400)) == ["Idempotency-Key"]


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(service: Live, address: str) -> None:
    body = b"\0" * 1_000_001
    headers = {"Content-Type": "image/png"}
    problem(service.http.post(address, content=body, headers=headers), 413)
    chunks = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    problem(service.http.post(address, content=chunks, headers=headers), 413)
    problem(service.http.post("/tasks", content=body, headers={"Content-Type": "application/json"}), 413)


def test_a_huge_declared_length_is_refused_before_a_byte_is_sent(service: Live, address: str) -> None:
    answer = exchange(service, head(address, "Content-Length: 999999999999"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


def test_endless_chunks_are_cut_off(service: Live, address: str) -> None:
    chunk = b"10000\r\n" + b"\0" * 65_536 + b"\r\n"
    answer = exchange(service, head(address, "Transfer-Encoding: chunked") + chunk * 17)  # never ended
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999999999999999", "1, 2"])
def test_a_length_that_is_none_is_refused(service: Live, address: str, length: str) -> None:
    assert exchange(service, head(address, f"Content-Length: {length}")).startswith(b"HTTP/1.1 400")


def test_a_body_of_no_stated_length_is_empty(service: Live, address: str) -> None:
    assert exchange(service, head(address, "Connection: close")).startswith(b"HTTP/1.1 400")


def head(address: str, header: str) -> bytes:
    """A POST of a PNG up to its body."""
    return f"POST {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n{header}\r\n\r\n".encode()


def exchange(service: Live, sent: bytes) -> bytes:
    """Send bytes as they are, and read until the server closes."""
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(sent)
        answer = b""
        try:
            while data := connection.recv(65_536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_a_request_id_is_taken_over_when_it_is_a_plain_one(service: Live) -> None:
    taken = service.http.get("/nope", headers={"X-Request-Id": "abc-123"})
    assert problem(taken, 404)["request_id"] == "abc-123"
    made = service.http.get("/nope", headers={"X-Request-Id": 'x"; drop'})
    assert problem(made, 404)["request_id"] != 'x"; drop'


def test_every_call_in_the_document_answers(service: Live) -> None:
    document = service.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/tasks", "/tasks/{task_id}", "/tasks/{task_id}/events", "/tasks/{task_id}/model.onnx",
        "/tasks/{task_id}/predict", "/tasks/{task_id}/explain", "/tasks/{task_id}/adaptation", "/meta-models",
        "/healthz", "/readyz", "/metrics",
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/models/{model}",
        "/v2/models/{model}/config", "/v2/models/{model}/infer", "/v2/models/{model}/ready",
        "/v2/models/{model}/stats", "/v2/repository/index", "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/unload",
    }  # fmt: skip
    used = {ref for ref in json.dumps(document).split('"') if ref.startswith("#/components/schemas/")}
    assert used <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_pages_run_no_script_but_ours(service: Live) -> None:
    for target in ("/", "/docs"):
        page = service.http.get(target)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("style-src")[0]
        assert "<script>" not in page.text
        assert "://" not in page.text.replace("http://localhost:8000", "")
        linked = [part.split('"')[0] for mark in ('href="', 'src="') for part in page.text.split(mark)[1:]]
        for name in linked:
            assert service.http.get(f"/{name}").status_code == 200, name


def test_metrics_name_no_task_and_no_tenant(service: Live) -> None:
    ident = service.http.get("/tasks").json()["tasks"][0]["id"]
    text = service.http.get("/metrics").text
    assert 'classmith_request_total{code="200",endpoint="/tasks"}' in text
    assert ident not in text
    assert "local" not in text
