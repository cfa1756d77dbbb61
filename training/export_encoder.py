"""A BERT of transformers -> a text encoder of models.text: a graph without weights, checked, and encoder.json.

The weights stay in the file they were published in; the graph's initializers carry the names of its tensors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Collection
from pathlib import Path

import onnx
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoModel, PreTrainedModel

from models.encoder_files import GRAPH, SPEC, TOKENIZER, WEIGHTS, EncoderSpec
from models.errors import InvalidMetaModel
from models.export import relative_error
from models.graph import externalise, without_provenance
from models.runtime import make_session
from models.text import IDS, TOKENS, external_names
from training.data.folders import DataError

MAX_RELATIVE_ERROR = 1e-4
FILES = (WEIGHTS, TOKENIZER)
CONFIGS = ("config.json", "sentence_bert_config.json", "README.md")
PREFIX = "model."
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""Of the files converted from TensorFlow, BERT-base's among them."""


class Encoder(nn.Module):
    """Token ids ``(B, T)`` without padding -> the last hidden states ``(B, T, D)``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """No mask: all texts of a batch are equally long."""
        states: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return states


def export_encoder(
    model: str, to: Path, *, repository: str = "", package_folder: str = "", licence: str = ""
) -> tuple[EncoderSpec, float]:
    """Write the folder ``to`` for a model given by folder or hub name; returns its spec and the relative error.

    Raises DataError where the model lacks files, InvalidMetaModel where the graph differs from transformers.
    """
    folder = _files_of(model)
    licence = licence or _licence(folder)
    encoder = Encoder(AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")).eval()
    max_tokens = _max_tokens(folder, encoder)
    graph = _export(encoder, max_tokens)
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        renamed = _renamed(external_names(onnx.load_model_from_string(graph)), set(file.keys()), encoder.model)
    spec = EncoderSpec(
        name=to.name,
        repository=repository or (model if not Path(model).is_dir() else to.name),
        package_folder=package_folder,
        licence=licence,
        dim=encoder.model.config.hidden_size,
        max_tokens=max_tokens,
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES},
        tensors=renamed,
    )
    error = check_parity(encoder, graph, max_tokens)
    to.mkdir(parents=True, exist_ok=True)
    (to / GRAPH).write_bytes(graph)
    (to / SPEC).write_text(json.dumps(spec.model_dump(mode="json"), indent=1) + "\n")
    return spec, error


def check_parity(encoder: Encoder, graph: bytes, max_tokens: int) -> float:
    """The largest relative error against PyTorch, with weights unlike those exported; raises InvalidMetaModel."""
    other = copy.deepcopy(encoder)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=random))
    weights = {name.removeprefix(PREFIX): parameter.detach().numpy() for name, parameter in other.named_parameters()}
    session = make_session(graph, {n: weights[n] for n in external_names(onnx.load_model_from_string(graph))})
    error = 0.0
    for n_texts, n_tokens in ((1, 2), (3, 7), (1, max_tokens)):
        ids = torch.randint(0, other.model.config.vocab_size, (n_texts, n_tokens), generator=random)
        with torch.no_grad():
            expected = other(ids).numpy()
        (found,) = session.run([TOKENS], {IDS: ids.numpy()})
        error = max(error, relative_error(found, expected))
    if error > MAX_RELATIVE_ERROR:
        raise InvalidMetaModel(f"The exported encoder differs from transformers by {error:.1e}; do not ship it.")
    return error


def _files_of(model: str) -> Path:
    """The model's folder, downloaded where ``model`` is a name on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(model, allow_patterns=[*FILES, *CONFIGS]))
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{model} is no folder, and the hub does not give it ({reason}); give a folder.") from error
    if lacking := [name for name in (*FILES, "config.json") if not (folder / name).is_file()]:
        remedy = "save the model and its fast tokenizer with `save_pretrained`"
        raise DataError(f"{folder} lacks {', '.join(lacking)}; {remedy}.")
    return folder


def _max_tokens(folder: Path, encoder: Encoder) -> int:
    """As sentence-transformers cuts where it says so, else as many as have a position."""
    path = folder / "sentence_bert_config.json"
    positions = int(encoder.model.config.max_position_embeddings)
    return int(json.loads(path.read_text())["max_seq_length"]) if path.is_file() else positions


def _licence(folder: Path) -> str:
    """What the front matter of the model's README.md says."""
    path = folder / "README.md"
    lines = path.read_text().splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    if not named:
        raise DataError(f"{folder} does not say what its licence is; say it with --licence.")
    return named[0]


def _export(encoder: Encoder, max_tokens: int) -> bytes:
    """Unoptimised, so that every initializer is a parameter by its own name: ONNX Runtime optimises it at load."""
    sizes = {0: Dim("n_texts", min=1, max=65536), 1: Dim("n_tokens", min=2, max=max_tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            encoder,
            (torch.zeros((3, 5), dtype=torch.int64),),
            dynamo=True,
            verbose=False,
            optimize=False,
            input_names=[IDS],
            output_names=[TOKENS],
            dynamic_shapes=(sizes,),
        )
    if program is None:
        raise InvalidMetaModel("torch.onnx.export gave no program; install onnxscript.")
    graph = without_provenance(program.model_proto)
    names = {name for name, _ in encoder.named_parameters()}
    data: bytes = _shorn(externalise(graph, names), names).SerializeToString()
    return data


def _shorn(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Parameters by their names in the model, without the wrapper's prefix."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.name = tensor.name.removeprefix(PREFIX)
    for node in model.graph.node:
        node.input[:] = [name.removeprefix(PREFIX) if name in names else name for name in node.input]
    return model


def _renamed(names: Collection[str], stored: Collection[str], model: PreTrainedModel) -> dict[str, str]:
    """Parameter -> tensor of the file, for those that the file names otherwise."""
    renamed = {}
    for name in names:
        old = name
        for new, former in OLD_NAMES.items():
            old = old.removesuffix(new) + former if old.endswith(new) else old
        prefix = f"{model.base_model_prefix}."
        found = next((n for n in (name, prefix + name, old, prefix + old) if n in stored), None)
        if found is None:
            raise DataError(f"{WEIGHTS} has no tensor for {name}; save the model again with `save_pretrained`.")
        if found != name:
            renamed[name] = found
    return renamed
