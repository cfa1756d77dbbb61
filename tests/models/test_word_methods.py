"""What N3 is compared with: each query alone, classes in any order, gradients everywhere, losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.methods.linear_map import LinearMap, LinearMapConfig
from models.methods.megazsl import Batch, Megazsl, MegazslConfig
from models.methods.pdcnn import PDCNN, PDCNNConfig
from models.methods.text2model import Text2Model, Text2ModelConfig

K, D, Q, F, M = 4, 6, 9, 5, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FC = PDCNNConfig(D, F, n_hidden=16, n_embedding=7)
GAN = MegazslConfig(D, F, n_classes=K, n_reduced=8, n_noise=3, n_hidden=16, n_imagined=10)
NAMES = ("linear", "text2model", "pdcnn-fc", "pdcnn-fc-conv")
METHODS = pytest.mark.parametrize("name", NAMES)
LEARNED = pytest.mark.parametrize("name", NAMES[1:])


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    methods = {
        "linear": lambda: LinearMap(LinearMapConfig(D, F)),
        "text2model": lambda: Text2Model(Text2ModelConfig(D, F, n_hidden=16)),
        "pdcnn-fc": lambda: PDCNN(FC),
        "pdcnn-fc-conv": lambda: PDCNN(replace(FC, n_channels=M)),
    }
    method: nn.Module = methods[name]()
    for buffer in method.buffers():  # a linear map has no parameters, and begins at zero
        buffer.normal_()
    return method


def given(n_classes: int = K) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes = (n_classes, D), (Q, F), (Q, M, 4, 4)
    texts, features, maps = (torch.randn(shape, generator=random) for shape in shapes)
    return texts, features, maps


def batch(n: int = 12) -> Batch:
    random = torch.Generator().manual_seed(2)
    labels = torch.arange(n) % K
    features, texts, noise = (torch.randn(n, width, generator=random) for width in (F, D, GAN.n_noise))
    return Batch(features, labels, texts, noise, torch.rand(n, 1, generator=random))


# --- what makes a classifier of texts


@METHODS
def test_every_query_has_a_logit_of_every_class_and_is_answered_alone(name: str) -> None:
    method, (texts, features, maps) = made(name), given()
    logits = method(texts, features, maps)
    assert logits.shape == (Q, K)
    alone = torch.cat([method(texts, features[i : i + 1], maps[i : i + 1]) for i in range(Q)])
    torch.testing.assert_close(alone, logits, **CLOSE)


@METHODS
def test_permuting_the_classes_permutes_the_logits(name: str) -> None:
    method, (texts, features, maps), order = made(name), given(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(method(texts[order], features, maps), method(texts, features, maps)[:, order], **CLOSE)


@LEARNED
def test_gradients_reach_every_parameter(name: str) -> None:
    method = made(name)
    method(*given()).square().sum().backward()  # what is added to all logits alike has no slope in a cross-entropy
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_only_text2model_reads_the_other_classes() -> None:
    texts, features, maps = given()
    changed = texts + torch.eye(K)[K - 1][:, None]
    for name in NAMES:
        method = made(name)
        before, after = method(texts, features, maps)[:, 0], method(changed, features, maps)[:, 0]
        assert bool((before - after).abs().max() > 1e-3) is (name == "text2model"), name


def test_text2model_weighs_many_classes_as_few() -> None:
    method, (texts, *_) = Text2Model(Text2ModelConfig(D, F)), given()
    once, twice = method.classifier(texts), method.classifier(texts.repeat(2, 1))
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two[:K], one, **CLOSE)


def test_a_linear_map_answers_with_the_nearest_mean() -> None:
    method, (texts, features, _) = LinearMap(LinearMapConfig(D, F)), given()
    method.weight.normal_()
    method.bias.normal_()
    means = texts @ method.weight.T + method.bias
    assert method(texts, features).argmax(1).tolist() == torch.cdist(features, means).argmin(1).tolist()


def test_pdcnn_adds_the_mean_of_what_its_filters_find() -> None:
    method, (texts, features, maps) = made("pdcnn-fc-conv"), given()
    assert isinstance(method, PDCNN)
    reduced = torch.relu(method.reduce(maps))
    filters = method.text_filters(texts).view(K, FC.n_maps, 3, 3)
    found = nn.functional.unfold(reduced, 3, padding=1)  # (Q, n_maps * 9, places)
    by_filter = torch.einsum("qfp,kf->qkp", found, filters.flatten(1)).mean(2)
    by_rows = method.image_embedding(features) @ method.text_rows(texts).T
    torch.testing.assert_close(method(texts, features, maps), by_rows + by_filter, **CLOSE)


def test_pdcnn_with_filters_wants_maps() -> None:
    texts, features, _ = given()
    with pytest.raises(ValueError, match="give them, or a config without n_channels"):
        made("pdcnn-fc-conv")(texts, features)


# --- what imagines features


def test_the_critics_loss_by_hand() -> None:
    """A critic of slope 3 along one axis: the penalty is 10 (3 - 1)^2, and it tells no class from another."""
    method, drawn = Megazsl(replace(GAN, n_hidden=1)), batch()
    with torch.no_grad():
        for parameter in method.critic_parameters():
            parameter.zero_()
        method.critic[0].weight[0, 2] = 3.0
        method.critic[0].bias += 100.0  # where the ReLU is straight
        method.reality.weight += 1.0
    imagined = method.imagine(drawn.texts, drawn.noise)
    distance = 3 * (imagined[:, 2].mean() - drawn.features[:, 2].mean())
    expected = distance + 10 * (3 - 1) ** 2 + math.log(K)
    torch.testing.assert_close(method.critic_loss(drawn), expected, **CLOSE)


def test_the_generators_loss_has_the_distance_of_class_means() -> None:
    method, drawn = Megazsl(GAN), batch()
    imagined = method.imagine(drawn.texts, drawn.noise)
    true = torch.stack([imagined[drawn.labels == k].mean(dim=0) for k in range(K)]).detach()
    real, logits = method.judge(imagined)
    least = nn.functional.cross_entropy(logits, drawn.labels) - real.mean()
    torch.testing.assert_close(method.generator_loss(drawn, true), least, **CLOSE)
    torch.testing.assert_close(method.generator_loss(drawn, true + 2.0), least + F * 4.0, **CLOSE)


def test_a_class_that_was_not_drawn_has_no_distance() -> None:
    method, drawn = Megazsl(GAN), batch()
    without = drawn._replace(labels=drawn.labels.clamp(max=K - 2))
    means = torch.zeros(K, F)
    elsewhere = means + 1e6 * torch.eye(K)[K - 1][:, None]
    torch.testing.assert_close(method.generator_loss(without, elsewhere), method.generator_loss(without, means))


def test_each_loss_reaches_all_that_its_step_changes_and_the_two_make_up_the_whole() -> None:
    method = Megazsl(GAN)
    losses = {
        "critic": (method.critic_loss(batch()), method.critic_parameters()),
        "generator": (method.generator_loss(batch(), torch.zeros(K, F)), method.generator_parameters()),
    }
    for name, (loss, parameters) in losses.items():
        slopes = torch.autograd.grad(loss, parameters)
        still = [p for p, slope in zip(parameters, slopes, strict=True) if not slope.abs().max() > 0]
        assert all(p is method.reality.bias for p in still), name  # it cancels between what is real and imagined
    assert {id(p) for _, own in losses.values() for p in own} == {id(p) for p in method.parameters()}


def test_the_critic_does_not_move_the_generator() -> None:
    method = Megazsl(GAN)
    slopes = torch.autograd.grad(method.critic_loss(batch()), method.generator_parameters(), allow_unused=True)
    assert set(slopes) == {None}


def test_imagined_features_are_of_each_class_alone_and_the_same_each_time() -> None:
    method, (texts, *_) = Megazsl(GAN), given()
    imagined = method.imagine_classes(texts)
    assert imagined.shape == (K, GAN.n_imagined, F)
    assert torch.equal(method.imagine_classes(texts), imagined)
    torch.testing.assert_close(method.imagine_classes(texts[2:3]), imagined[2:3], **CLOSE)
    assert imagined.std(dim=1).min() > 0
