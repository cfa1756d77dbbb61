"""Multipart bodies: nothing that a caller writes into them keeps the event loop."""

from __future__ import annotations

import threading

import pytest

from models.task import canonical_text
from service.api import task_body
from service.demo.alphabet import drawing
from service.settings import Settings
from tests.service import centroids
from tests.service.live import Live, live, problem

FILES = [(name, ("1.png", drawing(n, 0), "image/png")) for n, name in enumerate(("caf\u00e9", "b"))]


def sent(service: Live, address: str, charset: str) -> tuple[bytes, dict[str, str]]:
    """A task's multipart body, and its headers with a charset."""
    request = service.http.build_request("POST", address, files=FILES)
    return request.read(), {"Content-Type": f"{request.headers['Content-Type']}; charset={charset}"}


@pytest.mark.parametrize("charset", ["punycode", '"PUNYCODE"', "idna", "utf-7", "utf-16", "latin-1", "unheard-of", ""])
def test_no_caller_chooses_how_texts_are_decoded(service: Live, charset: str) -> None:
    """Python has decoders that take the square of a text's length, on the event loop."""
    task = service.task(centroids.task_json())["id"]
    for address in ("/tasks", f"/tasks/{task}/predict", f"/tasks/{task}/explain"):
        body, headers = sent(service, address, charset)
        found = problem(service.http.post(address, content=body, headers=headers), 415)
        assert "UTF-8" in found["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8"])
def test_texts_are_utf_8_also_where_it_is_said(service: Live, charset: str) -> None:
    body, headers = sent(service, "/tasks", charset)
    answer = service.http.post("/tasks", content=body, headers=headers)
    assert [c["name"] for c in answer.json()["classes"]] == ["caf\u00e9", "b"]


def test_names_are_gone_through_off_the_event_loop(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noted(text: str) -> str:
        threads.append(threading.current_thread().name)
        return canonical_text(text)

    monkeypatch.setattr(task_body, "canonical_text", noted)
    assert service.http.post("/tasks", files=FILES).status_code in (200, 201)
    assert threads
    assert "uvicorn" not in threads


def test_long_names_are_refused_before_they_are_gone_through(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(task_body, "canonical_text", lambda text: seen.append(text) or canonical_text(text))
    files = [(f"{n:04}" + "a" * 3_000, ("1.png", b"1", "image/png")) for n in range(200)]
    found = problem(service.http.post("/tasks", files=files), 413)
    assert "3,004 characters, over the limit of 200" in found["detail"]
    assert found["errors"][0]["where"] == files[0][0][:100]
    assert seen == []


def test_unlabelled_images_keep_their_name_where_classes_have_short_ones(settings: Settings) -> None:
    short = settings.model_copy(update={"max_name_chars": 4})
    with live(short) as service:
        files = [*FILES, ("unlabeled", ("1.png", drawing(0, 1), "image/png"))]
        assert service.http.post("/tasks", files=files).json()["n_unlabeled"] == 1
