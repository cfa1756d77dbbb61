"""Figures that others published, for reference lines: each with its source, and the protocol it was measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published row: accuracy in percent by the target network's number of channels."""

    name: str
    source: str
    accuracy: Mapping[int, float]


PAPER = "Zhmoginov, Sandler and Vladymyrov, HyperTransformer, 2022, Table 1"
PROTOCOL = (
    "The grey lines are published figures, measured by another protocol than this page's, which favours them: "
    "characters of all alphabets are mixed, so that training and test share alphabets; HyperTransformer normalises "
    "with the statistics of the whole query batch (transductive), and a query may equal a support image (5 % of "
    "queries at 1 shot, 25 % at 5 shots; worth about 0.7 points at 8 channels and 1 shot). MAML++ is shown as in "
    "the same table; its figure at 64 channels is from its own paper, an ensemble of five checkpoints. "
    "Published networks end in as many features as channels; ours in four times as many where their card says that "
    "pooling keeps the border."
)
PUBLISHED: dict[tuple[str, int, int], tuple[Published, ...]] = {
    ("omniglot", 20, 1): (
        Published("HyperTransformer, published", PAPER, {8: 87.2, 16: 93.7, 32: 95.5, 48: 95.7, 64: 96.2}),
        Published("MAML++, published", PAPER, {8: 81.4, 16: 88.6, 32: 95.6, 48: 95.8, 64: 97.7}),
    ),
    ("omniglot", 20, 5): (
        Published("HyperTransformer, published", PAPER, {8: 94.7, 16: 98.0, 32: 98.6, 48: 98.8, 64: 98.8}),
        Published("MAML++, published", PAPER, {8: 83.2, 16: 94.9, 32: 98.6, 48: 98.8, 64: 99.3}),
    ),
}
"""By data set, ways and shots."""
