"""The service runs without torch: neither the application nor any command imports it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "transformers")


@pytest.mark.parametrize(
    "module",
    [
        "service.app",
        "service.cli",
        "service.serving.server",
        "service.generation.worker",
        "service.client",
        "service.estimator",
    ],
)
def test_importing_it_leaves_torch_out(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
