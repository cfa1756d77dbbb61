"""Every program and command of README.md and docs/ runs as it stands there, page by page, against one service."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from models import metamodel
from service.demo.scenes import SCENES, picture
from tests.e2e.processes import ROOT, environment, serve

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOCAL = "127.0.0.1:8000"
RUN, SHOWN = {"python", "bash", "sh"}, {"json", "text"}
FENCE = re.compile(r"^ *```+ *([^\s`]+)", re.MULTILINE)
NOT_HERE = re.compile(
    r"^ *(sudo|make|pip|apt|apt-get|docker|kubectl|training|classmith (serve|worker|recover))\b", re.MULTILINE
)
"""Changes the reader's machine, or runs until it is stopped: never run by a test."""
HOW_TO_SKIP = '<!-- skip: next "the reason" -->'
SKIP = re.compile(r"<!-- *skip: *(.*?) *-->")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "jq", "timeout"))), reason="the pages use bash, curl and jq"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(meta_models=metamodel.ZOO, state_dir=tmp_path_factory.mktemp("state")) as service:
        yield service.url


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is, with the images that the first hour paints, and those that the README names."""
    for kind in SCENES:
        for number in range(10):
            image = tmp_path / ("photos" if number < 4 else "new") / kind / f"{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(picture(kind, number))
    readme = {"1": "sea", "2": "sea", "3": "city", "4": "city", "new": "sea"}
    for number, (name, kind) in enumerate(readme.items()):
        (tmp_path / f"{name}.jpg").write_bytes(picture(kind, number))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, url: str, workplace: Path) -> None:
    env = environment(url=url, meta_models=metamodel.ZOO, state_dir=workplace / "state")
    shell = Shell(workplace, env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"})
    for example in parsed(page, url, shell):
        try:
            example.evaluate()
        except SkipTest:
            continue


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_why_a_block_is_not_run(page: Path) -> None:
    text = page.read_text()
    assert set(FENCE.findall(text)) <= RUN | SHOWN, (
        f"blocks that run are one of {RUN}, others one of {SHOWN}, or nothing"
    )
    for asked in SKIP.findall(text):
        assert re.fullmatch(r'next "[^"]{10,}"', asked), f"skip what, and why? {asked}"


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for wrong in ("python\n1 / 0", "bash\nfalse\ntrue", "bash\nfalse | true", "sh\ntrue\nclassmith serve"):
        page.write_text(f"```{wrong}\n```\n")
        (example,) = parsed(page, f"http://{LOCAL}", Shell(tmp_path, environment()))
        with pytest.raises((ZeroDivisionError, AssertionError)):
            example.evaluate()


class Shell:
    """Runs blocks for bash, each with the variables that the one before it left.

    The first failing command ends a block, and so does a call by curl that the service refuses.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._variables, self._env = folder / "variables", env | {"CURL_HOME": str(folder)}
        self._variables.touch()
        (folder / ".curlrc").write_text("fail-with-body\n")

    def __call__(self, example: Example) -> None:
        where = f"{example.path}:{example.line}"
        assert not NOT_HERE.search(example.parsed), f"{where} is not for tests; put before it: {HOW_TO_SKIP}"
        kept = shlex.quote(str(self._variables))
        script = f". {kept}\nset -a\n{example.parsed}\nset +a\nexport -p > {kept}\n"
        command = ["timeout", "--kill-after=5", "200", "bash", "-euo", "pipefail", "-c", script]
        ran = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{where}\n{example.parsed}\n{ran.stdout}\n{ran.stderr}"


def parsed(page: Path, url: str, shell: Shell) -> Document:
    """A page's blocks, for the service that runs here."""
    document = Document(page.read_text().replace(LOCAL, url.removeprefix("http://")), str(page))
    for parser in (PythonCodeBlockParser(), CodeBlockParser("bash", shell), CodeBlockParser("sh", shell), SkipParser()):
        for region in parser(document):
            document.add(region)
    return document
