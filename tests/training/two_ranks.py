"""What each process of ``torchrun`` does in test_recipe: some steps, then its weights into a file of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.training import small
from training import runtime
from training.data import omniglot
from training.data.folders import read_images
from training.recipes.hypertransformer import fit


def main(folders: Path, out: Path) -> None:
    drawings = read_images(folders, omniglot.SPEC)
    torch.set_num_threads(1)
    here = runtime.start(device="cpu")
    try:
        model = fit(small.BASE, drawings, drawings, out / "run", here, stop_after=2)
        assert torch.distributed.get_backend() == "gloo"
        weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, out / f"{here.rank}.safetensors")
    finally:
        here.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
