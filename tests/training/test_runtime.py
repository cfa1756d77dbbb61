"""Devices that are not here, or that several processes would share, are refused with what to give instead."""

from __future__ import annotations

import pytest
import torch

from models.errors import MissingDevice
from training.runtime import find_device, start


@pytest.mark.parametrize("name", ["foo", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(MissingDevice, match=rf"There is no device '{name}' here \(.*give --device auto, cpu or cuda"):
        start(device=name)


def test_several_processes_may_not_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(MissingDevice, match="Every process would be on cuda:0; give --device cuda"):
        find_device("cuda:0")
    assert find_device("cpu") == torch.device("cpu")


def test_cuda_is_another_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are not here: the one that is asked for is named."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda"):
        with pytest.raises(MissingDevice, match="no device 'cuda:1' here"):
            find_device(name)
