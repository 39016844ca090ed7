# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle: which files of a folder are the model, whether they are whole, and what the program takes and gives."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec

PROGRAM_SUFFIXES: Final = (".json", ".pdmodel")
_PARAMS_SUFFIX: Final = ".pdiparams"
_DATATYPES: Final = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "FLOAT32": "FP32",
    "FLOAT64": "FP64",
    "FP16": "FP16",
    "BF16": "BF16",
    "FP32": "FP32",
    "FP64": "FP64",
}
"""By Paddle's names: the first thirteen are those of the new programs, with the last four those of the old ones."""
_ITEM_BYTES: Final = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16, 32: 1, 33: 1}
"""Bytes of an element by ``VarType.Type``. Source: Paddle ``framework.proto``."""


@dataclass(frozen=True, slots=True)
class Files:
    """A program and its parameters; None where the folder has none, as for a model without weights."""

    program: Path
    params: Path | None


@dataclass(frozen=True, slots=True)
class Program:
    """What a program takes and gives, in order, and whether it has parameters and convolutions."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    has_params: bool
    has_convolutions: bool


def find_files(path: Path) -> Files:
    """The program and the parameters in a folder, or those that belong to a program's file.

    The two have the same name but for the ending; a folder with one of each may call them anything.

    Raises:
        ModelLoadError: There is no program, or it cannot be told which.
    """
    if path.is_file():
        return Files(path, _find_params(path, alone=False))
    found = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    programs = [p for p in found if p.suffix.lower() in PROGRAM_SUFFIXES]
    paired = [p for p in programs if p.with_suffix(_PARAMS_SUFFIX).is_file()]
    chosen = paired or programs
    if len(chosen) == 1:
        return Files(chosen[0], _find_params(chosen[0], alone=True))
    if not chosen:
        names = ", ".join(p.name for p in found[:10]) or "nothing"
        raise ModelLoadError(
            f"expected a program, {' or '.join(PROGRAM_SUFFIXES)}, got none; the directory has {names}"
        )
    names = ", ".join(p.name for p in chosen)
    raise ModelLoadError(f"expected one program, got {len(chosen)}: {names}; choose one with the option model_file")


def _find_params(program: Path, alone: bool) -> Path | None:
    """The program's parameters.

    Args:
        program: Its file.
        alone: It is the folder's only program, so a single file of parameters is its own whatever it is called.
    """
    if program.suffix == _PARAMS_SUFFIX:
        raise ModelLoadError(f"{program.name}: expected a program, .json or .pdmodel, got the parameters")
    same_name = program.with_suffix(_PARAMS_SUFFIX)
    if same_name.is_file():
        return same_name
    others = sorted(program.parent.glob(f"*{_PARAMS_SUFFIX}"))
    return others[0] if alone and len(others) == 1 else None


def check_params(files: Files, program: Program) -> None:
    """Refuses parameters that are missing or cut off: of the last tensor, Paddle reads what is there and goes on.

    Raises:
        ModelLoadError: With what is wrong.
    """
    if files.params is None:
        if program.has_params:
            expected = files.program.with_suffix(_PARAMS_SUFFIX).name
            raise ModelLoadError(f"{files.program.name} has parameters: expected them in {expected}, got no such file")
        return
    size = files.params.stat().st_size
    try:
        with files.params.open("rb") as stream:
            count = sum(1 for _ in _walk_tensors(stream, size))
    except ValueError as exc:
        raise ModelLoadError(f"{files.params.name}: expected Paddle's parameters, got something else: {exc}") from exc
    except EOFError as exc:
        raise ModelLoadError(f"{files.params.name} is cut off: expected more than its {size} bytes") from exc
    if program.has_params and not count:
        raise ModelLoadError(f"{files.params.name}: the file is empty, but {files.program.name} has parameters")


def _walk_tensors(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where each tensor of a file of parameters ends, in bytes; only their headers are read.

    Raises:
        ValueError: It is no such file.
        EOFError: It ends within a tensor.

    Source: Paddle ``phi/core/framework/dense_tensor_serialize.cc`` and ``dense_tensor_tostream.cc``.
    """
    from google.protobuf.message import DecodeError
    from paddle.base.proto import framework_pb2

    end = 0
    while end < size:
        stream.seek(end)
        version, levels = struct.unpack("<IQ", _read(stream, 12))
        for _ in range(0 if version else levels):
            stream.seek(struct.unpack("<Q", _read(stream, 8))[0], 1)
        (inner_version,) = struct.unpack("<I", _read(stream, 4))
        (length,) = struct.unpack("<i", _read(stream, 4))
        if version or inner_version or length <= 0:
            raise ValueError(f"no tensor at byte {end}")
        try:
            tensor = framework_pb2.VarType.TensorDesc.FromString(_read(stream, length))
        except DecodeError as exc:
            raise ValueError(f"no tensor at byte {end}") from exc
        if tensor.data_type not in _ITEM_BYTES:
            return  # texts, whose size is not told: what follows stays unread
        end = stream.tell() + _ITEM_BYTES[tensor.data_type] * math.prod(tensor.dims)
        if end > size:
            raise EOFError
        yield end


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def read_program(path: Path) -> Program:
    """What the program takes and gives; Paddle's inference interface tells names only.

    Raises:
        ModelLoadError: It is no program, or this version of Paddle cannot read it.
    """
    import paddle

    try:
        return _read_old(path) if path.suffix.lower() == ".pdmodel" else _read_pir(path)
    except ModelLoadError:
        raise
    except Exception as exc:  # the readers raise RuntimeError, ValueError, DecodeError and C++ errors of their own
        raise ModelLoadError(
            f"{path.name}: PaddlePaddle {paddle.__version__} cannot read this as a program: {to_reason(exc)}"
        ) from exc


def _read_pir(path: Path) -> Program:
    import paddle

    program = paddle.static.Program()
    paddle.base.core.deserialize_pir_program(str(path), program)
    operators = list(program.global_block().ops)
    found: dict[str, list[TensorSpec]] = {"pd_op.data": [], "pd_op.fetch": []}
    for operator in operators:
        if operator.name() in found:
            value, name = operator.results()[0], operator.attrs()["name"]
            found[operator.name()].append(_to_spec(name, value.dtype.name, value.shape))
    names = {operator.name() for operator in operators}
    inputs, outputs = map(tuple, found.values())
    return _check(Program(inputs, outputs, "builtin.parameter" in names, _has_convolutions(names)), path.name)


def _read_old(path: Path) -> Program:
    from paddle.base.proto import framework_pb2

    described = framework_pb2.ProgramDesc.FromString(path.read_bytes())
    if not described.blocks:
        raise ModelLoadError(f"{path.name}: expected a program, got an empty one")
    block = described.blocks[0]
    variables = {variable.name: variable for variable in block.vars}

    def to_specs(kind: str) -> tuple[TensorSpec, ...]:
        operators = [operator for operator in block.ops if operator.type == kind]
        operators.sort(key=lambda operator: next(int(one.i) for one in operator.attrs if one.name == "col"))
        sides = [operator.outputs if kind == "feed" else operator.inputs for operator in operators]
        names = [side[0].arguments[0] for side in sides]
        return tuple(_to_old_spec(variables[name], framework_pb2) for name in names)

    internal = (framework_pb2.VarType.FEED_MINIBATCH, framework_pb2.VarType.FETCH_LIST)
    has_params = any(variable.persistable and variable.type.type not in internal for variable in block.vars)
    has_convolutions = _has_convolutions(operator.type for operator in block.ops)
    return _check(Program(to_specs("feed"), to_specs("fetch"), has_params, has_convolutions), path.name)


def _has_convolutions(names: Iterable[str]) -> bool:
    return any("conv" in name for name in names)


def _to_old_spec(variable: Any, messages: Any) -> TensorSpec:
    kind = variable.type
    tensor = (kind.dense_tensor if hasattr(kind, "dense_tensor") else kind.lod_tensor).tensor  # lod_tensor until 3.0
    return _to_spec(variable.name, messages.VarType.Type.Name(tensor.data_type), tensor.dims)


def _to_spec(name: str, kind: str, shape: Any) -> TensorSpec:
    if kind not in _DATATYPES:
        raise ModelLoadError(f'tensor "{name}" is {kind}, for which the protocols have no datatype')
    return TensorSpec(name, _DATATYPES[kind], tuple(int(dim) for dim in shape))


def _check(program: Program, name: str) -> Program:
    if not program.inputs or not program.outputs:
        raise ModelLoadError(
            f"{name}: expected a program with inputs and outputs, got {len(program.inputs)} and "
            f"{len(program.outputs)}; save it for inference (paddle.jit.save, paddle.static.save_inference_model)"
        )
    return program


def to_reason(exc: BaseException) -> str:
    """The sentence of an error of Paddle's C++ part, without its traceback, hint and place in the source."""
    text = str(exc)
    for mark in ("Error Message Summary:", "Error: ", "(InvalidArgument) "):
        text = text.rpartition(mark)[2] if mark in text else text
    for mark in ("[Hint:", "(at /"):
        text = text.partition(mark)[0]
    return " ".join(text.strip(" -\n").split())[:400] or type(exc).__name__
