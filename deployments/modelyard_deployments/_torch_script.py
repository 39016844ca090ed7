# SPDX-License-Identifier: Apache-2.0
"""TorchScript programs: ``torch.jit.save`` of a scripted or traced module.

They tell the names of their arguments, but neither datatypes nor shapes. Traced ones keep the inputs they were traced
with, scripted ones need the option ``inputs``.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard_deployments._torch_program import Program
from modelyard_deployments._torch_values import flatten, to_scalar, to_tensor, to_texts

_TENSORS: Final = ("Tensor", "Optional[Tensor]")
_SCALARS: Final = {"int": "INT64", "float": "FP64", "bool": "BOOL", "str": "BYTES"}
_TEXTS: Final = "List[str]"
_DICT: Final = "Dict[str, Tensor]"
_LIST: Final = "List[Tensor]"
_TRACED: Final = {
    "Bool": "BOOL",
    "Byte": "UINT8",
    "Char": "INT8",
    "Short": "INT16",
    "Int": "INT32",
    "Long": "INT64",
    "Half": "FP16",
    "BFloat16": "BF16",
    "Float": "FP32",
    "Double": "FP64",
}
"""Datatypes by TorchScript's name of a tensor's numbers."""


def load_script(path: Path, specs: Sequence[TensorSpec], method: str, device: str) -> Program:
    """Loads a program.

    Args:
        path: The file.
        specs: The option ``inputs``; none where the file is to tell.
        method: Which of its methods answers.
        device: Where it computes.

    Raises:
        ModelLoadError: It has no such method, or the inputs do not fit its arguments or are needed.
        Exception: What PyTorch raises for damaged files.
    """
    module = _load(path, device)
    module.eval()
    call: Any = getattr(module, method, None)
    if not hasattr(call, "schema"):
        raise ModelLoadError(f'{path.name}: the program has no method "{method}"')
    arguments = call.schema.arguments[1:]
    if specs:
        return _to_program(path.name, call, arguments, specs, device)
    traced = _read_traced(path, arguments) if method == "forward" else ()
    if not traced:
        raise ModelLoadError(_ask_for_inputs(path.name, module, arguments))
    free = [TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:])) for spec in traced if spec.shape]
    supposed = free if len(free) == len(traced) else traced
    return _to_program(path.name, call, arguments, supposed, device, traced)


def _load(path: Path, device: str, **options: Any) -> Any:
    from torch import jit

    load: Any = jit.load
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        return load(str(path), map_location=device, **options)


def _to_program(
    name: str,
    call: Any,
    arguments: Sequence[Any],
    specs: Sequence[TensorSpec],
    device: str,
    fixed: tuple[TensorSpec, ...] = (),
) -> Program:
    kinds = [str(argument.type) for argument in arguments]
    if kinds in ([_DICT], [_LIST]):
        pack: Any = dict if kinds == [_DICT] else _to_list
        converters = {spec.name: partial(to_tensor, device=device) for spec in specs}
        return Program(tuple(specs), converters, lambda values: list(flatten(call(pack(values)))))
    by_name = {argument.name: argument for argument in arguments}
    _check_arguments(name, by_name, specs)
    return Program(
        inputs=tuple(
            TensorSpec(spec.name, spec.datatype, spec.shape, _is_optional(by_name[spec.name])) for spec in specs
        ),
        converters={spec.name: _to_converter(spec.name, by_name[spec.name], device) for spec in specs},
        call=_to_call(call, arguments),
        fixed=fixed,
    )


def _to_list(values: Mapping[str, Any]) -> list[Any]:
    return list(values.values())


def _to_call(call: Any, arguments: Sequence[Any]) -> Any:
    names = [argument.name for argument in arguments]
    absent = {argument.name: None for argument in arguments if not argument.has_default_value()}

    def answer(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        if len(values) == len(names):
            return list(flatten(call(*[values[name] for name in names])))
        return list(flatten(call(**{**absent, **values})))

    return answer


def _is_optional(argument: Any) -> bool:
    return bool(argument.has_default_value()) or str(argument.type).startswith("Optional[")


def _to_converter(name: str, argument: Any, device: str) -> Any:
    kind = str(argument.type)
    if kind in _TENSORS:
        return partial(to_tensor, device=device)
    return partial(to_texts if kind == _TEXTS else to_scalar, name)


def _check_arguments(name: str, arguments: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    """Refuses inputs that are no arguments, arguments that would be missing, and types that no tensor becomes.

    Raises:
        ModelLoadError: With the arguments there are.
    """
    shown = ", ".join(f"{key}: {argument.type}" for key, argument in arguments.items())
    names = {spec.name for spec in specs}
    problems = [f'"{key}" is no argument' for key in sorted(names - arguments.keys())]
    problems += [
        f'"{key}" is missing' for key, argument in arguments.items() if key not in names and not _is_optional(argument)
    ]
    if problems:
        raise ModelLoadError(f"option inputs: {name} takes ({shown}): {', '.join(problems)}")
    for key in names:
        kind = str(arguments[key].type)
        if kind not in (*_TENSORS, *_SCALARS, _TEXTS):
            raise ModelLoadError(f'{name}: argument "{key}" is of type {kind}, which no client can send')


def _read_traced(path: Path, arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Datatypes and shapes of the inputs that the module was traced with; none where it was scripted."""
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/traced_inputs.pkl") for name in archive.namelist()):
            return ()
    values = list(_load(path, "cpu", _restore_shapes=True).graph.inputs())[1:]
    names = [argument.name for argument in arguments]
    specs = [_to_spec(name, value.type()) for name, value in zip(names, values, strict=False)]
    known = tuple(spec for spec in specs if spec is not None)
    return known if len(known) == len(names) else ()


def _to_spec(name: str, kind: Any) -> TensorSpec | None:
    if kind.kind() != "TensorType" or kind.sizes() is None or kind.scalarType() not in _TRACED:
        return None
    return TensorSpec(name, _TRACED[kind.scalarType()], tuple(kind.sizes()))


def _ask_for_inputs(name: str, module: Any, arguments: Sequence[Any]) -> str:
    """Why the option is needed, with one that can be copied and corrected."""
    shape = _guess_shape(module)
    shown = ", ".join(_show_input(argument, shape) for argument in arguments if not argument.has_default_value())
    return (
        f"{name}: a scripted module does not tell datatypes and shapes; give them in the option inputs, for example "
        f"inputs: [{shown}]"
    )


def _show_input(argument: Any, shape: list[int]) -> str:
    kind = str(argument.type)
    datatype = "BYTES" if kind == _TEXTS else _SCALARS.get(kind, "FP32")
    shown = [-1] if kind == _TEXTS else [] if kind in _SCALARS else shape
    return f"{{name: {argument.name}, datatype: {datatype}, shape: {shown}}}"


def _guess_shape(module: Any) -> list[int]:
    """What the first weight suggests: a matrix ``[out, in]``, a convolution ``[out, in, …]``."""
    sizes = next((list(weight.shape) for weight in module.parameters() if weight.dim() > 1), [])
    return [-1, sizes[1], *([224] * len(sizes[2:]))] if sizes else [-1]
