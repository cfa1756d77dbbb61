"""The algebra of the HyperTransformer: what may change nothing, what must permute, and that every part learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.hypertransformer import EPS, HyperTransformer, HyperTransformerConfig
from models.nn.conv4 import Pooling
from tests.models import golden, small
from tests.models.small import CONFIG, Tasks, answers

VARIANTS = {
    "all layers": CONFIG,
    "spatial": replace(CONFIG, allocation="spatial"),
    "encoder-decoder": replace(CONFIG, architecture="encoder-decoder"),
    "last two, base": replace(CONFIG, n_generated_layers=2, normalisation="base"),
    "logits alone, base": replace(CONFIG, n_generated_layers=1, normalisation="base"),
    "logits alone, support": replace(CONFIG, n_generated_layers=1),
    "borders pooled": replace(CONFIG, pooling="ceil"),
    "shifted": replace(CONFIG, shifted_support=3),
    "features of unit length, mirrored": replace(
        CONFIG, n_generated_layers=1, normalisation="base", unit_features=True, mirrored_support=True
    ),
}
UNBALANCED = (1, 4, 2)

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def assert_equal(one: Tensor, other: Tensor) -> None:
    """To 1e-5 of the largest number."""
    assert one.shape == other.shape
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def permuted(given: Tasks, order: Tensor) -> Tasks:
    return given._replace(support=given.support[:, order], labels=given.labels[:, order])


# --- what the order of things may and may not change


@variants
def test_the_order_of_support_images_changes_nothing(config: HyperTransformerConfig) -> None:
    model, given = small.model(config), small.tasks(config, shots=UNBALANCED, n_unlabeled=2)
    order = torch.randperm(given.labels.shape[1], generator=torch.Generator().manual_seed(1))
    assert_equal(answers(model, permuted(given, order)), answers(model, given))


@variants
def test_permuting_the_slots_permutes_the_answers(config: HyperTransformerConfig) -> None:
    model, given = small.model(config), small.tasks(config, shots=UNBALANCED)
    order = torch.tensor([2, 0, 1])
    assert_equal(answers(model, given._replace(slots=given.slots[:, order])), answers(model, given)[..., order])


@variants
def test_permuting_the_classes_with_their_images_permutes_the_answers(config: HyperTransformerConfig) -> None:
    """Images in another order, classes asked for in another order, each class keeping its slot."""
    model, given = small.model(config), small.tasks(config, shots=(2, 2, 2), n_unlabeled=0)
    classes = torch.tensor([1, 2, 0])
    images = torch.cat([torch.arange(2 * k, 2 * k + 2) for k in classes])
    turned = permuted(given, images)._replace(slots=given.slots[:, classes])
    assert_equal(answers(model, turned), answers(model, given)[..., classes])


@variants
def test_a_prediction_depends_on_its_own_image_alone(config: HyperTransformerConfig) -> None:
    model, given = small.model(config), small.tasks(config, n_query=5)
    whole = answers(model, given)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_equal(answers(model, given._replace(queries=given.queries[:, order])), whole[:, order])
    parts = [answers(model, given._replace(queries=part)) for part in given.queries.split([2, 3], dim=1)]
    assert_equal(torch.cat(parts, dim=1), whole)
    alone = [answers(model, given._replace(queries=given.queries[:, i : i + 1])) for i in range(5)]
    assert_equal(torch.cat(alone, dim=1), whole)


def test_with_the_papers_query_statistics_it_does_not() -> None:
    """The control of the test above: the named option for comparison, off by default, is transductive."""
    model, given = small.model(replace(CONFIG, normalisation="query")), small.tasks(n_query=5)
    alone = answers(model, given._replace(queries=given.queries[:, :1]))
    assert (alone - answers(model, given)[:, :1]).abs().max() > 1e-2
    assert CONFIG.normalisation == HyperTransformerConfig().normalisation == "support"


@pytest.mark.parametrize(
    "config", [*VARIANTS.values(), replace(CONFIG, normalisation="query")], ids=[*VARIANTS, "query statistics"]
)
def test_tasks_in_one_batch_are_answered_as_one_at_a_time(config: HyperTransformerConfig) -> None:
    model, given = small.model(config), small.tasks(config, n_tasks=3, shots=UNBALANCED)
    one_by_one = [answers(model, Tasks(*(t[b : b + 1] for t in given))) for b in range(3)]
    assert_equal(answers(model, given), torch.cat(one_by_one))


# --- what is written


def without_differences(config: HyperTransformerConfig) -> HyperTransformer:
    """A shaken model whose written differences are put back to zero, as at the start of training."""
    model = small.model(config)
    with torch.no_grad():
        for generator in [*model.convs, model.logits]:
            generator.read_out.weight.zero_()
            generator.read_out.bias.zero_()
    return model


def base_features(model: HyperTransformer, support: Tensor, images: Tensor) -> Tensor:
    """The base network in plain PyTorch, batch-normalised with the statistics of one task's support set."""
    config = model.config
    for layer, (weight, gamma, beta) in enumerate(zip(model.base, model.gammas, model.betas, strict=True), start=1):
        support, images = F.conv2d(support, weight, padding=1), F.conv2d(images, weight, padding=1)
        mean, var = support.mean((0, 2, 3)), support.var((0, 2, 3), unbiased=False)
        normalised = (F.batch_norm(x, mean, var, gamma, beta, eps=EPS) for x in (support, images))
        support, images = (F.relu(x) for x in normalised)
        if config.pools_last or layer < config.n_conv_layers:
            support, images = (F.max_pool2d(x, 2, ceil_mode=config.pooling == "ceil") for x in (support, images))
    return images.flatten(1)


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("pools_last", [True, False])
@pytest.mark.parametrize("allocation", ["output", "spatial"])
def test_zero_differences_are_the_base_network(allocation: Any, pools_last: bool, pooling: Pooling) -> None:
    config = replace(CONFIG, allocation=allocation, pooling=pooling, pools_last=pools_last)
    model, given = without_differences(config), small.tasks(config)
    with torch.no_grad():
        network = model.generate(given.support, given.labels, given.slots)
        found = model.features(network, given.queries)
        for task in range(2):
            assert_equal(found[task], base_features(model, given.support[task], given.queries[task]))


def test_features_of_unit_length_are_directions() -> None:
    """The same network's features, each image's scaled to a mean square of one."""
    plain, unit = (small.model(replace(CONFIG, unit_features=value)) for value in (False, True))
    given = small.tasks()
    with torch.no_grad():
        found, expected = (m.features(m.generate(given.support, given.labels, given.slots), given.queries)
                           for m in (unit, plain))  # fmt: skip
    assert_equal(found, expected / expected.square().mean(-1, keepdim=True).sqrt())


def test_mirrored_support_is_as_good_as_further_images() -> None:
    config = replace(CONFIG, n_generated_layers=1, normalisation="base")
    plain, mirrored = (small.model(replace(config, mirrored_support=value)) for value in (False, True))
    given = small.tasks(config)
    both = torch.cat([given.support, given.support.flip(-1)], dim=1)
    with torch.no_grad():
        expected = plain.classify(
            plain.generate(both, torch.cat([given.labels] * 2, dim=1), given.slots), given.queries
        )
        network, (attention,) = mirrored.generate_with_attention(given.support, given.labels, given.slots)
    assert_equal(mirrored.classify(network, given.queries), expected)
    assert attention.shape == (2, 3, given.labels.shape[1])
    assert_equal(attention.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize("normalisation", ["support", "base"])
def test_features_of_the_support_are_means_over_its_shifts(normalisation: Any) -> None:
    """Of a model as it starts, whose logits layer is made of the attended features alone."""
    torch.manual_seed(0)
    config = replace(CONFIG, normalisation=normalisation, shifted_support=2)
    model, given = HyperTransformer(config).eval(), small.tasks(config)
    shifts = []
    for rows, columns in ((-2, 0), (2, 0), (0, -2), (0, 2), (0, 0)):
        at = [(torch.arange(config.image_size) + by).clamp(0, config.image_size - 1) for by in (rows, columns)]
        shifts.append(given.support[..., at[0][:, None], at[1]])
    with torch.no_grad():
        network, attentions = model.generate_with_attention(given.support, given.labels, given.slots)
        features = torch.stack([model.features(network, images) for images in shifts]).mean(0)
        expected = 2 * model.logits.log_metric.exp() * (attentions[-1] @ features)
    assert_equal(network.logits[0], expected)


def test_training_sees_support_images_as_they_are() -> None:
    plain, shifted = (small.model(replace(CONFIG, shifted_support=value)) for value in (0, 3))
    given = small.tasks()
    as_trained, as_used = answers(shifted.train(), given), answers(shifted.eval(), given)
    torch.testing.assert_close(as_trained, answers(plain, given), rtol=0, atol=0)
    assert not torch.allclose(as_used, as_trained)


def test_a_model_starts_with_zero_differences() -> None:
    torch.manual_seed(0)
    model, given = HyperTransformer(CONFIG).eval(), small.tasks()
    with torch.no_grad():
        network = model.generate(given.support, given.labels, given.slots)
    for layer, (weight, _) in enumerate(network.convs):
        kernels = weight.unflatten(0, (2, -1))
        scale = (kernels / model.base[layer].detach()).flatten(2)
        assert_equal(scale, scale.mean(-1, keepdim=True).expand_as(scale))


@pytest.mark.parametrize(("unit_features", "n_numbers"), [(False, CONFIG.feature_dim), (True, 1)])
def test_without_differences_logits_are_distances_to_class_means(unit_features: bool, n_numbers: int) -> None:
    """Section 4.2's read-out, its attention on the class's own images: a closed form in a learned diagonal metric.

    Of features of unit length it is one number.
    """
    model = without_differences(replace(CONFIG, unit_features=unit_features))
    assert model.logits.log_metric.shape == (n_numbers,)
    given = small.tasks(shots=UNBALANCED, n_unlabeled=2)
    with torch.no_grad():
        model.logits.query.weight.zero_()
        model.logits.query.bias.zero_()
        model.logits.same_label.fill_(1e4)
        network = model.generate(given.support, given.labels, given.slots)
        support, queries = model.features(network, given.support), model.features(network, given.queries)
        found, metric = model.classify(network, given.queries), model.logits.log_metric.exp()
    for task in range(2):
        means = [support[task][given.labels[task] == slot].mean(0) for slot in given.slots[task]]
        distances = torch.stack([(metric * (queries[task] - mean) ** 2).sum(-1) for mean in means], dim=-1)
        expected = (metric * queries[task] ** 2).sum(-1, keepdim=True) - distances
        assert_equal(found[task], expected)


def test_each_layer_sees_the_activations_of_the_layers_written_before_it() -> None:
    """Changing the first layer's written difference changes what is written for the second and the logits."""
    model, given = small.model(), small.tasks()
    with torch.no_grad():
        before = model.generate(given.support, given.labels, given.slots)
        model.convs[0].read_out.bias += 0.3 * torch.randn_like(model.convs[0].read_out.bias)
        after = model.generate(given.support, given.labels, given.slots)
    for (old, _), (new, _) in zip(before.convs, after.convs, strict=True):
        assert (old - new).abs().max() > 1e-4
    assert (before.logits[0] - after.logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("n_generated_layers", range(1, 6))
def test_the_last_n_layers_are_written_for_the_task(n_generated_layers: int) -> None:
    """Two tasks with base statistics: where nothing is written their convolutions are equal, else not."""
    config = replace(CONFIG, n_generated_layers=n_generated_layers, normalisation="base")
    model, given = small.model(config), small.tasks(config)
    with torch.no_grad():
        one, two = (
            model.generate(given.support[b : b + 1], given.labels[b : b + 1], given.slots[b : b + 1]) for b in (0, 1)
        )
    equal = [torch.equal(a, b) for (a, _), (b, _) in zip(one.convs, two.convs, strict=True)]
    n_shared = 5 - n_generated_layers
    assert equal == [True] * n_shared + [False] * (4 - n_shared)
    assert not torch.equal(one.logits[0], two.logits[0])
    assert config.writes_convs == (n_generated_layers > 1)


# --- unlabelled and unbalanced support


def test_unlabelled_images_count_and_are_told_from_labelled_ones() -> None:
    model, given = small.model(), small.tasks(n_unlabeled=2)
    whole = answers(model, given)
    without = given._replace(support=given.support[:, :-2], labels=given.labels[:, :-2])
    assert (answers(model, without) - whole).abs().max() > 1e-4
    labelled = given._replace(labels=given.labels.clone())
    labelled.labels[:, -1] = given.slots[:, 0]
    assert (answers(model, labelled) - whole).abs().max() > 1e-4


def test_the_unlabelled_token_is_one_of_its_own_and_belongs_to_no_class() -> None:
    model, given = small.model(), small.tasks(n_unlabeled=1)
    whole = answers(model, given)
    with torch.no_grad():
        model.labels.weight[CONFIG.max_classes] += 1.0
    assert (answers(model, given) - whole).abs().max() > 1e-4
    only_labelled = small.tasks(n_unlabeled=0)
    before = answers(model, only_labelled)
    with torch.no_grad():
        model.labels.weight[CONFIG.max_classes] += 1.0
    assert torch.equal(answers(model, only_labelled), before)
    _, attentions = model.generate_with_attention(given.support, given.labels, given.slots)
    own = (given.slots[:, :, None] == given.labels[:, None, :]).float()
    assert own[..., -1].sum() == 0
    assert (attentions[-1][..., -1] < attentions[-1].masked_fill(own == 0, 1).amin(-1)).all()


@variants
@pytest.mark.parametrize("shots", [(1, 1), (5, 1), (1, 2, 3, 4), (1,) * 12], ids=str)
def test_any_number_of_classes_of_any_sizes(config: HyperTransformerConfig, shots: tuple[int, ...]) -> None:
    found = answers(small.model(config), small.tasks(config, shots=shots, n_unlabeled=0))
    assert found.shape == (2, 4, len(shots))
    assert found.isfinite().all()


# --- every architecture runs and learns

LAYOUTS = [
    *product(("output", "spatial"), ("encoder", "encoder-decoder"), range(1, 6), ("support", "base", "query")),
]


def has_no_use(name: str, config: HyperTransformerConfig) -> bool:
    """Parameters that take part in nothing: a block's norm of the memory, where it attends to its own tokens."""
    crossing = config.architecture == "encoder-decoder" and ".decoder." in name
    return "norm_memory" in name and not crossing


@pytest.mark.parametrize(("allocation", "architecture", "n_generated_layers", "normalisation"), LAYOUTS)
def test_every_layout_runs_and_all_its_parameters_learn(
    allocation: Any, architecture: Any, n_generated_layers: int, normalisation: Any
) -> None:
    config = replace(
        CONFIG, allocation=allocation, architecture=architecture, n_generated_layers=n_generated_layers,
        normalisation=normalisation, negative_slope=0.1,
    )  # fmt: skip
    model, given = small.model(config).train(), small.tasks(config, shots=UNBALANCED)
    logits = model.classify(model.generate(given.support, given.labels, given.slots), given.queries)
    targets = torch.tensor([[0, 1, 2, 0]]).expand(2, -1)
    torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    for name, parameter in model.named_parameters():
        if has_no_use(name, config):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            if not name.endswith("key.bias"):  # it adds the same to every score, and so nothing to the attention
                assert parameter.grad.abs().max() > 0, name
    unlabelled = model.labels.weight.grad[config.max_classes]
    assert unlabelled.abs().max() > 0


@pytest.mark.parametrize("channels", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("n_generated_layers", [1, 5])
def test_every_width_of_drawings(channels: int, n_generated_layers: int) -> None:
    config = replace(CONFIG, channels=channels, n_generated_layers=n_generated_layers)
    assert config.feature_dim == channels
    check_width(config)


@pytest.mark.parametrize(("size", "pooling", "side"), [(32, "floor", 2), (84, "floor", 5), (84, "ceil", 6)])
@pytest.mark.parametrize("channels", [8, 64])
def test_every_size_of_photographs(size: int, pooling: Pooling, side: int, channels: int) -> None:
    config = replace(
        CONFIG, channels=channels, image_channels=3, image_size=size, n_generated_layers=2, pooling=pooling
    )
    assert config.feature_dim == channels * side**2
    check_width(config)


def test_a_last_convolution_that_is_not_pooled_has_four_times_the_features() -> None:
    config = replace(CONFIG, image_channels=3, image_size=32, pools_last=False)
    assert config.feature_dim == 4 * replace(config, pools_last=True).feature_dim
    check_width(config)


def check_width(config: HyperTransformerConfig) -> None:
    model, given = small.model(config), small.tasks(config, shots=(1, 1), n_unlabeled=0, n_query=2)
    with torch.no_grad():
        network = model.generate(given.support, given.labels, given.slots)
        widths = [config.image_channels] + [config.channels] * 4
        for (weight, bias), n_in in zip(network.convs, widths, strict=False):
            n_networks = 2 if config.writes_convs else 1
            assert weight.shape == (n_networks * config.channels, n_in, 3, 3)
            assert bias.shape == (n_networks * config.channels,)
        assert network.logits[0].shape == (2, 2, config.feature_dim)
        assert model.classify(network, given.queries).isfinite().all()


# --- statistics of the base


def test_base_statistics_are_learned_in_training_and_used_in_evaluation() -> None:
    config = VARIANTS["logits alone, base"]
    torch.manual_seed(0)
    model, given = HyperTransformer(config), small.tasks(config)
    with torch.no_grad():
        for _ in range(50):
            model.generate(given.support, given.labels, given.slots)
        raw = F.conv2d(given.support.flatten(0, 1), model.base[0], padding=1)
    assert_equal(model.base_mean[0], 0.01 * sum(0.99**i for i in range(50)) * raw.mean((0, 2, 3)))
    before = model.eval().base_mean.clone()
    other = small.tasks(config, seed=5)
    with torch.no_grad():
        one, two = (model.generate(t.support, t.labels, t.slots) for t in (given, other))
    assert torch.equal(model.base_mean, before)
    assert all(torch.equal(a, b) for a, b in zip(one.convs[0], two.convs[0], strict=True))


def test_attention_is_over_the_support() -> None:
    model, given = small.model(), small.tasks()
    with torch.no_grad():
        network, attentions = model.generate_with_attention(given.support, given.labels, given.slots)
        again = model.generate(given.support, given.labels, given.slots)
    assert torch.equal(network.logits[0], again.logits[0])
    assert len(attentions) == 5
    assert attentions[-1].shape == (2, 3, 7)
    for attention in attentions:
        assert_equal(attention.sum(-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_generated_layers": 0}, "1..5"),
        ({"n_generated_layers": 6}, "1..5"),
        ({"token_dim": 15}, "multiple"),
        ({"image_size": 8}, "poolings"),
        ({"mirrored_support": True}, "mirrored where all tasks share"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **change)


# --- golden values


@pytest.mark.parametrize("name", golden.CONFIGS)
def test_golden_logits(name: str) -> None:
    """Regenerate with ``python -m tests.models.golden``, and say why the numbers changed."""
    expected = json.loads(golden.PATH.read_text())[name]
    found = torch.tensor(golden.logits(name), dtype=torch.float64)
    scale = max(abs(x) for row in expected for x in row)
    assert math.isfinite(scale)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8 * scale)
