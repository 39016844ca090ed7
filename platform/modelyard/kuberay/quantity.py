# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' quantities: ``500m``, ``4``, ``16Gi``.

Source: Kubernetes ``apimachinery/pkg/api/resource/quantity.go``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_PARTS: Final = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_BINARY: Final = "KMGTPE"
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def to_number(quantity: str | int) -> Decimal:
    """How much a quantity is.

    Raises:
        ValueError: It is none.
    """
    found = _PARTS.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f'expected a quantity as 500m, 2 or 4Gi, got "{quantity}"')
    number, unit = Decimal(found[1]), found[2] or ""
    if unit.endswith("i"):
        return number * Decimal(1024 ** (_BINARY.index(unit[0]) + 1))
    if unit in _DECIMAL:
        return number.scaleb(_DECIMAL[unit])
    return number.scaleb(int(unit[1:]))
