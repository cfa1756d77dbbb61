"""The gradient of a generator with respect to its tokens, exported as a graph: explanations then need no PyTorch.

``words_gradient.onnx`` takes what the generator takes and, for each tensor of the bundle, the gradient of some number
with respect to it; it gives that number's gradient with respect to the token embeddings (a vector-Jacobian product).
The weights that generator.onnx has as well are left out and come from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from models.explain_gradient import GRADIENT
from models.explain_words import SHARED, TRANSPOSED, WORDS_GRADIENT, make_words_session
from models.export import export_graph, relative_error, to_array
from models.graph import externalise

MIN_SHARED_BYTES = 1_000
"""Smaller constants are not worth a reference."""


class TokenGradient(nn.Module):
    """A generator ``(tokens, ...) -> tensors`` -> its inputs and the tensors' gradients -> the tokens' gradient."""

    def __init__(self, generator: nn.Module, n_inputs: int) -> None:
        super().__init__()
        self.generator = generator
        self.n_inputs = n_inputs

    def forward(self, *args: Tensor) -> Tensor:
        """``(K, T, D)``, as the tokens."""
        inputs, gradients = args[: self.n_inputs], args[self.n_inputs :]
        with torch.enable_grad():
            tokens = inputs[0].detach().requires_grad_()
            outputs = self.generator(tokens, *inputs[1:])
            moved = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]  # not a constant bias
            return torch.autograd.grad([o for o, _ in moved], tokens, [g for _, g in moved])[0]


def export_words_gradient(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    bundle_names: Sequence[str],
    dynamic_shapes: Sequence[dict[int, Dim]],
    generator: bytes,
) -> bytes:
    """The file; ``dynamic_shapes`` of the inputs. The sizes in ``inputs`` must differ from each other and from widths.

    Tracing takes equal sizes for one and the same.
    """
    gradient = TokenGradient(module.requires_grad_(False), len(inputs))
    args = (*inputs, *_gradients(module, inputs))
    traced = make_fx(gradient, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*args)
    n_classes = {0: dynamic_shapes[0][0]}
    shapes = [n_classes if name.startswith("logits.") else {} for name in bundle_names]
    names = [*input_names, *(name + GRADIENT for name in bundle_names)]
    data = export_graph(
        traced,
        args,
        input_names=names,
        output_names=[input_names[0] + GRADIENT],
        dynamic_shapes=(*dynamic_shapes, *shapes),
    )
    return _sharing(onnx.load_model_from_string(data), onnx.load_model_from_string(generator))


def words_gradient_error(
    module: nn.Module, tasks: Sequence[tuple[Tensor, ...]], input_names: Sequence[str], files: dict[str, bytes]
) -> float:
    """Largest relative error of the exported gradient against PyTorch's, over these inputs of the generator."""
    session = make_words_session(files[WORDS_GRADIENT], files["generator.onnx"])
    gradient, largest = TokenGradient(module.requires_grad_(False), len(input_names)), 0.0
    for inputs in tasks:
        args = (*inputs, *_gradients(module, inputs))
        fed = dict(zip((i.name for i in session.get_inputs()), map(to_array, args), strict=True))
        largest = max(largest, relative_error(session.run(None, fed)[0], to_array(gradient(*args))))
    return largest


def _gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Random gradients with respect to each output."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return [torch.randn(output.shape, generator=random) for output in module(*inputs)]


def _sharing(gradient: onnx.ModelProto, generator: onnx.ModelProto) -> bytes:
    """The gradient with the weights that ``generator`` has too, as they are or transposed, external by its names."""
    there: dict[tuple[tuple[int, ...], bytes], str] = {}
    for tensor in generator.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2:
            there[array.T.shape, array.T.tobytes()] = tensor.name + TRANSPOSED
        there[array.shape, array.tobytes()] = tensor.name
    renamed = {}
    for tensor in gradient.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes >= MIN_SHARED_BYTES and (array.shape, array.tobytes()) in there:
            renamed[tensor.name] = SHARED + there[array.shape, array.tobytes()]
    return _with_names(gradient, renamed)


def _with_names(model: onnx.ModelProto, renamed: dict[str, str]) -> bytes:
    """The graph with these initializers renamed and external; of several that get the same name, one stays."""
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    kept = {renamed.get(tensor.name, tensor.name): tensor for tensor in model.graph.initializer}
    for name, tensor in kept.items():
        tensor.name = name
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept.values()]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    data: bytes = externalise(model, set(renamed.values())).SerializeToString()
    return data
