"""Known weaknesses of the versions in constraints.txt: what pip-audit finds, or that nobody could be asked.

    python -m tests.bench.audit

Fails (1) where a version has a known weakness that a newer one mends. Without the network, or behind an index that
knows no advisories, it says so and does not fail. It asks about a release with known weaknesses first: an index that
finds nothing wrong with that one has nothing to say about the others, though pip-audit would report "none found".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
KNOWN_TO_BE_WEAK = "jinja2==2.10\n"
TIMEOUT_S = 180
NOBODY = "dependency audit: NOT DONE, no advisory service answers from here; run `make audit` where one does"


def main() -> int:
    """Ask, print what is known, and say by the status whether something has to be done."""
    with tempfile.TemporaryDirectory() as folder:
        weak = Path(folder) / "weak.txt"
        weak.write_text(KNOWN_TO_BE_WEAK)
        canary = ask(weak)
        report = ask(CONSTRAINTS) if canary and weaknesses(canary) else None
    if report is None:
        print(NOBODY)
        return 0
    lines, status = verdict(report)
    print("\n".join(lines))
    return status


def ask(requirements: Path) -> dict[str, Any] | None:
    """pip-audit's report on pinned requirements, or None where it could not make one."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        found: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return found


def weaknesses(report: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(package and version, advisory, versions that mend it), each once."""
    return [
        (f"{package['name']} {package['version']}", weakness["id"], weakness["fix_versions"])
        for package in report["dependencies"]
        for weakness in package.get("vulns", ())
    ]


def verdict(report: dict[str, Any]) -> tuple[list[str], int]:
    """What to print, and 1 where a newer version mends something."""
    found, packages = weaknesses(report), report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [f"dependency audit: {len(packages) - len(skipped)} packages, {len(found)} known weaknesses"]
    for package, advisory, mended in found:
        lines.append(f"  {package}: {advisory}, {'mended in ' + ', '.join(mended) if mended else 'not mended yet'}")
    if skipped:
        lines.append(f"  not known to the advisory service: {', '.join(skipped)}")
    return lines, int(any(mended for _, _, mended in found))


if __name__ == "__main__":
    sys.exit(main())
