"""N3 configurations, by name: `training fit n3 --config NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from models.methods.n3 import N3Config
from models.nn.bases import TENSORFLOW_MOBILENET, BaseSpec
from training.data.folders import DataError
from training.encoded import Embeddings


@dataclass(frozen=True)
class Config:
    """One training run, whole."""

    model: N3Config
    dataset: str
    base: str
    """Where the base's weights come from (``training.pretrained.read_base``)."""
    n_steps: int
    """The first ``n_head_steps`` on features of the base as it is, the others on images through adapted networks; where
    no layer is adapted, all on features."""
    n_head_steps: int = 0
    classifier_rows: bool = False
    """Whether to learn of classes without images, too, from a pretrained classifier's rows and their texts."""
    text_encoder: str = "all-minilm-l6-v2"
    embeddings: Embeddings = "contextual"
    n_documents: int = 8
    """Of each class."""
    ways: tuple[int, int] = (5, 30)
    shots: tuple[int, ...] = (0, 0, 0, 1, 2, 5)
    """Images of a class, each as likely; the same for all classes of a task, but for one task in four."""
    without_text: float = 0.3
    """Share of the tasks with images in which no class has a text."""
    scatter: float = 1.0
    """How much farther from its class's mean, for the distance between classes, an image of an unseen class lies than
    one that the base was trained on (measured on validation classes)."""
    assumed_scatter: float = 1.0
    """The same, in Bayes' rule alone: how little an image is trusted beside what a text says."""
    refinement: float | None = None
    """How much the written logits count where the classification layer is fitted to the support images, once there is a
    network (``models.refine``; chosen on validation classes). Nothing is learned through it."""
    n_queries: int = 96
    """Images of a step."""
    n_imagined: int = 256
    """Features of a step drawn around the means of any classes, those without images among them."""
    learning_rate: float = 5e-4
    head_share: float = 0.0
    """Of the learning rate, for what changes the classification layer alone; where 0, it stays as it is known."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    augmentation: float = 0.5
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model.adapts and self.n_steps <= self.n_head_steps:
            few = f"{self.n_steps} steps adapt no layer: the first {self.n_head_steps} are for the classification layer"
            raise DataError(f"{few}; take {self.n_head_steps + 1} or more (--steps).")


def tiny() -> Config:
    """On our own ResNet-18, which met the training classes alone: every unseen class is unseen."""
    model = N3Config(BaseSpec("resnet18", 64), n_features=256)
    base = "runs/resnet18-tiny/checkpoint.safetensors"
    return Config(model, "tiny-imagenet", base, n_steps=600, n_queries=128, n_imagined=0, refinement=1.5)


def cifar_fs() -> Config:
    """The same base on photographs of another kind than those it met: what N3 is for."""
    return replace(tiny(), dataset="cifar-fs", assumed_scatter=3.0)


def own() -> Config:
    """For one's own photographs, described (`--images`): on the base that ships, which has met what ImageNet has."""
    model = N3Config(TENSORFLOW_MOBILENET, n_features=256)
    return replace(tiny(), model=model, base="models/zoo/n3-mobilenet")


def words() -> Config:
    """For use: on a MobileNetV2 that ImageNet taught; it has met the classes that its figures call unseen."""
    model = N3Config(TENSORFLOW_MOBILENET, n_features=512, code_dim=16)
    base = "runs/mobilenet-v2-tiny/checkpoint.safetensors"
    return Config(
        model,
        "tiny-imagenet",
        base,
        n_steps=300,
        n_head_steps=200,
        classifier_rows=True,
        scatter=2.0,
        learning_rate=1e-4,
        head_share=0.1,
        refinement=0.5,
    )


def ordinary(dataset: str) -> Config:
    """The paper's own: ResNet-18 that ImageNet taught, 224 pixels, words alone."""
    model = N3Config(BaseSpec("resnet18", 224))
    return Config(model, dataset, "torchvision", n_steps=10_000, shots=(0,), n_imagined=0, n_documents=4)


def _logits_only(config: Config) -> Config:
    """All of its steps are on features of the base as it is."""
    return replace(config, model=replace(config.model, adapts=()), head_share=0.1)


def _held(config: Config, gamma: float, mu: float) -> Config:
    return replace(config, model=replace(config.model, gamma=gamma, mu=mu))


CONFIGS: dict[str, Callable[[], Config]] = {
    "words": words,
    "words-logits": lambda: _logits_only(words()),
    "own": own,
    "tiny": tiny,
    "tiny-logits": lambda: _logits_only(tiny()),
    "cifar-fs": cifar_fs,
    "cifar-fs-logits": lambda: _logits_only(cifar_fs()),
    "cifar-fs-last-stage": lambda: replace(cifar_fs(), model=replace(cifar_fs().model, adapts=("layer4",))),
    "cifar-fs-sentence": lambda: replace(cifar_fs(), embeddings="sentence"),
    "cifar-fs-static": lambda: replace(cifar_fs(), embeddings="static"),
    "cifar-fs-gamma-0.99": lambda: _held(cifar_fs(), 0.99, 0.01),
    "cifar-fs-gamma-0.9": lambda: _held(cifar_fs(), 0.9, 0.1),
    **{name: lambda name=name: ordinary(name) for name in ("cub", "awa2", "nabirds", "flowers-species")},  # type: ignore[misc]
}
"""words ships, and own is for one's own classes; the others show what N3 does without a leak, its ablations, and the
paper's own data sets."""
