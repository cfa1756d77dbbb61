"""Pixels to what networks take: right in PyTorch, and fast in the graph that ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from models.export import export_graph
from models.nn.conv4 import normalise

Statistic = float | tuple[float, ...]
STATISTICS = [(1, 0.9, -0.3), (3, 0.48, 0.27), (3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))]
"""Channels, mean, std: drawings, photographs with one mean for all channels, and with each its own."""


class FirstLayer(nn.Module):
    def __init__(self, channels: int, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(v) if isinstance(v, tuple) else v for v in (mean, std))
        self.conv = nn.Conv2d(channels, 4, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(normalise(pixels, self.mean, self.std))


@pytest.mark.parametrize(("channels", "mean", "std"), STATISTICS)
def test_pixels_are_scaled_by_channel_and_channels_come_first(channels: int, mean: Statistic, std: Statistic) -> None:
    pixels = torch.randint(0, 256, (2, 5, 6, 7, channels), dtype=torch.uint8)
    layer = FirstLayer(channels, mean, std)
    found = normalise(pixels, layer.mean, layer.std)
    expected = np.moveaxis((pixels.numpy() / 255 - np.array(mean)) / np.array(std), -1, -3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "mean", "std"), STATISTICS)
def test_arithmetic_is_done_on_planes_even_where_the_runtime_rearranges_the_graph(
    tmp_path: Path, channels: int, mean: Statistic, std: Statistic
) -> None:
    """On a last axis of one or three numbers, it would take as long as several convolutions."""
    pixels = torch.zeros((2, 28, 28, channels), dtype=torch.uint8)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(export_graph(FirstLayer(channels, mean, std).eval(), (pixels,)), options)
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    made_by = {name: node for node in nodes for name in node.output}
    kinds, (conv,) = [], [node for node in nodes if node.op_type == "Conv"]
    node = conv
    while (node := made_by.get(node.input[0])) is not None:
        kinds.append(node.op_type)
    assert kinds[:3] == ["Div", "Sub", "Div"]
    assert "Cast" in kinds[3:]
