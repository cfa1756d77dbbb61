"""The site builds without a warning: every link and anchor leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from bs4 import BeautifulSoup

from tests.e2e.processes import ROOT

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
NOT_FETCHED = {"canonical", "prev", "next"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with notebooks as they are stored: that they run is another test's."""
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"EXECUTE_NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / name).read_text(), "html.parser")


def test_every_call_and_shape_of_the_service_is_in_the_http_reference(site: Path) -> None:
    document = json.loads((site / "openapi.json").read_text())
    headings = {h.get_text().removesuffix("¶").strip() for h in page(site, "reference-http.html").find_all("h3")}
    calls = {f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found}
    assert {"POST /tasks", "POST /tasks/{task_id}/predict"} <= calls
    assert calls | set(document["components"]["schemas"]) == headings


def test_every_public_name_of_the_client_is_in_the_python_reference(site: Path) -> None:
    from service import client

    shown = {str(tag["id"]) for tag in page(site, "reference-python.html").find_all(id=True)}
    classes = {name for name in client.__all__ if isinstance(getattr(client, name), type)}
    names = {found.rpartition(".")[2] for found in shown if found.startswith("service.client")}
    assert classes <= names
    assert {"service.estimator.ClassmithClassifier.fit", "models.task.TaskSpec", "models.preprocess.to_pixels"} <= shown


def test_the_figures_are_those_of_the_readme(site: Path) -> None:
    rows = page(site, "limits.html").select('td:first-child > a[href^="cards/"]')
    written = re.findall(r"^\| \[", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows
    assert len(rows) == len(written)


def test_the_pages_load_nothing_from_another_host(site: Path) -> None:
    fetched = [
        (path.name, str(tag[attribute]))
        for path in site.rglob("*.html")
        for name, attribute in LOADED.items()
        for tag in BeautifulSoup(path.read_text(), "html.parser").find_all(name, attrs={attribute: True})
        if not NOT_FETCHED & set(tag.get("rel") or ())
    ]
    assert fetched
    assert [(name, address) for name, address in fetched if urlsplit(address).netloc] == []
