"""Where images come from: one module a data set, each with NAME, SPEC, ``load(part)`` and ``download(root)``."""

from functools import partial

from training.data import awa2, cifar_fs, cub, flowers_species, nabirds, omniglot, tiny_imagenet
from training.data.dataset import Dataset

DATASETS: dict[str, Dataset] = {
    "omniglot": Dataset("omniglot", "drawings", omniglot.SPEC, omniglot.load, omniglot.download),
    "cifar-fs": Dataset("cifar-fs", "photographs", cifar_fs.SPEC, cifar_fs.load, cifar_fs.download),
    "tiny-imagenet": Dataset(
        "tiny-imagenet", "photographs", tiny_imagenet.SPEC, tiny_imagenet.load, tiny_imagenet.download
    ),
    "cub": Dataset("cub", "photographs", cub.SPEC, cub.load, cub.download, is_zero_shot=True),
    "cub-ps": Dataset(
        "cub-ps", "photographs", cub.SPEC, partial(cub.load, split="proposed"), cub.download, is_zero_shot=True
    ),
    "awa2": Dataset("awa2", "photographs", awa2.SPEC, awa2.load, awa2.download, is_zero_shot=True),
    "awa2-ps": Dataset(
        "awa2-ps", "photographs", awa2.SPEC, partial(awa2.load, split="proposed"), awa2.download, is_zero_shot=True
    ),
    "nabirds": Dataset("nabirds", "photographs", nabirds.SPEC, nabirds.load, nabirds.download, is_zero_shot=True),
    "nabirds-ps": Dataset(
        "nabirds-ps",
        "photographs",
        nabirds.SPEC,
        partial(nabirds.load, split="proposed"),
        nabirds.download,
        is_zero_shot=True,
    ),
    "flowers-species": Dataset(
        "flowers-species",
        "photographs",
        flowers_species.SPEC,
        flowers_species.load,
        flowers_species.download,
        is_zero_shot=True,
    ),
    "flowers-species-ps": Dataset(
        "flowers-species-ps",
        "photographs",
        flowers_species.SPEC,
        partial(flowers_species.load, split="proposed"),
        flowers_species.download,
        is_zero_shot=True,
    ),
}
"""``-ps``: the proposed split of a zero-shot data set, whose test classes are not in ImageNet-1K."""
