"""Memory that was freed is taken again, without the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

N_TIMES, N_PAGES = 20, 16_384
PROGRAM = f"""
import resource
import torch
from training.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({N_TIMES}):
        torch.zeros({N_PAGES} * 4096, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if keep_freed():
    faults()
    print(faults())
"""


def test_a_freed_tensor_costs_no_new_pages() -> None:
    """In a process of its own, for it is told to the whole one. Without, each time faults on every page."""
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    if not told:
        pytest.skip("the C library has no mallopt")
    assert int(told) < N_PAGES
