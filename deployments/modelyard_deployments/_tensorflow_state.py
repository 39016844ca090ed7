# SPDX-License-Identifier: Apache-2.0
"""Whether a signature changes variables, tables or files.

Some SavedModels have signatures that train the model or save it, beside those that answer. A trial would do that with
made-up rows, and merging requests would do it once instead of twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_WRITES: Final = re.compile(
    r"Assign|Resource(Sparse)?Apply|Resource(Scatter|StridedSliceAssign)|(Sparse)?Apply"
    r"|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$|Save|MergeV2Checkpoints|WriteFile|Write\w*Summary"
    r"|LookupTable(Insert|Import|Remove)|(Queue|Barrier|Stack|Stage|Map\w*Stage)"
)
"""How operations that do begin, by TensorFlow's names."""


def changes_state(definition: Any, feeds: Iterable[str], fetches: Iterable[str]) -> bool:
    """Whether computing these tensors writes to anything but themselves.

    Args:
        definition: TensorFlow's ``MetaGraphDef``.
        feeds: Names of the tensors that are given.
        fetches: Names of those that are computed.
    """
    nodes = {node.name: node for node in definition.graph_def.node}
    seen = {_node_of(name) for name in feeds}
    waiting = [_node_of(name) for name in fetches]
    called: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        node = nodes[name]
        if _WRITES.match(node.op):
            return True
        waiting += [_node_of(one) for one in node.input]
        called += _functions_of(node)
    return _do_functions_write(
        {one.signature.name: one.node_def for one in definition.graph_def.library.function}, called
    )


def _do_functions_write(functions: Mapping[str, Sequence[Any]], waiting: list[str]) -> bool:
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in functions.get(name, ()):
            if _WRITES.match(node.op):
                return True
            waiting += _functions_of(node)
    return False


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _functions_of(node: Any) -> list[str]:
    """The functions that a node may call."""
    called = [one.name for value in node.attr.values() for one in (value.func, *value.list.func) if one.name]
    return [node.op, *called]
