"""Configurations of what N3 is compared with, by name: `training fit word-baselines --config NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from models.nn.bases import TENSORFLOW_MOBILENET, BaseSpec

Method = Literal["linear", "text2model", "pdcnn-fc", "pdcnn-fc-conv", "megazsl"]
Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class Config:
    """One training run, whole: what it is given is what N3's configuration of the same base is given."""

    method: Method
    base_spec: BaseSpec
    base: str
    """Where the base's weights come from (``training.pretrained.read_base``)."""
    n_features: int
    maps: str
    """The convolution of the base that reads what PDCNN-fc+conv reads, too: its last maps of 4 x 4 or more."""
    pooling: Pooling = "mean"
    """Of a document's token embeddings."""
    dataset: str = "tiny-imagenet"
    text_encoder: str = "all-minilm-l6-v2"
    n_documents: int = 8
    """Of each class."""
    ways: tuple[int, int] = (5, 30)
    n_queries: int = 256
    """Images of a step."""
    n_steps: int = 1500
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    critic_steps: int = 5
    """MEGAZSL's, for each of its generator's."""
    seed: int = 0


TINY = Config("linear", BaseSpec("resnet18", 64), "runs/resnet18-tiny/checkpoint.safetensors", 256, "layer4.0.conv1")
"""On the base of `training fit n3 --config tiny`, which has met the training classes alone."""
WORDS = Config("linear", TENSORFLOW_MOBILENET, "runs/mobilenet-v2-tiny/checkpoint.safetensors", 512, "features.18.0")
"""On the base of `training fit n3 --config words`, which has met the classes that figures call unseen."""
OWN = Config("linear", TENSORFLOW_MOBILENET, "models/zoo/n3-mobilenet", 256, "features.18.0")
"""On the base of `training fit n3 --config own`, which ships, for one's own classes."""


def ordinary(dataset: str) -> Config:
    """On the base of `training fit n3 --config DATASET`, as the paper's Table 2 has it."""
    spec = BaseSpec("resnet18", 224)
    return Config("linear", spec, "torchvision", 512, "layer4.0.conv1", dataset=dataset, n_documents=4)


def of_method(config: Config, method: Method) -> Config:
    """What differs between the methods; N3's authors max-pool the tokens of PDCNN and MEGAZSL."""
    pooling: Pooling = "mean" if method in ("linear", "text2model") else "max"
    changed = replace(config, method=method, pooling=pooling)
    if method == "megazsl":
        return replace(changed, n_steps=2000, learning_rate=2e-4, weight_decay=0.0)
    return changed


OF: dict[str, Config] = {
    "own": OWN,
    "tiny": TINY,
    "words": WORDS,
    **{name: ordinary(name) for name in ("cub", "awa2", "nabirds", "flowers-species")},
}
CONFIGS: dict[str, Callable[[], Config]] = {
    f"{name}-{method}": partial(of_method, config, method) for name, config in OF.items() for method in get_args(Method)
}
