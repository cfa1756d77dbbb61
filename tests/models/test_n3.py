"""N3's algebra: order and padding say nothing, no difference is the base, and its head begins at what is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.n3 import N3, Fusion
from tests.models.small_n3 import CONFIG, Task, adapt, model, pixels, task

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def made() -> N3:
    return model()


def changes(made: N3, given: Task) -> dict[str, Tensor]:
    with torch.no_grad():
        return made.adapted(adapt(made, given))


# --- what a task is


def test_permuting_classes_permutes_rows_and_leaves_the_layers_alone(made: N3) -> None:
    given, order = task(), torch.tensor([2, 0, 3, 1])
    one, other = adapt(made, given), adapt(made, given.of(order))
    torch.testing.assert_close(other.weight, one.weight[order], **CLOSE)
    torch.testing.assert_close(other.bias, one.bias[order], **CLOSE)
    assert one.codes.keys() == other.codes.keys() == set(made.layers)
    for layer, codes in one.codes.items():
        torch.testing.assert_close(other.codes[layer], codes, **CLOSE)


def test_the_order_of_tokens_and_of_images_says_nothing(made: N3) -> None:
    given = task((3, 3, 3), (2, 2, 2))
    turned = Task(given.tokens.flip(1), given.token_mask, given.features.flip(1), given.feature_mask)
    torch.testing.assert_close(adapt(made, turned).weight, adapt(made, given).weight, **CLOSE)


def test_what_is_masked_changes_nothing_whatever_it_holds(made: N3) -> None:
    given = task()
    noise = torch.full((4, 5, CONFIG.token_dim), 7.0), torch.full((4, 2, CONFIG.n_features), -9.0)
    padded = Task(
        torch.cat([given.tokens, noise[0]], dim=1), F.pad(given.token_mask, (0, 5)),
        torch.cat([given.features, noise[1]], dim=1), F.pad(given.feature_mask, (0, 2)),
    )  # fmt: skip
    one, other = adapt(made, given), adapt(made, padded)
    torch.testing.assert_close(other.weight, one.weight, **CLOSE)
    torch.testing.assert_close(other.bias, one.bias, **CLOSE)
    for layer, codes in one.codes.items():
        torch.testing.assert_close(other.codes[layer], codes, **CLOSE)


@pytest.mark.parametrize("part", ["tokens", "features"])
def test_what_is_there_changes_rows_and_layers(made: N3, part: str) -> None:
    given = task()
    changed = given._replace(**{part: getattr(given, part) + torch.eye(4)[0][:, None, None]})
    one, other = adapt(made, given), adapt(made, changed)
    assert (one.weight - other.weight).abs().max() > 1e-3
    assert all((codes - other.codes[layer]).abs().max() > 1e-4 for layer, codes in one.codes.items())


def test_texts_and_images_of_other_classes_are_read_too(made: N3) -> None:
    """Positive evidence in a class's own text, negative in the others'."""
    given = task()
    changed = given._replace(tokens=given.tokens + torch.eye(4)[3][:, None, None])
    assert (adapt(made, given).weight[0] - adapt(made, changed).weight[0]).abs().max() > 1e-4


# --- what it writes


def test_with_mu_zero_the_network_is_the_base_exactly() -> None:
    made = model(replace(CONFIG, adapts=("",)))
    with torch.no_grad():
        for layer in made.layers:
            made.decoder(layer).mu.zero_()
            made.decoder(layer).gamma.fill_(1.0)
    adaptation, images = adapt(made, task()), pixels(3)
    for name, value in made.adapted(adaptation).items():
        assert torch.equal(value, made.target.base.network.get_parameter(name)), name
    with torch.no_grad():
        by_the_base = made.logits(adaptation, made.target.base(images))
        torch.testing.assert_close(made.classify(adaptation, images), by_the_base)


def test_every_layer_is_adapted_from_exactly_the_base_and_learns_to_be_another() -> None:
    torch.manual_seed(0)
    made = N3(replace(CONFIG, adapts=("",)))
    made.start_decoders()
    assert made.layers == tuple(made.target.base.convolutions)
    made.target.requires_grad_(False)
    adapted = made.adapted(made.generate(*task()))
    for name, value in adapted.items():
        torch.testing.assert_close(value, made.target.base.network.get_parameter(name))
    torch.stack([value.square().sum() for value in adapted.values()]).sum().backward()
    for layer in made.layers:
        assert made.decoder(layer).values.weight.grad is not None
        assert float(made.decoder(layer).values.weight.grad.abs().sum()) > 0, layer


def test_a_column_of_a_weight_is_gamma_theta_plus_mu_times_its_codes_times_the_basis(made: N3) -> None:
    adaptation = adapt(made, task())
    adapted = changes(made, task())
    for layer, codes in adaptation.codes.items():
        decoder, convolution = made.decoder(layer), made.target.base.convolutions[layer]
        assert convolution.bias is not None
        mu = CONFIG.mu * decoder.mu
        for o in (0, convolution.out_channels - 1):
            difference = sum(codes[o, r] * decoder.basis[r] for r in range(CONFIG.code_dim))
            column = decoder.gamma * convolution.weight[o].flatten() + mu * difference[:-1]
            torch.testing.assert_close(adapted[f"{layer}.weight"][o].flatten(), column.detach(), **CLOSE)
            bias = decoder.gamma * convolution.bias[o] + mu * difference[-1]
            torch.testing.assert_close(adapted[f"{layer}.bias"][o], bias.detach(), **CLOSE)


@pytest.mark.parametrize("adapts", [(), ("features.3", "features.12.squeeze")], ids=["head alone", "some"])
def test_only_the_layers_asked_for_are_adapted(adapts: tuple[str, ...]) -> None:
    made = model(replace(CONFIG, adapts=adapts))
    adapted = changes(made, task())
    assert {name for name in adapted if not name.startswith(adapts)} == set()
    assert len(adapted) == 2 * len(made.layers) == (8 if adapts else 0)


def test_gamma_is_learned_unless_it_is_held() -> None:
    learned, held = N3(CONFIG), N3(replace(CONFIG, gamma=0.9))
    layer = learned.layers[0]
    assert learned.decoder(layer).gamma.requires_grad
    assert not held.decoder(layer).gamma.requires_grad
    assert float(held.decoder(layer).gamma) == pytest.approx(0.9)


def test_an_image_is_classified_on_its_own(made: N3) -> None:
    adaptation, images = adapt(made, task()), pixels(4)
    with torch.no_grad():
        together = made.classify(adaptation, images)
        for i in range(4):
            torch.testing.assert_close(made.classify(adaptation, images[i : i + 1])[0], together[i], **CLOSE)
    assert (together[0] - together[1]).abs().max() > 1e-3


# --- its head


def test_fusion_is_bayes_rule_for_the_mean_of_a_gaussian() -> None:
    """Against the posterior worked out by precisions: of the prior, and of n images of variance 1."""
    torch.manual_seed(1)
    fusion = Fusion(CONFIG)
    with torch.no_grad():
        fusion.log_variance.normal_(0, 1)
    n_features = CONFIG.n_features
    prior, means = torch.randn(3, n_features), torch.randn(3, n_features)
    has_text, n_images = torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[2.0], [5.0], [0.0]])
    found = fusion(prior, has_text, means, n_images)
    for k in range(3):
        precision = torch.exp(-fusion.log_variance[int(has_text[k])])
        total = precision + n_images[k]
        torch.testing.assert_close(found[k], (precision * prior[k] + n_images[k] * means[k]) / total, **CLOSE)


def untrained(n_classes: int) -> tuple[N3, Task, Tensor]:
    """A model whose networks add nothing yet, a task of words alone, and what its regression makes of them."""
    made = model()
    with torch.no_grad():
        made.difference.weight.zero_()
        made.difference.bias.zero_()
        made.log_scale.fill_(math.log(2.0))
    given = task((5,) * n_classes, (0,) * n_classes)
    with torch.no_grad():
        return made, given, made.regression(F.normalize(given.tokens.sum(1), dim=-1))


def test_before_training_a_row_is_what_the_text_says_scaled_alike_for_all() -> None:
    made, given, means = untrained(4)
    adaptation = adapt(made, given)
    torch.testing.assert_close(adaptation.weight, 2.0 * means / means.norm(dim=1, keepdim=True), **CLOSE)
    assert not adaptation.bias.any()


def test_a_prior_given_stands_for_the_regression() -> None:
    made, given, means = untrained(3)
    with torch.no_grad():
        one, other = made.generate(*given), made.generate(*given, prior=means)
        moved = made.generate(*given, prior=means + 1)
    torch.testing.assert_close(other.weight, one.weight, **CLOSE)
    assert (moved.weight - one.weight).abs().min() > 1e-2


def test_a_class_without_text_rests_on_its_images() -> None:
    made, given, _ = untrained(3)
    silent = given._replace(token_mask=torch.zeros_like(given.token_mask), feature_mask=torch.ones(3, 1))
    variance = made.fusion.log_variance[0].detach().exp()
    expected = given.features[:, 0] * variance / (1 + variance)
    torch.testing.assert_close(adapt(made, silent).weight, 2.0 * F.normalize(expected, dim=1), **CLOSE)


# --- learning


def test_a_loss_reaches_every_parameter_that_is_to_be_learned() -> None:
    """Cross-attention's ``norm_memory`` alone has no use in these blocks."""
    made = model().train()
    loss = F.cross_entropy(made.classify(made.generate(*task()), pixels(4)), torch.arange(4))
    torch.autograd.backward(loss)
    learned = {name: p for name, p in made.named_parameters() if not name.startswith("target.")}
    without = {name for name, p in learned.items() if p.grad is None or not p.grad.abs().max() > 0}
    assert {name for name in without if "norm_memory" not in name} == set()
