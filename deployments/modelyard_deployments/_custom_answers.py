# SPDX-License-Identifier: Apache-2.0
"""What the user's code gives, as arrays of the datatypes that the signature says; lists and numbers will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from modelyard.signature import Signature
from modelyard.tensor import DATATYPES, Array, Tensors

_RANKS: Final = {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2}
"""Kinds of numbers: each takes those before it. BF16 is V to numpy."""


def to_array(value: Any, datatype: str, name: str) -> Array:
    """One output; the array itself where it fits already, texts of BYTES as they are.

    Raises:
        TypeError: It is something else, or a number is out of the datatype's range.
    """
    wanted = DATATYPES[datatype].dtype
    if isinstance(value, np.ndarray) and value.dtype == wanted:
        return value
    if datatype == "BYTES":
        return np.asarray(value, dtype=object)
    try:
        array: Array = np.asarray(value)
    except ValueError as exc:  # rows of different lengths
        raise TypeError(f'output "{name}": expected {datatype}, got {type(value).__name__}: {exc}') from exc
    if array.size and _RANKS.get(array.dtype.kind, 3) > _RANKS[wanted.kind]:
        got = f"{type(value).__name__} of {array.dtype}"
        raise TypeError(f'output "{name}": expected {datatype}, got {got}')
    with np.errstate(over="ignore"):
        fitted = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(fitted, array):
        raise TypeError(f'output "{name}": expected numbers in the range of {datatype}, got others')
    return fitted


class Answers:
    """Makes answers fit a signature, which may change."""

    def __init__(self) -> None:
        self._signature: Signature | None = None
        self._datatypes: dict[str, str] = {}

    def fit(self, given: Any, names: tuple[str, ...], signature: Signature, step: str) -> Tensors:
        """The outputs of these names that are there.

        Args:
            given: What the user's code gave.
            names: What was asked for.
            signature: Which says what they are.
            step: What gave it.

        Raises:
            TypeError: It is no dictionary of outputs, or one of them does not fit.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"{step}: expected a dictionary with the outputs, got {type(given).__name__}")
        if signature is not self._signature:
            specs = (*signature.outputs, *signature.on_request)
            self._datatypes = {spec.name: spec.datatype for spec in specs}
            self._signature = signature
        known = self._datatypes
        return {name: to_array(given[name], known[name], name) for name in names if name in given}
