"""Where a training runs: device, precision, threads and processes, decided once, here.

One process by default; ``torchrun --nproc-per-node N -m training fit ...`` for several (gradients are averaged).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


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

    def average(self, gradients: list[Tensor]) -> None:
        """Average gradients over the processes, in place, as one message."""
        if self.world_size == 1:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        """Leave the run."""
        if self.world_size > 1:
            dist.destroy_process_group()


def start(*, device: str = "auto", bf16: bool = False, n_threads: int | None = None) -> Runtime:
    """Join the run described by torchrun's variables (none: alone) on ``device`` ("auto": a GPU where there is one)."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    if n_threads:
        torch.set_num_threads(n_threads)
    if world_size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Runtime(torch.device(device), bf16, rank, world_size)
