from service.prediction.costs import FIRST_GUESS_S, Costs


def learned(costs, times_s, n=200):
    """Every size measured often enough to be believed: seconds a batch of each took."""
    for size, spent_s in times_s.items():
        for _ in range(n):
            costs.learn("kind", size, spent_s)
    return costs


def test_before_anything_is_measured_a_batch_may_be_full():
    costs = Costs(max_batch=64, batch_s=0.02)
    assert costs.limit("kind") == 64
    assert costs.image_s("kind") == FIRST_GUESS_S


def test_a_batch_takes_as_many_images_as_fit_the_time():
    costs = learned(Costs(max_batch=64, batch_s=0.02), {1: 0.001, 2: 0.002, 4: 0.004, 8: 0.008})
    assert costs.limit("kind") == 16  # not measured yet, and by the cost of smaller ones it fits


def test_a_network_that_takes_longer_than_a_batch_should_runs_one_image_at_a_time():
    assert learned(Costs(max_batch=64, batch_s=0.02), {1: 0.026}).limit("kind") == 1


def test_batches_that_make_images_dearer_are_not_used():
    costs = learned(Costs(max_batch=64, batch_s=0.02), {1: 0.0002, 2: 0.0003, 4: 0.0005, 8: 0.001, 16: 0.006})
    assert costs.limit("kind") == 8


def test_batches_that_make_images_cheaper_are():
    costs = learned(Costs(max_batch=64, batch_s=0.02), {1: 0.004, 2: 0.004, 4: 0.004, 8: 0.005, 16: 0.007, 32: 0.012})
    assert costs.limit("kind") == 32


def test_a_size_judged_by_a_hiccup_is_tried_again():
    costs = learned(Costs(max_batch=64, batch_s=0.02), {1: 0.0002, 16: 0.0032, 32: 0.0064, 64: 0.0128}, n=1)
    assert costs.limit("kind") == 64
    learned(costs, {64: 0.1}, n=10)
    assert costs.limit("kind") == 32
    limits = [costs.limit("kind") for _ in range(5000)]
    assert limits[0] == 32
    assert limits[-1] == 64


def test_kinds_are_learned_apart_and_means_follow():
    costs = learned(Costs(max_batch=64, batch_s=0.02), {4: 0.04})
    assert abs(costs.image_s("kind") - 0.01) < 1e-9
    assert costs.image_s("other") == FIRST_GUESS_S
    learned(costs, {4: 0.02})
    assert abs(costs.image_s("kind") - 0.005) < 1e-6


def test_no_limit_is_past_the_setting():
    for max_batch in (1, 3, 24):
        costs = learned(Costs(max_batch=max_batch, batch_s=1.0), {1: 0.0001})
        assert costs.limit("kind") == max_batch
