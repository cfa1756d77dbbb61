"""Episodes: disjoint, as asked for, the same for the same seed, and never more than the data have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.folders import DataError, ImageSet
from training.episodes import Episode, EpisodeShape, drawable, sample, shrink

SHAPES = st.builds(
    EpisodeShape,
    n_way=st.integers(2, 6),
    n_shot=st.integers(1, 4),
    n_query=st.integers(1, 4),
    n_unlabeled=st.integers(0, 3),
    unbalanced=st.booleans(),
)
SIZES = st.lists(st.integers(2, 14), min_size=2, max_size=8)


def image_set(sizes: list[int], groups: list[str] | None = None) -> ImageSet:
    """Classes of the given numbers of images; an image's one pixel is its own number."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(f"class {k}" for k in range(len(sizes)))
    return ImageSet(pixels, labels, names, tuple(groups or names))


def draw(images: ImageSet, shape: EpisodeShape, seed: int = 0, *, within_group: bool = False) -> Episode:
    return sample(images, shape, np.random.default_rng(seed), within_group=within_group)


@given(SIZES, SHAPES, st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_any_shape_shrunk_to_the_data_can_be_drawn(sizes: list[int], wanted: EpisodeShape, seed: int) -> None:
    images = image_set(sizes)
    shape = shrink(wanted, images)
    episode = draw(images, shape, seed)
    everything = np.concatenate([episode.support, episode.unlabeled, episode.query])
    assert len(set(everything.tolist())) == len(everything) == shape.n_images
    assert len(set(episode.classes.tolist())) == shape.n_way
    np.testing.assert_array_equal(images.labels[episode.support], episode.classes[episode.support_labels])
    np.testing.assert_array_equal(images.labels[episode.query], episode.classes[episode.query_labels])
    np.testing.assert_array_equal(images.labels[episode.unlabeled], np.repeat(episode.classes, shape.n_unlabeled))
    shots = np.bincount(episode.support_labels, minlength=shape.n_way)
    assert shots.sum() == shape.n_way * shape.n_shot
    assert shots.min() >= 1
    assert shape.unbalanced or set(shots.tolist()) == {shape.n_shot}
    assert (np.bincount(episode.query_labels) == shape.n_query).all()


@given(SIZES, SHAPES)
@settings(max_examples=100)
def test_shrinking_takes_no_more_than_it_must(sizes: list[int], wanted: EpisodeShape) -> None:
    images, smallest = image_set(sizes), min(sizes)
    shape = shrink(wanted, images)
    assert shape.n_way == min(wanted.n_way, len(sizes))
    a_class = shape.n_shot + shape.n_query + shape.n_unlabeled
    assert a_class == min(smallest, wanted.n_shot + wanted.n_query + wanted.n_unlabeled)
    assert min(shape.n_shot, shape.n_query) >= 1
    assert shape.unbalanced == wanted.unbalanced
    assert shrink(shape, images) == shape


@pytest.mark.parametrize("sizes", [[9], [9, 1], [1, 1, 1]])
def test_data_that_give_no_episode_at_all_say_so(sizes: list[int]) -> None:
    with pytest.raises(DataError, match="two classes of two images"):
        shrink(EpisodeShape(5, 1, 1), image_set(sizes))


def test_the_same_seed_gives_the_same_episode_and_another_seed_another() -> None:
    images, shape = image_set([9] * 8), EpisodeShape(4, 2, 2, 1, unbalanced=True)
    one, same, other = (draw(images, shape, seed) for seed in (3, 3, 4))
    for field in ("classes", "support", "support_labels", "unlabeled", "query", "query_labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert (one.support != other.support).any()


def test_unbalanced_shots_differ_between_classes() -> None:
    images, shape = image_set([20] * 5), EpisodeShape(5, 3, 2, unbalanced=True)
    counts = [np.bincount(draw(images, shape, seed).support_labels) for seed in range(20)]
    assert any(len(set(c.tolist())) > 1 for c in counts)
    assert all(c.sum() == 15 for c in counts)


def test_unbalanced_shots_stay_within_the_images_of_a_class() -> None:
    """Two images of each class are for support: only one way of spreading them is left, for any seed."""
    images, shape = image_set([4] * 6), EpisodeShape(6, 2, 2, unbalanced=True)
    for seed in range(20):
        assert np.bincount(draw(images, shape, seed).support_labels).tolist() == [2] * 6


def test_every_image_and_class_is_drawn_at_some_time() -> None:
    images, shape = image_set([4] * 5), EpisodeShape(2, 1, 1)
    rng = np.random.default_rng(0)
    episodes = [sample(images, shape, rng) for _ in range(300)]
    assert {int(i) for e in episodes for i in e.support} == set(range(20))
    assert {int(i) for e in episodes for i in e.query} == set(range(20))
    assert {tuple(sorted(e.classes.tolist())) for e in episodes} == {(a, b) for b in range(5) for a in range(b)}


def test_classes_of_one_group_or_topped_up_from_others() -> None:
    images = image_set([5] * 7, ["a", "a", "a", "b", "b", "b", "c"])
    groups = np.array(images.groups)
    for seed in range(20):
        found = groups[draw(images, EpisodeShape(3, 1, 1), seed, within_group=True).classes]
        assert len(set(found.tolist())) == 1 or "c" in found
    orders = {
        tuple(draw(images, EpisodeShape(3, 1, 1), seed, within_group=True).classes.tolist()) for seed in range(60)
    }
    assert len(orders) > 6
    topped_up = groups[draw(images, EpisodeShape(7, 1, 1), 0, within_group=True).classes]
    assert sorted(topped_up.tolist()) == sorted(images.groups)


def test_too_few_classes_or_images_are_refused_with_what_there_is() -> None:
    images = image_set([9, 3, 9])
    with pytest.raises(DataError, match="these data have 3"):
        draw(images, EpisodeShape(4, 1, 1))
    with pytest.raises(DataError, match="class 1 has 3 images; the episode needs 4"):
        draw(images, EpisodeShape(3, 2, 2))


def test_an_evaluation_refuses_small_classes_before_it_starts() -> None:
    images = image_set([9, 3, 9, 2, 1, 0])
    with pytest.raises(
        DataError,
        match=r"takes 4 images of a class, and 'class 1' has 3, 'class 3' has 2, 'class 4' has 1, 1 more have too few; "
        r"give fewer --shots, --queries or --unlabeled, or leave such classes out",
    ):
        drawable(images, EpisodeShape(2, 1, 2, n_unlabeled=1))
    with pytest.raises(DataError, match=r"these data have 6: give fewer --ways"):
        drawable(images, EpisodeShape(7, 1, 2))
    images = image_set([3, 9])
    assert drawable(images, EpisodeShape(2, 2, 1)) is images
    assert drawable(images, EpisodeShape(2, 3, 2, unbalanced=True)) is images


def test_an_evaluation_within_groups_draws_of_those_with_enough_classes() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    images = image_set([5] * 6, groups)
    drawn = drawable(images, EpisodeShape(3, 1, 1), within_group=True)
    assert (set(drawn.groups), drawn.n_classes) == ({"a"}, 3)
    assert drawable(images, EpisodeShape(2, 1, 1), within_group=True).groups == ("a", "b", "a", "b", "a")
    with pytest.raises(
        DataError, match=r"No group has 4 classes: 'a' has the most, 3; give fewer --ways, or leave out"
    ):
        drawable(images, EpisodeShape(4, 1, 1), within_group=True)
    even = image_set([5, 5, 1, 5], ["a", "b", "a", "b"])
    with pytest.raises(DataError, match="'class 2' has 1"):
        drawable(even, EpisodeShape(2, 1, 1), within_group=True)
    even = image_set([5] * 4, ["a", "b", "a", "b"])
    assert drawable(even, EpisodeShape(2, 1, 1), within_group=True) is even


def test_classes_within_a_group_are_drawn_as_they_have_always_been() -> None:
    """Also where others top them up, as in training: figures and runs are repeated by their seeds."""
    images = image_set([5] * 7, ["a", "a", "a", "b", "b", "b", "c"])
    found = [draw(images, EpisodeShape(3, 1, 1), seed, within_group=True).classes.tolist() for seed in range(6, 10)]
    assert found == [[3, 5, 4], [6, 0, 5], [3, 4, 5], [1, 0, 2]]


def test_an_episode_that_shares_an_image_between_support_and_query_is_refused() -> None:
    whole = draw(image_set([5] * 3), EpisodeShape(2, 1, 1))
    with pytest.raises(ValueError, match="overlap"):
        replace(whole, query=whole.support)


def test_a_shape_counts_its_images() -> None:
    assert EpisodeShape(5, 1, 3, n_unlabeled=2).n_images == 30
