"""Where a training runs: device, precision and processes, decided once, here.

One process by default; ``torchrun --nproc-per-node N -m training fit ...`` for several: gradients and running
statistics are averaged.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from models.errors import MissingDevice


@dataclass(frozen=True)
class Runtime:
    """This process's place in a run. ``bf16``: forward passes in bfloat16 autocast, weights in float32."""

    device: torch.device
    bf16: bool
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Around every forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def average(self, tensors: list[Tensor]) -> None:
        """Average floating-point tensors over the processes, in place, as one message."""
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def close(self) -> None:
        """Leave the run."""
        if self.world_size > 1:
            dist.destroy_process_group()


def start(*, device: str = "auto", bf16: bool = False) -> Runtime:
    """Join the run described by torchrun's variables (none: alone) on ``device``; raises as ``find_device``."""
    found, world_size = find_device(device), _of_torchrun("WORLD_SIZE", 1)
    if world_size > 1:
        dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    return Runtime(found, bf16, _of_torchrun("RANK", 0), world_size)


def find_device(name: str) -> torch.device:
    """The device of this process: "auto" is a GPU where there is one, "cuda" the GPU of torchrun's local rank.

    Raises MissingDevice where there is none of that name, or each of several processes would be on the same GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and _of_torchrun("WORLD_SIZE", 1) > 1:
        raise MissingDevice(f"Every process would be on {name}; give --device cuda, which is another GPU for each.")
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{_of_torchrun('LOCAL_RANK', 0) % torch.cuda.device_count()}"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        why = str(error).splitlines()[0]
        raise MissingDevice(f"There is no device {name!r} here ({why}); give --device auto, cpu or cuda.") from error


def _of_torchrun(variable: str, alone: int) -> int:
    return int(os.environ.get(variable, alone))
