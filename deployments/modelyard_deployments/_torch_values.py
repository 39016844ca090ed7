# SPDX-License-Identifier: Apache-2.0
"""Between numpy arrays and what PyTorch programs take and give, and how nested answers get flat names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.tensor import Array

_NAMES: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}
SCALARS: Final = (bool, int, float, str)


@cache
def to_datatype(dtype: Any) -> str | None:
    """The datatype of torch's dtype; None for complex and quantized numbers."""
    import torch

    return {getattr(torch, name): datatype for datatype, name in _NAMES.items()}.get(dtype)


def warn_of_views_once() -> None:
    """Lets PyTorch say here, unheard, what it says once in a process: that it cannot keep a view from being written to.

    Programs that write to their inputs get copies.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.from_numpy(np.frombuffer(bytes(1), dtype=np.uint8))


def to_tensor(array: Array, device: str) -> Any:
    """The array as a tensor: on the CPU a view, where it has strides that PyTorch has."""
    import torch

    if not array.flags.c_contiguous:
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor if device == "cpu" else tensor.to(device)


def to_array(value: Any) -> Array:
    """A leaf of an answer as an array; a view on a tensor of the CPU.

    Raises:
        TypeError: It is neither a tensor, nor a number or text, nor a list of these.
    """
    import torch

    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:
            bits: Array = value.detach().view(torch.int16).numpy(force=True)
            return bits.view(ml_dtypes.bfloat16)
        array: Array = value.numpy(force=True)
        return array
    if isinstance(value, SCALARS) or _is_plain(value):
        return np.asarray(value, dtype=object if _is_text(value) else None)
    raise TypeError(f"no datatype for {type(value).__name__}")


def _is_text(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) else value, str)


def _is_plain(value: Any) -> bool:
    """A list of numbers or of texts, which is one output and not several."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, SCALARS) for item in value)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of an answer with their names: keys and fields as they are, places as ``output-0``.

    Those further inside are joined by dots: ``output-1.scores``. None is no output.
    """
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)) and not _is_plain(value):
        items = enumerate(value)
    elif value is None:
        return
    else:
        yield name or "output-0", value
        return
    for key, item in items:
        yield from flatten(item, join_name(name, key))


def join_name(name: str, key: object) -> str:
    """The name of what is at this key or place of something with a name, or of the whole answer."""
    if name:
        return f"{name}.{key}"
    return f"output-{key}" if isinstance(key, int) else str(key)


def to_texts(name: str, array: Array) -> list[str]:
    """A ``List[str]``.

    Raises:
        InvalidRequest: One is not UTF-8.
    """
    try:
        return [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc


def to_scalar(name: str, array: Array) -> Any:
    """The one element of a tensor."""
    return to_texts(name, array)[0] if array.dtype.kind == "O" else array.reshape(-1)[0].item()


def to_reason(exc: BaseException) -> str:
    """What happened, without the stack of the program's own lines."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    raised = [line for line in lines if line.split(":")[0].isidentifier() and "Error: " in line]
    last: Sequence[str] = raised[-1:] or lines[:1]
    return last[0].split("Error: ", 1)[-1] if last else type(exc).__name__
