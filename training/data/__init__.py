"""Where images come from: one module a data set, each with NAME, SPEC, ``load(part)`` and ``download(root)``."""

from functools import partial

from training.data import awa2, cifar_fs, cub, flowers_species, nabirds, omniglot, tiny_imagenet, zero_shot
from training.data.dataset import Dataset

SPLITS: dict[str, zero_shot.SplitName] = {"": "standard", "-ps": "proposed"}
DATASETS: dict[str, Dataset] = {
    "omniglot": Dataset("omniglot", "drawings", omniglot.SPEC, omniglot.load, omniglot.download),
    "cifar-fs": Dataset("cifar-fs", "photographs", cifar_fs.SPEC, cifar_fs.load, cifar_fs.download),
    "tiny-imagenet": Dataset(
        "tiny-imagenet", "photographs", tiny_imagenet.SPEC, tiny_imagenet.load, tiny_imagenet.download
    ),
    **{
        f"{name}{suffix}": Dataset(
            f"{name}{suffix}", "photographs", zero_shot.SPEC, partial(load, split=split), download, is_zero_shot=True
        )
        for name, load, download in (
            ("cub", cub.load, cub.download),
            ("awa2", awa2.load, awa2.download),
            ("nabirds", nabirds.load, nabirds.download),
            ("flowers-species", flowers_species.load, flowers_species.download),
        )
        for suffix, split in SPLITS.items()
    },
}
"""``-ps``: the proposed split of a zero-shot data set, whose test classes are not in ImageNet-1K."""
