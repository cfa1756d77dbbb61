"""HyperTransformer configurations, by name: `training fit hypertransformer --config NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from models.methods.hypertransformer import HyperTransformerConfig
from models.nn.conv4 import Pooling
from training import augment
from training.episodes import EpisodeShape


@dataclass(frozen=True)
class Config:
    """One training run, whole. ``shapes``: kinds of episodes, each with its share of steps (a step's tasks agree)."""

    model: HyperTransformerConfig
    dataset: Literal["omniglot", "cifar-fs"]
    shapes: tuple[tuple[float, EpisodeShape], ...]
    validation: EpisodeShape
    n_steps: int
    images_per_step: int = 1600
    """Images of all tasks of a step together: every step costs about the same, whatever its kind of episode."""
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    within_group: float = 0.3
    """Share of training tasks whose classes all come from one group (alphabet)."""
    augmentation: float = 1.0
    """Strength of the random distortions; small networks underfit, and want less."""
    across_tasks: float = 0.0
    """Share of a loss among the classes of all tasks of a step, where tasks share their convolutions."""
    dense: float = 0.0
    """Share of a loss among all training classes, by a row each that only training has."""
    train_size: int | None = None
    """How wide training images are, where not as the network takes them (``training.augment.SHARP``)."""
    turned: bool = False
    """Whether a class turned by 90, 180 or 270 degrees is a further class (Santoro et al., 2016; Liu et al., 2020)."""
    unlabeled_sharpness: float | None = None
    """How sharply unlabelled images are told apart (``models.unlabeled``); nothing is learned through it."""
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.across_tasks and self.model.writes_convs:
            raise ValueError("tasks whose convolutions differ have no features in common to compare across_tasks")
        if self.train_size and self.model.image_channels > 1:
            raise ValueError("photographs are not scaled where they are distorted: no train_size")


ONE_SHOT = EpisodeShape(n_way=20, n_shot=1, n_query=5)
FIVE_SHOT = EpisodeShape(n_way=20, n_shot=5, n_query=5)
ANY_SHOT = (
    (0.6, ONE_SHOT),
    (0.1, EpisodeShape(n_way=20, n_shot=3, n_query=3, unbalanced=True)),
    (0.1, EpisodeShape(n_way=20, n_shot=5, n_query=3)),
    (0.1, EpisodeShape(n_way=5, n_shot=2, n_query=8, unbalanced=True)),
    (0.05, EpisodeShape(n_way=40, n_shot=1, n_query=3)),
    (0.05, EpisodeShape(n_way=20, n_shot=1, n_query=5, n_unlabeled=3)),
)
"""What users bring: mostly 20-way 1-shot, and more or fewer classes, more and uneven images, unlabelled ones."""
MANY_WAYS = (
    (0.6, EpisodeShape(n_way=60, n_shot=1, n_query=3)),
    (0.1, EpisodeShape(n_way=30, n_shot=3, n_query=3, unbalanced=True)),
    (0.1, EpisodeShape(n_way=20, n_shot=5, n_query=3)),
    (0.05, EpisodeShape(n_way=5, n_shot=2, n_query=8, unbalanced=True)),
    (0.15, EpisodeShape(n_way=20, n_shot=1, n_query=3, n_unlabeled=3)),
)
"""The same for wide networks, which learn more from harder tasks (Snell et al., 2017, section 3.1: train 60-way)."""
ACROSS_TASKS = 0.5
DENSE = 0.5


def _sharp(model: HyperTransformerConfig) -> int:
    """How wide drawings are kept, to be as sharp once distorted as they are where they are not."""
    return round(augment.SHARP * model.image_size)


UNLABELED_SHARPNESS = 20.0
SHIFT = 3
"""Of support drawings of 28 px; 2 gained less, 4 half as much (docs/decisions.md)."""


def omniglot(channels: int, *, n_steps: int, pooling: Pooling = "floor", shift: int = 0) -> Config:
    """Drawn characters, every layer written, normalised by the support set; the whole mixture of tasks."""
    model = HyperTransformerConfig(channels=channels, n_transformer_layers=3, pooling=pooling, shifted_support=shift)
    validation = replace(ONE_SHOT, n_query=3)
    return Config(
        model, "omniglot", ANY_SHOT, validation, n_steps, train_size=_sharp(model), turned=True,
        unlabeled_sharpness=UNLABELED_SHARPNESS,
    )  # fmt: skip


def omniglot_wide(channels: int, *, n_steps: int, pooling: Pooling = "floor") -> Config:
    """Wide networks: the logits layer alone is written, on convolutions that all tasks share (the paper's Table 1)."""
    model = HyperTransformerConfig(
        channels=channels, n_generated_layers=1, normalisation="base", token_dim=128, n_transformer_layers=3,
        pooling=pooling, shifted_support=SHIFT,
    )  # fmt: skip
    config = replace(omniglot(channels, n_steps=n_steps), model=model, shapes=MANY_WAYS)
    return replace(config, images_per_step=1000, across_tasks=ACROSS_TASKS, bf16=True)


def omniglot_4_five_shot(n_generated_layers: int) -> Config:
    """The paper's Table 4: 4 channels, 5 shots, where generating every layer shows."""
    config = omniglot(4, n_steps=3000)
    model = replace(config.model, n_generated_layers=n_generated_layers)
    shapes, validation = ((1.0, FIVE_SHOT),), replace(FIVE_SHOT, n_query=3)
    return replace(config, model=model, shapes=shapes, validation=validation, unlabeled_sharpness=None)


def omniglot_unlabeled() -> Config:
    """1-shot with 4 unlabelled images a class, half of the steps; the other half without, for comparison."""
    shapes = ((0.5, ONE_SHOT), (0.5, replace(ONE_SHOT, n_unlabeled=4)))
    return replace(omniglot(8, n_steps=3000), shapes=shapes, validation=replace(ONE_SHOT, n_unlabeled=4))


def omniglot_transductive() -> Config:
    """The paper's query-batch normalisation, for comparison only: predictions depend on the other queries."""
    config = omniglot(8, n_steps=3000)
    model = replace(config.model, normalisation="query")
    return replace(config, model=model, shapes=((1.0, ONE_SHOT),))


def cifar_fs() -> Config:
    """Small colour photographs (32 px), 5-way 1- and 5-shot: the logits layer written on 64 shared channels."""
    model = HyperTransformerConfig(
        image_size=32,
        image_channels=3,
        channels=64,
        n_generated_layers=1,
        normalisation="base",
        token_dim=128,
        n_transformer_layers=2,
        negative_slope=0.1,
        pools_last=False,
        unit_features=True,
        mirrored_support=True,
        pixel_mean=0.48,
        pixel_std=0.27,
    )
    shapes = (
        (0.4, EpisodeShape(n_way=20, n_shot=1, n_query=9)),
        (0.3, EpisodeShape(n_way=20, n_shot=5, n_query=10)),
        (0.2, EpisodeShape(n_way=5, n_shot=5, n_query=15)),
        (0.1, EpisodeShape(n_way=5, n_shot=3, n_query=15, n_unlabeled=3, unbalanced=True)),
    )
    validation = EpisodeShape(5, 1, 10)
    return Config(
        model, "cifar-fs", shapes, validation, 4800, images_per_step=800, learning_rate=3e-3, weight_decay=0.05,
        across_tasks=ACROSS_TASKS, dense=DENSE, bf16=True,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], Config]] = {
    "omniglot-4": lambda: omniglot(4, n_steps=4000),
    "omniglot-8": lambda: omniglot(8, n_steps=4000, pooling="ceil", shift=SHIFT),
    "omniglot-8-floor": lambda: omniglot(8, n_steps=5000),
    "omniglot-16": lambda: omniglot(16, n_steps=4000, shift=SHIFT),
    "omniglot-32": lambda: omniglot_wide(32, n_steps=2600, pooling="ceil"),
    "omniglot-64": lambda: omniglot_wide(64, n_steps=3600, pooling="ceil"),
    "omniglot-4-5shot-all": lambda: omniglot_4_five_shot(5),
    "omniglot-4-5shot-logits": lambda: omniglot_4_five_shot(1),
    "omniglot-8-unlabeled": omniglot_unlabeled,
    "omniglot-8-transductive": omniglot_transductive,
    "cifar-fs": cifar_fs,
}
