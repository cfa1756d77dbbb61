"""What attackers try at the level of requests: files that are two things, other tenants' tasks, tricks with paths."""

from __future__ import annotations

import http.client
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image, PngImagePlugin

from models.preprocess import MAX_SCANS
from service.app import create_app
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live, problem

MARK = b"<script>alert('classmith-mark')</script>"
"""Stands for what an attacker wants to be kept and served."""
ANN, BOB = {"Authorization": "Bearer key-of-ann"}, {"Authorization": "Bearer key-of-bob"}
UNKNOWN = "0" * 32
PUBLIC = {
    "/", "/docs", "/assets/{name}", "/openapi.json", "/healthz", "/readyz", "/metrics",
    "/v2", "/v2/health/live", "/v2/health/ready", "/examples", "/examples/{name}",
}  # fmt: skip
"""Nothing here depends on a tenant. Every other address needs a key."""


@pytest.fixture(scope="module")
def guarded(meta_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    keys = {"key-of-ann": "ann", "key-of-bob": "bob"}
    with live(Settings(meta_models=meta_models, state_dir=tmp_path_factory.mktemp("state"), api_keys=keys)) as running:
        yield running


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(centroids.photograph())).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(drawing(0, 0))).save(buffer, "PNG", **options)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.html", MARK)
    return buffer.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E] = MARK.decode()  # ImageDescription
    return found


def png_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MARK.decode())
    return info


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(image: bytes, added: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    end_of_header = 8 + 25
    return image[:end_of_header] + added + image[end_of_header:]


POLYGLOTS: dict[str, bytes] = {
    "a JPEG with a ZIP after it": jpeg() + zipped(),
    "a JPEG with HTML after it": jpeg() + MARK,
    "a JPEG with HTML in EXIF": jpeg(exif=exif()),
    "a JPEG with script in a comment": jpeg(comment=MARK),
    "a JPEG with script as colour profile": jpeg(icc_profile=MARK),
    "a PNG with script in a text": png(pnginfo=png_text()),
    "a PNG with script in a chunk of its own": with_chunk(png(), chunk(b"evIl", MARK)),
    "a PNG with a ZIP after it": png() + zipped(),
    "a PNG with another PNG after it": png() + drawing(3, 0),
    "a WebP with a ZIP after it": centroids.photograph(format="WEBP") + zipped(),
}


@pytest.mark.parametrize("case", POLYGLOTS)
def test_of_a_file_that_is_two_things_only_the_pixels_are_kept(meta_models: Path, tmp_path: Path, case: str) -> None:
    """Nothing of the file itself is in the store, in the classifier, in an answer."""
    image = POLYGLOTS[case]
    with live(Settings(meta_models=meta_models, state_dir=tmp_path)) as service:
        plain = {"a": drawing(1, 0), "b": drawing(2, 0)}
        body = centroids.task_json({**plain, "c": image}, generator="centroids")
        made = service.http.post("/tasks", json=body)
        assert made.status_code == 201, made.text
        address = f"/tasks/{made.json()['id']}"
        answer = service.http.post(f"{address}/predict", content=image, headers={"Content-Type": "image/png"})
        assert answer.json()["predictions"][0]["label"] == "c"
        model = service.http.get(f"{address}/model.onnx")
    for response in (made, answer, model):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "html" not in response.headers["content-type"]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for data in [made.content, answer.content, model.content, *kept]:
        assert b"classmith-mark" not in data
        assert b"evil.html" not in data


OTHER_FILES: dict[str, bytes] = {
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "HTML": MARK,
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "ZIP": zipped(),
    "GIF": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "BMP": b"BM" + bytes(60),
    "TIFF": b"II*\x00\x08\x00\x00\x00" + bytes(60),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(60),
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "an address": b"http://169.254.169.254/latest/meta-data/",
    "HTML before a PNG": MARK + png(),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_formats_are_not_opened_whatever_they_are_called(service: Live, case: str) -> None:
    task = service.task(centroids.task_json())["id"]
    for kind in ("image/png", "image/svg+xml", "image/x-anything"):
        refused = service.http.post(f"/tasks/{task}/predict", content=OTHER_FILES[case], headers={"Content-Type": kind})
        assert refused.json()["status"] in (400, 415), refused.text
        assert "mark" not in refused.text


def scans(n: int, *, between: bytes = b"", **options: object) -> bytes:
    """A JPEG whose last scan comes ``n`` times more."""
    whole = jpeg(**options)
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + between + n * scan + whole[-2:]


def separate_scans(n: int) -> bytes:
    """A JPEG that is not progressive, each of its colours by itself, and the last ``n`` times."""
    whole = jpeg(subsampling=0)
    header, colours = whole[: whole.index(b"\xff\xda")], ((1, 0), (2, 0x11), *n * [(3, 0x11)])
    made = (b"\xff\xda" + struct.pack(">HBBBBBBx", 8, 1, colour, table, 0, 63, 0) for colour, table in colours)
    return header + b"".join(made) + b"\xff\xd9"


def with_segments(n: int) -> bytes:
    """A JPEG of ``n`` small Exif segments."""
    whole, payload = jpeg(), b"Exif\0\0and so on"
    return whole[:2] + n * (b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload) + whole[2:]


def claims(width: int, height: int) -> bytes:
    """A PNG that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


FLOOD = zlib.compress(bytes(100_000_000), 9)
BOMBS: dict[str, bytes] = {
    "a PNG of 2^31 by 2^31": claims(2**31 - 1, 2**31 - 1),
    "a PNG just over the limit": claims(1001, 1000),
    "a PNG with a text of 100 MB": with_chunk(png(), chunk(b"zTXt", b"a\0\0" + FLOOD)),
    "a PNG with an international text of 100 MB": with_chunk(png(), chunk(b"iTXt", b"a\0\1\0\0\0" + FLOOD)),
    "a PNG with a colour profile of 100 MB": with_chunk(png(), chunk(b"iCCP", b"a\0\0" + FLOOD)),
    "a JPEG of very many scans": scans(2000, progressive=True),
    "a JPEG of very many scans, none of them progressive": separate_scans(2000),
    "a JPEG of scans behind a marker that decoders skip": scans(200, progressive=True, between=b"\xff\x02\x7f\xf0"),
    "a JPEG of segments by the thousand": with_segments(1_100),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_or_read_without_what_makes_them_grow(service: Live, case: str) -> None:
    task = service.task(centroids.task_json())["id"]
    answer = service.http.post(f"/tasks/{task}/predict", content=BOMBS[case], headers={"Content-Type": "image/png"})
    assert answer.status_code in (200, 400, 413), answer.text
    if "by" in case or "limit" in case or "scans" in case:
        assert answer.status_code == 413


def test_images_of_a_request_have_a_limit_together(meta_models: Path, tmp_path: Path) -> None:
    """A hundred small files, each within the limit of an image, would take minutes to decode."""
    limits = {"max_image_pixels": 1_000_000, "max_request_pixels": 10_000_000}
    with live(Settings(meta_models=meta_models, state_dir=tmp_path, **limits)) as service:
        address = f"/tasks/{service.task(centroids.task_json())['id']}/predict"
        large = centroids.encoded(claims(1000, 1000))
        for target, body in [
            (address, {"images": [large] * 11}),
            ("/tasks", {"classes": [{"name": name, "images": [large] * 4} for name in "abc"]}),
        ]:
            found = problem(service.http.post(target, json=body), 413)
            assert "megapixels together" in found["detail"]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [11], "data": [large] * 11}
        model = address.split("/")[2]
        assert service.http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]}).status_code == 413
        small = centroids.encoded(drawing(0, 0))
        answer = service.http.post(address, json={"images": [small] * 50})
        assert len(answer.json()["predictions"]) == 50
        broken = [small] * 11 + [centroids.encoded(b"\x89PNG\r\n\x1a\n")]
        assert problem(service.http.post(address, json={"images": broken}), 400)["errors"][0]["where"] == "images[11]"


def test_usual_scans_and_what_a_phone_appends_are_no_bomb(service: Live) -> None:
    task = service.task(centroids.task_json())["id"]
    video = b"\xff\xda\x00\x02" * 1000
    usual = (scans(MAX_SCANS // 2, progressive=True), separate_scans(MAX_SCANS // 2), with_segments(150))
    for image in (*usual, jpeg(progressive=True) + video):
        answer = service.http.post(f"/tasks/{task}/predict", content=image, headers={"Content-Type": "image/jpeg"})
        assert answer.status_code == 200, answer.text


def calls() -> list[tuple[str, str]]:
    """Every method and address of the application that is not public, as its routes say."""
    routes = [route for route in create_app(Settings()).routes if isinstance(route, APIRoute)]
    found = {(method, r.path) for r in routes for method in r.methods or () if r.path not in PUBLIC}
    return sorted(found | {("HEAD", path) for method, path in found if method == "GET"})


def attempts(service: Live, method: str, path: str, headers: dict[str, str]) -> list[httpx.Response]:
    """A call with several bodies, since calls read theirs before they look for a task."""
    image = {"Content-Type": "image/png", "Inference-Header-Content-Length": "0"}
    json = {"Content-Type": "application/json"}
    if method in ("GET", "HEAD"):
        return [service.http.request(method, path, headers=headers)]
    return [
        service.http.request(method, path, content=drawing(0, 0), headers={**image, **headers}),
        service.http.request(method, path, content=b"{}", headers={**json, **headers}),
        service.http.request(method, path, headers=headers),
    ]


@pytest.mark.parametrize(("method", "path"), calls())
def test_every_call_needs_a_key(guarded: Live, method: str, path: str) -> None:
    target = path.replace("{task_id}", UNKNOWN).replace("{model}", UNKNOWN)
    for headers in ({}, {"Authorization": "Bearer nope"}):
        for answer in attempts(guarded, method, target, headers):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("method", "path"), [call for call in calls() if "{" in call[1]])
def test_a_task_of_another_tenant_is_answered_as_one_that_never_was(guarded: Live, method: str, path: str) -> None:
    """On every address that names a task: the same status and the same words."""
    task = guarded.task(centroids.task_json(), **ANN)

    def answers(ident: str) -> list[tuple[int, str]]:
        target = path.replace("{task_id}", ident).replace("{model}", ident)
        found = attempts(guarded, method, target, {**BOB, "X-Request-Id": "same"})
        return [(answer.status_code, answer.text.replace(ident, "ID")) for answer in found]

    foreign = answers(task["id"])
    assert foreign == answers(UNKNOWN)
    assert 404 in [status for status, _ in foreign]
    assert not [status for status, _ in foreign if status < 400 or status >= 500]
    assert guarded.http.get(f"/tasks/{task['id']}", headers=ANN).json() == task


def test_lists_and_counts_are_a_tenant_s_own(guarded: Live) -> None:
    task = guarded.task(centroids.task_json(), **ANN)["id"]
    for method, target in [
        ("GET", "/tasks"), ("GET", "/v2/models/stats"), ("POST", "/v2/repository/index"), ("GET", "/metrics"),
    ]:  # fmt: skip
        answer = guarded.http.request(method, target, headers=BOB)
        assert answer.status_code == 200
        assert task not in answer.text
    assert task in guarded.http.post("/v2/repository/index", headers=ANN).text


TRAVERSALS = [
    "..", "../..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5c", "%00", "a%00b", "%ff%fe", "%u2215", "~",
    "0" * 31 + "%0a", "%0d%0aSet-Cookie:%20a=b", "0" * 32 + "%2f..", "0" * 32 + "/../x", "0" * 32 + ";x=y",
    "0" * 31 + "%EF%BC%90", "con", ".writable", "tasks.sqlite", "*", "{task_id}",
]  # fmt: skip


def get_as_it_is(service: Live, target: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A GET of a path that no client has tidied up: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", int(service.url.rpartition(":")[2]), timeout=60)
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("path", ["/tasks/{}", "/tasks/{}/model.onnx", "/assets/{}", "/v2/models/{}/stats"])
def test_paths_lead_nowhere_else(service: Live, path: str, name: str) -> None:
    status, headers, body = get_as_it_is(service, path.format(name))
    assert status == 404
    assert "set-cookie" not in headers
    assert str(service.state_dir).encode() not in body


def test_nothing_is_redirected_to_where_a_request_says(service: Live) -> None:
    """A trailing slash is another address; no answer repeats the Host header."""
    for target in ("/tasks/", "/v2/", "/docs/", "//evil.localhost/..", "/healthz/"):
        status, headers, body = get_as_it_is(service, target, Host="evil.localhost")
        assert status == 404
        assert "location" not in headers
        assert b"http" not in body


def test_headers_of_proxies_are_not_believed(service: Live) -> None:
    """Nothing is decided by an address that a client can write down itself."""
    headers = {
        "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "evil.example", "X-Original-URL": "/metrics",
        "X-HTTP-Method-Override": "DELETE", "Forwarded": "host=evil.example",
    }  # fmt: skip
    task = service.task(centroids.task_json())
    answer = service.http.post("/tasks", json=centroids.task_json(), headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (200, f"/tasks/{task['id']}")
    assert service.http.get(f"/tasks/{task['id']}", headers=headers).json() == task


def test_script_in_names_stays_data(service: Live) -> None:
    images = {MARK.decode(): drawing(0, 0), "'; DROP TABLE tasks; --": drawing(1, 0), "\u202egnp.exe": drawing(2, 0)}
    task = service.task(centroids.task_json(images))
    assert [c["name"] for c in task["classes"]] == [*list(images)[:2], "gnp.exe"]  # invisible characters are dropped
    shown = service.http.get(f"/tasks/{task['id']}")
    assert shown.headers["content-type"] == "application/json"
    predicted = service.http.post(f"/tasks/{task['id']}/predict", content=drawing(0, 0),
                                  headers={"Content-Type": "image/png"})  # fmt: skip
    assert predicted.json()["predictions"][0]["label"] == MARK.decode()
    problem(service.http.get(f"/tasks/{'0' * 32}?{MARK.decode()}"), 400)
