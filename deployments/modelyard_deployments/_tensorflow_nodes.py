# SPDX-License-Identifier: Apache-2.0
"""What a signature's operations tell of it: whether it changes the model, and which features its examples have.

Some SavedModels have signatures that train the model or save it, beside those that answer. A trial would do that with
made-up rows, and merging requests would do it once instead of twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from modelyard.protos import tensorflow_pb2 as pb
from modelyard_deployments._tensorflow_start import import_tensorflow

_Body: TypeAlias = Mapping[str, Any]
"""Nodes by name: of the graph, or of one of its functions."""

_WRITES: Final = re.compile(
    r"Assign|Resource(Sparse)?Apply|Resource(Scatter|StridedSliceAssign)|(Sparse)?Apply"
    r"|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$|Save|MergeV2Checkpoints|WriteFile|Write\w*Summary"
    r"|LookupTable(Insert|Import|Remove)|(Queue|Barrier|Stack|Stage|Map\w*Stage)"
)
"""How operations that change variables, tables or files begin, by TensorFlow's names."""
_PARSES: Final = ("ParseExampleV2", "ParseExample", "ParseSingleExample")


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature that an example must have, or may: TensorFlow's name of its type, and how many values it has."""

    name: str
    dtype: str
    size: int


def changes_state(definition: Any, feeds: Iterable[str], fetches: Iterable[str]) -> bool:
    """Whether computing these tensors writes to anything but themselves.

    Args:
        definition: TensorFlow's ``MetaGraphDef``.
        feeds: Names of the tensors that are given.
        fetches: Names of those that are computed.
    """
    return any(_WRITES.match(node.op) for node, _ in _walk(definition, feeds, fetches))


def find_features(definition: Any, feeds: Iterable[str], fetches: Iterable[str]) -> tuple[Feature, ...] | None:
    """Dense features of the examples that are parsed for these tensors; None where none are."""
    for node, body in _walk(definition, feeds, fetches):
        if node.op in _PARSES:
            names = _find_keys(node, body)
            dtypes = [import_tensorflow().dtypes.as_dtype(one).name for one in node.attr["Tdense"].list.type]
            shapes = [[max(dim.size, 1) for dim in shape.dim] for shape in node.attr["dense_shapes"].list.shape]
            return tuple(map(Feature, names, dtypes, map(math.prod, shapes)))
    return None


def make_example(features: Iterable[Feature], value: int) -> bytes:
    """An example of which all numbers are the value, and all texts are empty."""
    example = pb.Example()
    for feature in features:
        kind = example.features.feature[feature.name]
        if feature.dtype == "string":
            kind.bytes_list.value.extend([b""] * feature.size)
        elif feature.dtype == "int64":
            kind.int64_list.value.extend([value] * feature.size)
        else:
            kind.float_list.value.extend([value] * feature.size)
    return example.SerializeToString(deterministic=True)


def _find_keys(node: Any, body: _Body) -> list[str]:
    """Names of the dense features: an attribute, one tensor, or a tensor for each."""
    if node.op == "ParseSingleExample":
        return [key.decode() for key in node.attr["dense_keys"].list.s]
    if node.op == "ParseExampleV2":
        tensors = [node.input[3]]
    else:
        first = 2 + node.attr["Nsparse"].i
        tensors = list(node.input[first : first + node.attr["Ndense"].i])
    constants = [body.get(_node_of(tensor)) for tensor in tensors]
    arrays = [import_tensorflow().make_ndarray(one.attr["value"].tensor) for one in constants if one is not None]
    return [key.decode() for array in arrays for key in array.reshape(-1).tolist()]


def _walk(definition: Any, feeds: Iterable[str], fetches: Iterable[str]) -> Iterator[tuple[Any, _Body]]:
    """The nodes that compute tensors, and all of the functions that they call, each with the body that it is in."""
    graph = {node.name: node for node in definition.graph_def.node}
    functions = {one.signature.name: one.node_def for one in definition.graph_def.library.function}
    seen = {_node_of(name) for name in feeds}
    waiting = [_node_of(name) for name in fetches]
    called: list[str] = []
    while waiting:
        name = waiting.pop()
        if name not in seen and name in graph:
            seen.add(name)
            yield graph[name], graph
            waiting += [_node_of(one) for one in graph[name].input]
            called += _functions_of(graph[name])
    while called:
        name = called.pop()
        if nodes := functions.pop(name, None):
            body = {node.name: node for node in nodes}
            for node in nodes:
                yield node, body
                called += _functions_of(node)


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _functions_of(node: Any) -> list[str]:
    """The functions that a node may call."""
    called = [one.name for value in node.attr.values() for one in (value.func, *value.list.func) if one.name]
    return [node.op, *called]
