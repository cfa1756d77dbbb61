"""What a generator sees of each support image."""

from __future__ import annotations

import numpy as np

from models.views import views_of


def test_views_are_mirrored_and_shifted_with_the_edge_repeated() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    views = [view[0, ..., 0].tolist() for view in views_of(image, shift=1, mirrored=True)]
    assert len(views) == 10
    assert views[:2] == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[2, 1, 0], [5, 4, 3], [8, 7, 6]]]
    down, up = [[0, 1, 2], [0, 1, 2], [3, 4, 5]], [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    right, left = [[0, 0, 1], [3, 3, 4], [6, 6, 7]], [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert views[2:6] == [down, up, right, left]
    assert [len(views_of(image, shift=shift, mirrored=False)) for shift in (0, 1)] == [1, 5]
