# SPDX-License-Identifier: Apache-2.0
"""Exported programs: ``torch.export.save``. They know all about their inputs and outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard_deployments._torch_program import Program
from modelyard_deployments._torch_values import join_name, to_datatype, to_scalar, to_tensor

_SCALARS: Final = {"SymInt": "INT64", "SymFloat": "FP64", "SymBool": "BOOL"}
_SUFFIX: Final = ".pt2"


def load_export(path: Path, device: str) -> Program:
    """Loads a program.

    Args:
        path: The file.
        device: Where it computes.

    Raises:
        ModelLoadError: An input is of a type that no client can send.
        Exception: What PyTorch raises for damaged files.
    """
    from torch.export.passes import move_to_device_pass

    with _last_warning() as warned:
        try:
            exported = _load(path)
        except Exception as exc:  # damaged files raise errors of many kinds; torch logs the one that says why
            raise warned[-1] if warned else exc from exc
    if device != "cpu":
        exported = move_to_device_pass(exported, device)
    module = exported.module()
    values = _find_values(module, exported.module_call_graph[0].signature)
    names = _name_outputs(exported.call_spec.out_spec)
    (answers,) = next(node.args for node in module.graph.nodes if node.op == "output")
    kept = [(place, name) for place, name in enumerate(names) if answers[place] is not None]
    inputs = tuple(spec for name, value in values.items() if (spec := _to_input(name, value)) is not None)
    return Program(
        inputs=inputs,
        converters={spec.name: _to_converter(spec.name, values[spec.name], device) for spec in inputs},
        call=_to_call(module, values, kept),
        outputs=tuple(_to_output(name, answers[place]) for place, name in kept),
    )


def _load(path: Path) -> Any:
    import torch

    if path.name.endswith(_SUFFIX):
        return torch.export.load(str(path))
    with path.open("rb") as file:
        return torch.export.load(file)


@contextmanager
def _last_warning() -> Iterator[list[BaseException]]:
    """Errors that PyTorch logs where it raises another that only refers to them."""
    found: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            found.append(record.exc_info[1])
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        yield found
    finally:
        logger.removeFilter(keep)


def _find_values(module: Any, signature: Any) -> dict[str, Any]:
    """Each input's example, or the constant that it was fixed to, by the name of ``forward``'s argument.

    Those inside of others have the name of the graph's: ``batch_ids``.
    """
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    arguments = getattr(signature, "forward_arg_names", None) or ()
    names = arguments if len(arguments) == len(nodes) else [node.name for node in nodes]
    return {name: node.meta.get("val") for name, node in zip(names, nodes, strict=True)}


def _to_call(module: Any, values: Mapping[str, Any], kept: Sequence[tuple[int, str]]) -> Any:
    """The program as a function of flat values.

    It takes and gives nested ones, and packing and unpacking them takes longer than many a small model. Its checks of
    sizes remain.
    """
    import torch

    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    forward = module.forward

    def answer(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
        answers = forward(*[given.get(name, constant) for name, constant in values.items()])
        return [(name, answers[place]) for place, name in kept]

    return answer


def _to_input(name: str, value: Any) -> TensorSpec | None:
    """None for what was fixed when the program was exported: numbers, texts, None.

    Raises:
        ModelLoadError: It is of a type that no client can send.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return None
    return _to_spec(name, value, "input")


def _to_output(name: str, node: Any) -> TensorSpec:
    value = node.meta.get("val") if hasattr(node, "meta") else node
    fixed = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}.get(type(value))
    return TensorSpec(name, fixed, ()) if fixed else _to_spec(name, value, "output")


def _to_spec(name: str, value: Any, what: str) -> TensorSpec:
    import torch

    if type(value).__name__ in _SCALARS:
        return TensorSpec(name, _SCALARS[type(value).__name__], ())
    datatype = to_datatype(value.dtype) if isinstance(value, torch.Tensor) else None
    if datatype is None:
        kind = getattr(value, "dtype", type(value).__name__)
        raise ModelLoadError(f'{what} "{name}": {kind} is nothing that a client can send or be sent')
    return TensorSpec(name, datatype, tuple(dim if isinstance(dim, int) else -1 for dim in value.shape))


def _to_converter(name: str, value: Any, device: str) -> Any:
    return partial(to_scalar, name) if type(value).__name__ in _SCALARS else partial(to_tensor, device=device)


def _name_outputs(structure: Any) -> list[str]:
    """A name for each leaf of the answer, as :func:`~modelyard_deployments._torch_values.flatten` names them."""
    from torch.utils import _pytree as pytree

    whole = pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    leaves, _ = pytree.tree_flatten_with_path(whole)
    names = []
    for path, _ in leaves:
        name = ""
        for entry in path:
            name = join_name(name, getattr(entry, "idx", getattr(entry, "key", getattr(entry, "name", ""))))
        names.append(name or "output-0")
    return names
