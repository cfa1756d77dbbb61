"""Where images come from: one module a data set, each with NAME, SPEC, ``load(part)`` and ``download(root)``."""

from training.data import cifar_fs, omniglot, tiny_imagenet
from training.data.dataset import Dataset

DATASETS: dict[str, Dataset] = {
    "omniglot": Dataset("omniglot", "drawings", omniglot.SPEC, omniglot.load, omniglot.download),
    "cifar-fs": Dataset("cifar-fs", "photographs", cifar_fs.SPEC, cifar_fs.load, cifar_fs.download),
    "tiny-imagenet": Dataset(
        "tiny-imagenet", "photographs", tiny_imagenet.SPEC, tiny_imagenet.load, tiny_imagenet.download
    ),
}
