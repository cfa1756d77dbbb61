"""The audit of dependencies: what it makes of pip-audit's reports, and that it never fails for want of a network."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.bench.audit import NOBODY, verdict, weaknesses

SOUND = {"name": "anyio", "version": "4.16.0", "vulns": []}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1.0)"}


def weak(*mended: str) -> dict[str, Any]:
    found = {"id": "PYSEC-2019-217", "fix_versions": list(mended), "aliases": ["CVE-2019-10906"], "description": "..."}
    return {"name": "jinja2", "version": "2.10", "vulns": [found]}


@pytest.mark.parametrize(("packages", "status", "said"), [
    ([SOUND, SOUND], 0, "2 packages, 0 known weaknesses"),
    ([SOUND, weak("2.10.1")], 1, "jinja2 2.10: PYSEC-2019-217, mended in 2.10.1"),
    ([SOUND, weak()], 0, "jinja2 2.10: PYSEC-2019-217, not mended yet"),
    ([SOUND, UNKNOWN], 0, "not known to the advisory service: ours"),
])  # fmt: skip
def test_only_what_a_newer_version_mends_fails(packages: list[dict[str, Any]], status: int, said: str) -> None:
    lines, found = verdict({"dependencies": packages, "fixes": []})
    assert found == status
    assert said in "\n".join(lines)


def test_a_package_that_could_not_be_audited_counts_as_none() -> None:
    assert weaknesses({"dependencies": [UNKNOWN]}) == []
    assert "0 packages" in verdict({"dependencies": [UNKNOWN]})[0][0]


def test_without_a_network_it_says_so_and_does_not_fail() -> None:
    nowhere = "http://127.0.0.1:9"
    outside = {name: nowhere for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")}
    environment = {**os.environ, **outside, "NO_PROXY": "", "no_proxy": ""}
    command = [sys.executable, "-m", "tests.bench.audit"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, NOBODY, "")
