# SPDX-License-Identifier: Apache-2.0
"""What onnxruntime does not tell of a graph: the classes of a classifier, the names of its variable dimensions.

Converters put a ``ZipMap`` behind a classifier's probabilities, which makes a dictionary of each row. Nobody can be
sent that as a tensor, and making it takes longer than the prediction, so it is taken out of the graph; its classes
become the labels of the matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from modelyard.errors import ModelLoadError

Classes: TypeAlias = tuple[str, ...]

_CLASSES: Final = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph as it is to be run.

    Attributes:
        content: The whole model, where it differs from the file; else None.
        tensors: The tensor that is computed for an output, where it has another name.
        classes: Classes in the order of the last dimension, by output.
    """

    content: bytes | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, Classes] = field(default_factory=dict)


def read_dimensions(path: Path) -> set[str]:
    """Names and denotations of the inputs' variable dimensions."""
    found = set()
    for value in _load(path).graph.input:
        for dim in value.type.tensor_type.shape.dim:
            found |= {dim.dim_param, dim.denotation}
    return found - {""}


def without_maps(path: Path) -> Graph:
    """The graph with each ``ZipMap`` that is an output replaced by the matrix it reads.

    Source: ONNX, "ai.onnx.ml.ZipMap".
    """
    import onnx

    model = _load(path)
    graph = model.graph
    values = {value.name: value for value in graph.output}
    zipped = {node.output[0]: node for node in graph.node if node.op_type == "ZipMap" and node.output[0] in values}
    tensors = {name: node.input[0] for name, node in zipped.items()}
    classes = {name: _find_classes(node) for name, node in zipped.items()}
    for name, node in zipped.items():
        graph.node.remove(node)
        graph.output.remove(values[name])
    for source in {*tensors.values()} - values.keys():
        width = len(next(classes[name] for name, tensor in tensors.items() if tensor == source))
        graph.output.append(onnx.helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, [None, width or None]))
    return Graph(model.SerializeToString(), tensors, classes)


def read_classes(path: Path, output: str) -> Graph:
    """The graph as it is, with the classes of its classifier, where it has one only."""
    classes = {_find_classes(node) for node in _load(path).graph.node} - {()}
    return Graph(classes={output: classes.pop()} if len(classes) == 1 else {})


def _find_classes(node: Any) -> Classes:
    for attribute in node.attribute:
        if attribute.name in _CLASSES and (attribute.strings or attribute.ints):
            return tuple(text.decode() for text in attribute.strings) or tuple(map(str, attribute.ints))
    return ()


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as exc:
        raise ModelLoadError(f"{path.name}: the file is no ONNX model, or it is damaged: {exc}") from exc
