"""The graph of transductive answers is the method's own normalisation with the statistics of the queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from models.export import relative_error, to_array
from models.export_hypertransformer import bundle_names
from models.graph import INPUT, LOGITS, skeleton_for
from models.metamodel import MetaModel
from models.nn.conv4 import normalise
from models.runtime import make_session
from tests.models import small
from training.transductive import N_SUPPORT, transductive

SHOTS, N_QUERIES = (2, 1, 3), 40


def test_the_queries_answers_are_the_methods_and_those_of_support_images_stay(exported: MetaModel) -> None:
    """Of one written network: PyTorch with ``normalisation="query"``, and the graph."""
    config, n_support = small.EXPORTED, sum(SHOTS)
    pixels = np.random.default_rng(1).integers(0, 256, (n_support + N_QUERIES, 28, 28, 1), dtype=np.uint8)
    pixels[-N_QUERIES // 2 :] //= 3  # statistics that are not the support's
    images = normalise(torch.from_numpy(pixels), config.pixel_mean, config.pixel_std)[None]
    labels = torch.arange(len(SHOTS)).repeat_interleave(torch.tensor(SHOTS))[None]
    model = small.model(replace(config, normalisation="query"))
    with torch.no_grad():
        network = model.generate(images[:, :n_support], labels, torch.arange(len(SHOTS))[None])
        expected = to_array(model.classify(network, images[:, n_support:])[0])

    written = [to_array(t) for conv in network.convs for t in conv] + [to_array(t[0]) for t in network.logits]
    weights = exported.weights(dict(zip(bundle_names(config), written, strict=True)))
    skeleton = skeleton_for(exported.read("skeleton.onnx"), exported.manifest, len(SHOTS))
    feeds = {INPUT: pixels, N_SUPPORT: np.array([n_support])}
    (found,) = make_session(transductive(skeleton), weights).run([LOGITS], feeds)
    (inductive,) = make_session(skeleton, weights).run([LOGITS], {INPUT: pixels})
    np.testing.assert_allclose(found[:n_support], inductive[:n_support], rtol=1e-4, atol=1e-4)
    assert relative_error(found[n_support:], expected) < 1e-3
    assert relative_error(inductive[n_support:], expected) > 0.1
