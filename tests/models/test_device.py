"""A device is used where it starts, said where it is missing, and left alone by what is done sooner without it."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from models.device import MIN_BYTES, providers_on, starts, worth_it
from models.errors import MissingDevice
from models.runtime import CPU, CUDA


def test_the_providers_of_a_device() -> None:
    assert providers_on("cpu") == []
    if starts(CUDA):
        assert providers_on("auto") == providers_on("cuda") == [CUDA]
    else:
        assert providers_on("auto") == []
        with pytest.raises(MissingDevice, match="or use the processor"):
            providers_on("cuda")


def test_what_a_build_has_may_not_start_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starts(CPU)
    assert not starts("NoSuchExecutionProvider")
    if not starts(CUDA):
        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])  # the build for GPUs, without one
        assert providers_on("auto") == []
        with pytest.raises(MissingDevice, match="CUDA does not start here"):
            providers_on("cuda")


def test_only_large_networks_go_to_a_device() -> None:
    large, small = [np.zeros(MIN_BYTES // 4, np.float32)], [np.zeros(1000, np.float32)] * 3
    assert worth_it(large, [CUDA]) == [CUDA]
    assert not worth_it(small, [CUDA])
    assert not worth_it(large, [])
