"""What a report draws its tasks from: classes that a meta-model has not met, or the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.metamodel import MetaModel
from tests.training import small
from training.data.folders import DataError
from training.subjects import Images, Subject


def test_tasks_are_of_classes_that_were_held_out_of_the_training_or_of_ones_own(
    exported: MetaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the alphabets in the data set's place the first validates."""
    monkeypatch.setenv("CLASSMITH_DATASETS", str(tmp_path))
    folder = small.write_folders(tmp_path / "omniglot" / "images_background", n_characters=6, n_hands=2)

    def trained_without(*held_out: str) -> Subject:
        training = {"config": {"dataset": "omniglot"}, "validation_groups": list(held_out)}
        return Subject(exported, {"training": training}, ())

    drawn = Images().unseen_by(trained_without("ash"))
    assert set(drawn.groups) == {"ash"}
    assert Images().unseen_by(trained_without(*drawn.class_names)).digest == drawn.digest
    for held_out in (("birch",), ("ash", "birch")):
        with pytest.raises(DataError, match="are not those that were held out of this training"):
            Images().unseen_by(trained_without(*held_out))
    assert Images(folder).unseen_by(trained_without("birch")).n_classes == 6
