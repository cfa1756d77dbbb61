"""The controls of a task of described classes are what their rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import metamodel
from models.metamodel import BASIS
from training import described_tasks
from training.baselines import logistic_regression, nearest_centroid
from training.data.descriptions import beside, read_descriptions
from training.data.folders import read_images
from training.described_tasks import Subject
from training.episodes import EpisodeShape


@pytest.fixture(scope="module")
def subject(cloths: Path, cloth_zoo: Path) -> Subject:
    """It moves its layers far, as one that is trained for longer does."""
    meta_model = metamodel.load(cloth_zoo / "cloths")
    meta_model.base.update({name: 3000 * basis for name, basis in meta_model.base.items() if name.endswith(BASIS)})
    return Subject(meta_model, read_images(cloths, meta_model.manifest.preprocess), read_descriptions(beside(cloths)))


def test_closed_forms_are_on_the_features_of_the_network_that_was_written(subject: Subject) -> None:
    """Where layers are adapted, not on those of the base."""
    assert subject.adapts_layers
    n_unlike = 0
    for number in range(12):
        episode, specs, rng = subject.draw(EpisodeShape(5, 2, 4), 0, number)
        subject.learn_agnostic([specs])
        answers, _, _ = described_tasks._answer(subject, episode, specs, rng)
        written = subject.write(specs)
        for name, form in (("nearest_centroid", nearest_centroid), ("logistic_regression", logistic_regression)):
            own, base = (
                form(
                    subject.features_by(of, episode.support),
                    episode.support_labels,
                    subject.features_by(of, episode.query),
                )
                for of in (written, None)
            )
            np.testing.assert_array_equal(answers[name], own)
            n_unlike += int((own != base).sum())
    assert n_unlike
