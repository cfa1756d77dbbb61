"""A small real HTTP server that answers by a script, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TASK: dict[str, Any] = {
    "id": "0" * 32, "state": "ready", "classes": [{"name": "a", "description": "", "n_images": 1}], "n_unlabeled": 0,
    "meta_model": "some", "created_at": "2026-11-21T02:54:08.104568Z", "generate_ms": 1.5, "bytes": 10, "error": None,
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer; ``drop``: the connection is closed without any; ``held``: it waits for the event.

    ``n_comments``: of an event stream, so many follow, ten a second.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    held: threading.Event | None = None
    n_comments: int = 0


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Script:
    """What is still to be answered, and what was asked."""

    answers: list[Answer]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)


def as_json(value: object, status: int = 200, **headers: str) -> Answer:
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return Answer(status, json.dumps(value).encode(), given)


def problem(status: int, title: str = "Too busy", **headers: str) -> Answer:
    located = [{"where": "here", "detail": "Because."}]
    document = {"type": "urn:classmith:problem:x", "title": title, "status": status, "detail": "Because.",
                "instance": "/tasks", "request_id": "r1", "errors": located}  # fmt: skip
    return as_json(document, status, **headers)


DROP = Answer(drop=True)


@contextmanager
def serving(*answers: Answer) -> Iterator[Script]:
    """The server; the script must be used up at the end."""
    script = Script(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            answer = script.answers.pop(0)
            self.close_connection = True
            if answer.held:
                assert answer.held.wait(60)
            if answer.drop:
                return
            self.send_response(answer.status)
            length = {} if answer.n_comments else {"Content-Length": str(len(answer.body))}
            for name, text in {**length, **answer.headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(answer.body)
            with suppress(OSError):  # whoever asked has left
                for _ in range(answer.n_comments):
                    time.sleep(0.1)
                    self.wfile.write(b": still working\n\n")

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            script.url = f"http://127.0.0.1:{server.server_address[1]}"
            yield script
        finally:
            server.shutdown()
            thread.join()
    assert script.answers == []
