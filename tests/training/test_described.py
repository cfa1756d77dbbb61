"""Tasks are drawn as configured, never ask about what they show, and what they are drawn from knows no class itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.methods.n3 import N3
from models.nn.bases import Base
from tests.training import described, small
from training import closed_forms as forms
from training.configs.n3 import Config
from training.data import DATASETS, descriptions
from training.data.folders import DataError, ImageSet
from training.described import (
    N_REMEMBERED,
    Material,
    Task,
    _cross_fitted,
    draw_queries,
    draw_task,
    imagine,
    prepare,
)
from training.encoded import EncodedTexts
from training.recipes import n3

N_TASKS = 150
SIZES = (1, 2, 3, 6, 9)
N_FURTHER, N_DOCUMENTS, N_FEATURES, TOKEN_DIM = 3, 4, 5, 6
CONFIG = described.config(Path("nowhere"), shots=(0, 0, 1, 2, 4), without_text=0.3, n_documents=N_DOCUMENTS)


@pytest.fixture(scope="module")
def material() -> Material:
    """Five classes of one image and more, three with texts alone; every number in it is another."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    names = tuple(f"class {k}" for k in range(len(SIZES)))
    n_known = len(SIZES) + N_FURTHER
    tokens = [
        tuple(rng.normal(size=(int(rng.integers(1, 7)), TOKEN_DIM)).astype(np.float16) for _ in range(N_DOCUMENTS))
        for _ in range(n_known)
    ]
    return Material(
        images=ImageSet(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, names, names),
        features=rng.normal(size=(len(labels), N_FEATURES)).astype(np.float32),
        texts=EncodedTexts(tuple(tokens)),
        means=rng.normal(0, 20, (n_known, N_FEATURES)).astype(np.float32),
        priors=rng.normal(size=(n_known, N_DOCUMENTS, N_FEATURES)).astype(np.float32),
        spread=0.5,
    )


def _tasks(material: Material, config: Config = CONFIG, *, imagined: bool = False) -> Iterator[Task]:
    for seed in range(N_TASKS):
        yield draw_task(material, config, np.random.default_rng(seed), imagined=imagined)


def _n_shots(task: Task) -> np.ndarray:
    return task.feature_mask.sum(1).numpy().astype(int)


# --- tasks


def test_images_asked_about_are_never_among_those_shown(material: Material) -> None:
    for task in _tasks(material):
        chosen = draw_queries(material, task, 10, np.random.default_rng(0))
        assert not set(chosen) & set(task.support)
        assert len(set(task.support)) == len(task.support)


def test_as_many_images_of_each_class_are_asked_about(material: Material) -> None:
    """Once each, where there are as many; with fewer wanted than classes, one."""
    for task in _tasks(material):
        for wanted in (10, 1):
            chosen = draw_queries(material, task, wanted, np.random.default_rng(0))
            asked = material.images.labels[chosen]
            each = max(1, wanted // len(task.classes))
            np.testing.assert_array_equal(asked, np.repeat(task.classes, each))
            for k, shown in zip(task.classes, _n_shots(task), strict=True):
                assert len(set(chosen[asked == k])) == each or SIZES[k] - shown < each


@pytest.mark.parametrize(("ways", "allowed"), [((2, 4), {2, 3, 4}), ((3, 30), {3, 4, 5}), ((9, 30), {5})])
def test_ways_are_within_the_configured_ones_and_what_there_is(
    material: Material, ways: tuple[int, int], allowed: set[int]
) -> None:
    classes = [task.classes for task in _tasks(material, replace(CONFIG, ways=ways))]
    assert {len(own) for own in classes} == allowed
    assert all(len(set(own)) == len(own) for own in classes)
    assert set(np.concatenate(classes)) == set(range(len(SIZES)))


def test_shots_are_the_configured_ones_and_leave_an_image_to_ask_about(material: Material) -> None:
    met = set()
    for task in _tasks(material):
        for k, shown in zip(task.classes, _n_shots(task), strict=True):
            assert shown in {min(n, SIZES[k] - 1) for n in CONFIG.shots}
            met.add((int(k), int(shown)))
    assert met == {(k, min(n, size - 1)) for k, size in enumerate(SIZES) for n in CONFIG.shots}


def test_shots_are_the_same_in_most_tasks_and_not_in_all(material: Material) -> None:
    same = [len(set(_n_shots(task))) == 1 for task in _tasks(material, imagined=True)]
    assert 0.7 < np.mean(same) < 1


def test_a_task_shows_the_features_of_its_own_images(material: Material) -> None:
    n_shown = 0
    for task in _tasks(material):
        rows = task.features[task.feature_mask.bool()].numpy()
        np.testing.assert_array_equal(rows, material.features[task.support])
        labels = material.images.labels[task.support]
        np.testing.assert_array_equal(labels, np.repeat(task.classes, _n_shots(task)))
        n_shown += len(rows)
    assert n_shown > N_TASKS


def test_text_and_prior_are_of_the_same_document(material: Material) -> None:
    met = set()
    for task in _tasks(material, imagined=True):
        for row, k in enumerate(task.classes):
            ((v,),) = np.nonzero((material.priors[k] == task.prior[row].numpy()).all(-1))
            shown = task.tokens[row][task.token_mask[row].bool()].numpy()
            if len(shown):
                np.testing.assert_array_equal(shown, material.texts.tokens[k][v].astype(np.float32))
                met.add((int(k), int(v)))
    assert len(met) == len(material.means) * N_DOCUMENTS


@pytest.mark.parametrize("imagined", [False, True])
def test_only_classes_with_images_are_silent(material: Material, imagined: bool) -> None:
    """All such classes of a task, or none, in the configured share of the tasks."""
    for share in (0.0, 0.3, 1.0):
        silent_tasks = []
        for task in _tasks(material, replace(CONFIG, without_text=share), imagined=imagined):
            has_text, has_images = task.token_mask.sum(1).numpy() > 0, _n_shots(task) > 0
            assert has_text[~has_images].all()
            if has_images.any():
                assert len(set(has_text[has_images])) == 1
                silent_tasks.append(not has_text[has_images].any())
        assert np.mean(silent_tasks) == pytest.approx(share, abs=0.15 * (0 < share < 1))


def test_masked_tokens_and_features_are_zero(material: Material) -> None:
    for task in _tasks(material):
        assert task.tokens[task.token_mask == 0].abs().sum() == 0
        assert task.features[task.feature_mask == 0].abs().sum() == 0


def test_a_task_is_a_function_of_its_generator(material: Material) -> None:
    for imagined in (False, True):
        one, same, other = (
            draw_task(material, CONFIG, np.random.default_rng(seed), imagined=imagined) for seed in (4, 4, 5)
        )
        assert all(torch.equal(a, b) for a, b in zip((*one.inputs, one.prior), (*same.inputs, same.prior), strict=True))
        assert not np.array_equal(one.classes, other.classes)


# --- imagined ones


def test_imagined_tasks_are_of_all_classes_and_show_no_image(material: Material) -> None:
    tasks = list(_tasks(material, imagined=True))
    assert set(np.concatenate([task.classes for task in tasks])) == set(range(len(material.means)))
    assert all(len(task.support) == 0 for task in tasks)
    assert {int(n) for task in tasks for n in _n_shots(task)} == set(CONFIG.shots)


def test_imagined_support_lies_around_the_means_of_its_classes(material: Material) -> None:
    for task in _tasks(material, imagined=True):
        away = task.features.numpy() - material.means[task.classes][:, None]
        assert np.abs(away[task.feature_mask.numpy() > 0]).max(initial=0) < 6 * material.spread


def test_imagined_features_have_the_mean_and_spread_of_a_class(material: Material) -> None:
    rng, classes = np.random.default_rng(0), np.array([7, 0])
    drawn = imagine(material, np.repeat(classes, 4000), rng).numpy().reshape(2, 4000, N_FEATURES)
    np.testing.assert_allclose(drawn.mean(1), material.means[classes], atol=0.1)
    np.testing.assert_allclose(drawn.std(1), material.spread, rtol=0.1)
    exact = imagine(replace(material, spread=0.0), classes, rng)
    np.testing.assert_array_equal(exact.numpy(), material.means[classes])


# --- what tasks are drawn from


@pytest.fixture(scope="module")
def train(cloths: Path) -> ImageSet:
    return DATASETS["tiny-imagenet"].split(cloths, size=described.SIZE)[0]


@pytest.fixture(scope="module")
def made(cloths: Path, train: ImageSet) -> dict[float, tuple[Material, N3]]:
    """By scatter; on a base that has learned nothing."""
    torch.manual_seed(0)
    base, texts = Base(described.SPEC), descriptions.read_descriptions(descriptions.beside(cloths))
    configs = {scatter: described.config(Path("nowhere"), scatter=scatter, n_documents=6) for scatter in (1.0, 2.5)}
    return {s: prepare(config, base, train, texts, set(), small.CPU) for s, config in configs.items()}


def test_scatter_scales_what_lies_around_class_means(made: dict[float, tuple[Material, N3]], train: ImageSet) -> None:
    one, far = made[1.0][0], made[2.5][0]
    np.testing.assert_array_equal(one.means, far.means)
    middles = one.means[train.labels]
    np.testing.assert_allclose(far.features - middles, 2.5 * (one.features - middles), atol=1e-4)
    np.testing.assert_allclose(forms.class_means(far.features, train.labels), far.means, atol=1e-4)
    assert far.spread == pytest.approx(2.5 * one.spread)
    assert one.spread == pytest.approx(float((one.features - middles).std()), rel=1e-4)
    assert one.spread > 0.1


def test_priors_are_cross_fitted_and_as_long_as_means_are(made: dict[float, tuple[Material, N3]]) -> None:
    material, _ = made[1.0]
    means, priors = material.means.astype(np.float64), material.priors.astype(np.float64)
    fitted, true = _cross_fitted(material.texts.means, means)
    strength = forms.slope(fitted[:, 0], true)
    assert strength > 1
    np.testing.assert_allclose(priors, strength * fitted, rtol=1e-3, atol=1e-4)
    assert forms.slope(priors[:, 0], true) == pytest.approx(1, abs=1e-3)


def test_the_model_remembers_some_documents_of_every_class(
    made: dict[float, tuple[Material, N3]], train: ImageSet
) -> None:
    material, model = made[1.0]
    texts, means = material.texts.means, material.means.astype(np.float64)
    assert model.config.n_remembered == len(model.regression.texts) == train.n_classes * N_REMEMBERED
    fitted, true = _cross_fitted(texts, means)
    strength = forms.slope(fitted[:, 0], true)
    wanted = strength * forms.fit_regression(texts[:, :N_REMEMBERED], means)(texts[:, 5])
    found = model.regression(torch.as_tensor(texts[:, 5], dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_images_are_trusted_more_where_they_scatter_less(made: dict[float, tuple[Material, N3]]) -> None:
    """The variance of class means, over that within a class: less by the square of the scatter."""
    near, far = (made[scatter][1].fusion.log_variance.detach() for scatter in (1.0, 2.5))
    torch.testing.assert_close(near - far, torch.full_like(near, 2 * float(np.log(2.5))), atol=1e-3, rtol=0)


def test_assumed_scatter_changes_what_images_are_trusted_alone(
    made: dict[float, tuple[Material, N3]], cloths: Path, train: ImageSet
) -> None:
    torch.manual_seed(0)
    base, texts = Base(described.SPEC), descriptions.read_descriptions(descriptions.beside(cloths))
    config = described.config(Path("nowhere"), assumed_scatter=2.5, n_documents=6)
    material, model = prepare(config, base, train, texts, set(), small.CPU)
    np.testing.assert_array_equal(material.features, made[1.0][0].features)
    fusion, plain, scattered = (own.fusion.log_variance for own in (model, made[1.0][1], made[2.5][1]))
    torch.testing.assert_close(fusion, scattered, atol=1e-3, rtol=0)
    assert (fusion < plain).all()
    torch.testing.assert_close(model.log_scale, made[1.0][1].log_scale)


def test_a_class_without_text_is_named(cloths: Path, train: ImageSet) -> None:
    texts = descriptions.read_descriptions(descriptions.beside(cloths))
    some = {name: own for name, own in texts.items() if name != train.class_names[0]}
    with pytest.raises(DataError, match=train.class_names[0]):
        prepare(described.config(Path("nowhere")), Base(described.SPEC), train, some, set(), small.CPU)


@pytest.mark.parametrize("k", range(7))
def test_a_class_does_not_decide_its_own_prior(k: int) -> None:
    """Neither its mean nor its texts do: to the last bit; those of other folds change."""
    rng = np.random.default_rng(0)
    texts, means = forms.unit(rng.normal(size=(7, 5, 8))), rng.normal(size=(7, 3))
    before, _ = _cross_fitted(texts, means)
    changed = means.copy()
    changed[k] = 100
    after, _ = _cross_fitted(texts, changed)
    np.testing.assert_array_equal(after[k], before[k])
    assert (after != before).any(axis=(1, 2)).sum() >= 5
    retold = texts.copy()
    retold[k, 1:] = forms.unit(rng.normal(size=(4, 8)))
    np.testing.assert_array_equal(_cross_fitted(retold, means)[0][k, 0], before[k, 0])


def test_documents_beyond_the_remembered_ones_teach_nothing() -> None:
    rng = np.random.default_rng(0)
    texts, means = forms.unit(rng.normal(size=(7, N_REMEMBERED + 2, 8))), rng.normal(size=(7, 3))
    retold = texts.copy()
    retold[:, N_REMEMBERED:] = forms.unit(rng.normal(size=(7, 2, 8)))
    (one, _), (other, _) = _cross_fitted(texts, means), _cross_fitted(retold, means)
    np.testing.assert_array_equal(one[:, :N_REMEMBERED], other[:, :N_REMEMBERED])
    assert (one[:, N_REMEMBERED:] != other[:, N_REMEMBERED:]).all()


def test_a_class_that_no_text_says_anything_of_is_not_guessed_to_be_the_opposite() -> None:
    """What leaving it out does to the mean of the others is not taken for what texts say."""
    classes = np.eye(10)
    guessed, true = _cross_fitted(classes[:, None], classes - 0.1)
    np.testing.assert_allclose(guessed, 0, atol=1e-9)
    assert ((true > 0) == (classes > 0)).all()


@pytest.mark.parametrize("seed", range(8))
def test_texts_of_few_classes_that_say_a_little_are_not_turned_round(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(10, 4))
    means = kinds @ rng.normal(size=(4, 12)) + 0.5 * rng.normal(size=(10, 12))
    texts = forms.unit(0.5 * kinds @ rng.normal(size=(4, 32)) + rng.normal(size=(10, 32)))
    guessed, true = _cross_fitted(texts[:, None], means - means.mean(axis=0))
    assert forms.slope(guessed[:, 0], true) > 1


def test_texts_that_are_of_other_classes_say_nothing(cloths: Path, train: ImageSet) -> None:
    """Images alone still do, and every step has a gradient."""
    torch.manual_seed(0)
    base, texts = Base(described.SPEC), descriptions.read_descriptions(descriptions.beside(cloths))
    others = np.random.default_rng(0).permutation(train.n_classes)
    retold = {name: texts[train.class_names[k]] for name, k in zip(train.class_names, others, strict=True)}
    config = described.config(Path("nowhere"), n_documents=6, without_text=0.0)
    material, model = prepare(config, base, train, retold, set(), small.CPU)
    assert not material.priors.any()
    assert not model.regression.coefficients.any()
    length = model.log_scale.exp().item()
    assert length > 0.11  # 0.1, the least that is tried, is what words would say
    for shots in (0, 2):
        task = draw_task(material, replace(config, shots=(shots,)), np.random.default_rng(0), imagined=False)
        rows = model.generate(*task.inputs).weight.detach().norm(dim=1)
        torch.testing.assert_close(rows, torch.full_like(rows, length if shots else 0))
    for seed in range(4):
        n3._loss_on_images(config, model, material, small.CPU, np.random.default_rng(seed)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
