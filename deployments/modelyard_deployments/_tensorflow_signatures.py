# SPDX-License-Identifier: Apache-2.0
"""What a SavedModel says of its signatures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard.signature import SavedSignature, TensorSpec
from modelyard.tensor import Array
from modelyard_deployments._tensorflow_graph import Graph
from modelyard_deployments._tensorflow_nodes import Feature, changes_state, find_features
from modelyard_deployments._tensorflow_start import import_tensorflow

_LOG: Final = logging.getLogger(__name__)
_DATATYPES: Final = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
}
"""Datatypes by TensorFlow's names; it has others, which no protocol carries."""
_DEFAULT: Final = "serving_default"
_INTERNAL: Final = "__"
"""Begins the names of signatures that nobody is to call (``__saved_model_init_op``)."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One signature as the SavedModel defines it.

    Attributes:
        saved: Its name, its method, its tensors' names in the graph, and what has no known rank.
        inputs: By name; an unknown rank is given as no dimensions.
        outputs: By name; likewise.
        defaults: Of the inputs that may be left out.
        changes_state: It trains or saves the model.
        features: Of the examples that its only input takes; None where that takes none.
    """

    saved: SavedSignature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    defaults: Mapping[str, Array] = field(default_factory=dict)
    changes_state: bool = False
    features: tuple[Feature, ...] | None = None


def read_definitions(graph: Graph, definition: Any, wanted: str | None) -> tuple[Definition, dict[str, Definition]]:
    """The signature that is the model's own, and the others that clients can use, by name.

    Args:
        graph: The loaded graph.
        definition: TensorFlow's ``MetaGraphDef``.
        wanted: The option ``signature``.

    Raises:
        ModelLoadError: There is none, it cannot be told which, or clients cannot use it.
    """
    found = {name: one for name, one in definition.signature_def.items() if not name.startswith(_INTERNAL)}
    own = _choose(sorted(found), wanted)
    others: dict[str, Definition] = {}
    for name in sorted(found):
        if name != own:
            try:
                others[name] = _read(graph, definition, name)
            except ModelLoadError as exc:
                _LOG.warning("%s; it is left out", exc)
    return _read(graph, definition, own), others


def _choose(names: list[str], wanted: str | None) -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    if not names:
        raise ModelLoadError(
            "the SavedModel has no signatures; save it with tf.saved_model.save(model, path, signatures=…)"
        )
    if wanted is not None and wanted not in names:
        raise ModelLoadError(f'option signature: the SavedModel has {listed}, got "{wanted}"')
    if wanted is None and _DEFAULT not in names and len(names) > 1:
        raise ModelLoadError(f'expected a signature "{_DEFAULT}", got {listed}; choose one with the option signature')
    if wanted is not None:
        return wanted
    return _DEFAULT if _DEFAULT in names else names[0]


def _read(graph: Graph, definition: Any, name: str) -> Definition:
    signature = definition.signature_def[name]
    given, answered = (dict(sorted(side.items())) for side in (signature.inputs, signature.outputs))
    if not given or not answered:
        raise ModelLoadError(f'signature "{name}": expected inputs and outputs, got {len(given)} and {len(answered)}')
    defaults = {alias: _to_array(proto) for alias, proto in signature.defaults.items()}
    saved = SavedSignature(
        name=name,
        method=signature.method_name,
        inputs={alias: info.name for alias, info in given.items()},
        outputs={alias: info.name for alias, info in answered.items()},
        unknown_ranks=_find_unknown_ranks(given),
        unknown_output_ranks=_find_unknown_ranks(answered),
    )
    where = f'signature "{name}": '
    inputs = tuple(_to_spec(graph, f'{where}input "{one}"', one, info, one in defaults) for one, info in given.items())
    tensors = definition, saved.inputs.values(), saved.outputs.values()
    takes_texts = [spec.datatype for spec in inputs] == ["BYTES"]
    return Definition(
        saved=saved,
        inputs=inputs,
        outputs=tuple(_to_spec(graph, f'{where}output "{one}"', one, info) for one, info in answered.items()),
        defaults=defaults,
        changes_state=changes_state(*tensors),
        features=find_features(*tensors) if takes_texts else None,
    )


def _find_unknown_ranks(side: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(alias for alias, info in side.items() if info.tensor_shape.unknown_rank)


def _to_spec(graph: Graph, where: str, alias: str, info: Any, optional: bool = False) -> TensorSpec:
    """Of the datatype that the graph's tensor has: what the SavedModel says of variables is not what is answered."""
    if info.WhichOneof("encoding") != "name":
        raise ModelLoadError(f"{where}: expected a dense tensor, got a sparse or ragged one")
    try:
        dtype = graph.dtype_of(info.name)
    except (KeyError, ValueError) as exc:
        raise ModelLoadError(f"{where}: the graph has no tensor {info.name}") from exc
    if dtype not in _DATATYPES:
        raise ModelLoadError(f"{where} is {dtype}, for which the protocols have no datatype")
    shape = tuple(dim.size if dim.size >= 0 else -1 for dim in info.tensor_shape.dim)
    return TensorSpec(alias, _DATATYPES[dtype], shape, optional)


def _to_array(proto: Any) -> Array:
    array: Array = import_tensorflow().make_ndarray(proto)
    return array
