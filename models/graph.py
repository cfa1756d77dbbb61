"""Edits of the exported graphs with the ``onnx`` package: a skeleton for K classes, and a self-contained classifier.

The skeleton keeps its weights external; ONNX Runtime receives them through ``add_external_initializers``. Its logits
layer is exported for some number of classes, and rewritten here for the task's own (a few kB, no re-export).
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bundle import BundleHeader, Tensors
from models.metamodel import Manifest, MetaModel

INPUT, LOGITS, FEATURES, PROBABILITIES = "pixels", "logits", "features", "probabilities"


def skeleton_for(skeleton: bytes, manifest: Manifest, n_classes: int) -> bytes:
    """The skeleton with its external weights, and what it says of its logits, for ``n_classes``.

    Quantised weights, which the manifest does not list, are of no number of classes.
    """
    model = onnx.load_model_from_string(skeleton)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name in manifest.tensors:
            del tensor.dims[:]
            tensor.dims.extend(manifest.tensors[tensor.name].shape_for(n_classes))
    for output in model.graph.output:
        if output.name == LOGITS:
            output.type.tensor_type.shape.dim[-1].dim_value = n_classes
    data: bytes = model.SerializeToString()
    return data


def with_weights(model: onnx.ModelProto, weights: Tensors) -> onnx.ModelProto:
    """The external weights put into the file, as float32: what ``externalise`` took out."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(weights[tensor.name], np.float32), tensor.name))
    return model


def externalise(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The named initializers made external references without data; used once, at export."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="bundle")
    return model


def without_provenance(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes on every node: stack traces with this machine's paths, five times the graph itself."""
    for annotated in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        annotated.ClearField("metadata_props")
        annotated.ClearField("doc_string")
    return model


def self_contained(meta_model: MetaModel, header: BundleHeader, tensors: Tensors) -> bytes:
    """One task's classifier as a file that plain ONNX Runtime runs: uint8 ``pixels`` in, ``probabilities`` out.

    Class names, preprocessing, temperature and the abstention threshold are in the file's metadata.
    """
    n_classes = len(header.class_names)
    model = onnx.load_model_from_string(skeleton_for(meta_model.read("skeleton.onnx"), meta_model.manifest, n_classes))
    with_weights(model, meta_model.weights(tensors))
    temperature = numpy_helper.from_array(np.array(header.temperature, np.float32), "temperature")
    model.graph.initializer.append(temperature)
    model.graph.node.extend(
        [
            helper.make_node("Div", [LOGITS, "temperature"], ["calibrated_logits"]),
            helper.make_node("Softmax", ["calibrated_logits"], [PROBABILITIES], axis=-1),
        ]
    )
    output = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["n_images", n_classes])
    model.graph.output.insert(0, output)
    helper.set_model_props(
        model,
        {
            "class_names": json.dumps(header.class_names, ensure_ascii=False),
            "preprocess": json.dumps(meta_model.manifest.model_dump(mode="json")["preprocess"]),
            "temperature": repr(header.temperature),
            "abstain_below": repr(header.abstain_below),
            "meta_model": header.meta_model,
            "meta_model_digest": header.meta_model_digest,
        },
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
