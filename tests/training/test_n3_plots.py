"""What a report shows of N3 is what its networks do: figures by hand on a small trained one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models import metamodel
from models.metamodel import CODES
from training import n3_plots, n3_probes, plots
from training.data.descriptions import beside, read_descriptions
from training.data.folders import DataError, read_images
from training.described_tasks import Subject as Network
from training.subjects import Images, Options, Subject, read_subjects

LAYERS = ("features.12.squeeze", "features.12.expand1x1")


@pytest.fixture(scope="module")
def network(cloths: Path, cloth_zoo: Path) -> Network:
    meta_model = metamodel.load(cloth_zoo / "cloths")
    images = read_images(cloths, meta_model.manifest.preprocess)
    return Network(meta_model, images, read_descriptions(beside(cloths)))


@pytest.fixture(scope="module")
def subject(cloth_zoo: Path) -> Subject:
    (subject,) = read_subjects(cloth_zoo, [])
    return subject


@pytest.fixture(scope="module")
def options(cloths: Path) -> Options:
    return Options(Images(cloths))


class Still(Network):
    """One whose decoders write nothing: every layer stays as it is."""

    def write(self, classes):  # type: ignore[no-untyped-def]
        written = super().write(classes)
        return {name: 0 * value if name.endswith(CODES) else value for name, value in written.items()}


# --- what is computed


def test_magnitudes_are_the_length_of_the_change_over_that_of_the_weight(network: Network) -> None:
    found = n3_probes.magnitudes(network, 2, 3, seed=0)
    assert found.layers == LAYERS
    assert found.kinds == ("convolution 1 x 1", "convolution 1 x 1")
    assert found.relative.shape == (2, 2)
    _, classes = n3_probes._task(network, 3, 1, np.random.default_rng(0))
    weights = network.meta_model.weights(network.write(classes))
    for place, layer in enumerate(LAYERS):
        name = f"base.network.{layer}.weight"
        base = network.meta_model.base
        theta = base[f"base.network.{layer}.gamma"] * base[name].astype(np.float64)
        change = np.sqrt(((weights[name].astype(np.float64) - theta) ** 2).sum() / (theta**2).sum())
        assert found.relative[0, place] == pytest.approx(change, rel=1e-3)
        assert change > 0


def test_where_no_code_is_written_nothing_is_added(network: Network, cloths: Path) -> None:
    still = Still(network.meta_model, network.images, read_descriptions(beside(cloths)))
    moved, unmoved = (n3_probes.magnitudes(own, 2, 3, seed=0).relative for own in (network, still))
    assert (moved > 0).all()
    np.testing.assert_array_equal(unmoved, 0)


def test_features_before_are_the_bases_and_after_the_written_networks(network: Network) -> None:
    found = n3_probes.before_and_after(network, 3, 4, seed=1)
    assert found.before.shape == found.after.shape == (12, 8)
    assert len(found.names) == 3
    episode, classes = n3_probes._task(network, 3, 4, np.random.default_rng(1))
    np.testing.assert_allclose(found.before, network.features[episode.query], rtol=1e-4, atol=1e-4)
    assert np.abs(found.after - found.before).max() > 1e-3
    written = network.write(classes)
    logits = found.after @ written["logits.weight"].T + written["logits.bias"]
    assert found.accuracy == pytest.approx((logits.argmax(1) == found.labels).mean())


def test_a_confusion_matrix_counts_answers(network: Network) -> None:
    found = n3_probes.confusion(network, 4, seed=0)
    assert found.shares.shape == (12, 12)
    assert found.n_images == 48
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert sorted(found.names) == sorted(own.name for own in network.texts)
    episode, classes = n3_probes._task(network, 12, 4, np.random.default_rng(0))
    answers = network.network(network.write(classes))(episode.query).argmax(-1)
    names = [spec.name for spec in classes]
    for true, called in ((found.names[0], found.names[1]), (found.names[5], found.names[5])):
        of_class = episode.query_labels == names.index(true)
        share = (answers[of_class] == names.index(called)).mean()
        assert found.shares[found.names.index(true), found.names.index(called)] == pytest.approx(share)


def test_classes_that_are_taken_for_one_another_become_neighbours() -> None:
    shares = np.eye(6)
    for i, j in ((0, 5), (1, 3)):
        shares[[i, j]] = 0
        shares[np.ix_([i, j], [i, j])] = 0.5
    order = n3_probes._alike_close(shares).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4, 5]
    assert abs(order.index(0) - order.index(5)) == abs(order.index(1) - order.index(3)) == 1


def test_spread_is_zero_for_points_and_one_where_classes_are_nothing() -> None:
    labels = np.repeat(np.arange(3), 4)
    assert n3_probes.spread(np.eye(3)[labels], labels) == 0
    alike = np.tile(np.random.default_rng(0).normal(size=(4, 5)), (3, 1))
    assert n3_probes.spread(alike, labels) == pytest.approx(1)


# --- what is drawn


@pytest.mark.parametrize("draw", [n3_plots.magnitudes, n3_plots.before_and_after, n3_plots.confusion])
def test_every_plot_says_what_it_shows_and_from_what(draw, subject: Subject, options: Options) -> None:  # type: ignore[no-untyped-def]
    with plots.style():
        plot = draw(subject, options)
        again = draw(subject, options)
    assert plot == again
    assert plot.svg.startswith(b"<?xml")
    assert len(plot.alt) > 20
    digest = options.images.of("", subject.meta_model.manifest.preprocess).digest
    assert f"seed 0, data digest {digest} (12 classes)" in plot.caption


def test_the_figures_in_a_caption_are_those_that_were_measured(
    network: Network, subject: Subject, options: Options
) -> None:
    found = n3_probes.magnitudes(network, n3_plots.N_TASKS, n3_plots.WAYS, seed=0)
    means = 100 * found.relative.mean(axis=0)
    with plots.style():
        caption = n3_plots.magnitudes(subject, options).caption
    assert f"convolution 1 x 1 {means.mean():.2f} %" in caption
    assert f"Most changes {LAYERS[int(means.argmax())]}: {means.max():.2f} %" in caption
    shares = n3_probes.confusion(network, n3_plots.N_IMAGES, seed=0).shares
    with plots.style():
        assert f"{100 * np.diag(shares).mean():.1f} % are right" in n3_plots.confusion(subject, options).caption


def test_bars_are_as_long_as_the_changes_and_kinds_their_means() -> None:
    mean = np.array([1.0, 2.0, 6.0])
    figure = plots.magnitudes(("a", "b", "c"), ("x", "y", "x"), mean, np.zeros(3))
    upper, lower = figure.axes
    assert [bar.get_width() for bar in upper.patches] == [1, 2, 6]
    assert [bar.get_width() for bar in lower.patches] == [3.5, 2]
    assert [label.get_text() for label in lower.get_yticklabels()] == ["x", "y"]


def test_where_no_layer_is_adapted_there_is_nothing_to_draw(network: Network, cloths: Path) -> None:
    manifest = network.meta_model.manifest
    kept = {name: spec for name, spec in manifest.tensors.items() if name.startswith("logits")}
    alone = SimpleNamespace(base=network.meta_model.base, manifest=manifest.model_copy(update={"tensors": kept}))
    still = Network(alone, network.images, read_descriptions(beside(cloths)))  # type: ignore[arg-type]
    for probe in (n3_probes.magnitudes, n3_probes.before_and_after):
        with pytest.raises(DataError, match="no layer but the classification layer"):
            probe(still, 2, 3, 0)
