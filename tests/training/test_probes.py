"""A map of weights is drawn of tasks enough to have a distance, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from models.metamodel import MetaModel
from training import probes
from training.data.folders import DataError, ImageSet


def test_a_map_takes_two_tasks_of_each_class_that_it_marks(exported: MetaModel, drawings: ImageSet) -> None:
    for n_tasks in (1, 2, 2 * probes.MAX_HIGHLIGHTED - 1):
        with pytest.raises(DataError, match="two tasks of each class that it marks; give --tasks 12"):
            probes.weight_cloud(exported, drawings, n_tasks, seed=0)
    fewest = probes.weight_cloud(exported, drawings, 2 * probes.MAX_HIGHLIGHTED, seed=0)
    assert np.isfinite(probes.closeness(fewest.weights["logits"], fewest.anchors))
    assert np.isfinite(probes.flatten_map(fewest.weights["logits"], seed=0)).all()


def test_a_map_of_the_fewest_classes_has_the_fewest_tasks(exported: MetaModel, drawings: ImageSet) -> None:
    names = set(drawings.class_names[:4])
    few = drawings.where(lambda name, _: name in names)
    cloud = probes.weight_cloud(exported, few, 4, seed=0)
    assert np.bincount(cloud.anchors).tolist() == [2, 2]
    assert np.isfinite(probes.flatten_map(cloud.weights["logits"], seed=0)).all()
