# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from modelyard.kuberay.quantity import to_number


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("500m", "0.5"), ("4", 4), (4, 4), ("1.5Gi", 3 * 2**29), ("2k", 2000), ("1e3", 1000), ("1E", 10**18), ("-1", -1)],
)
def test_quantities_are_numbers(quantity: str | int, number: str | int) -> None:
    assert to_number(quantity) == Decimal(number)


@pytest.mark.parametrize("quantity", ["", "Gi", "4gb", "4 Gi", "1.2.3"])
def test_what_is_no_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        to_number(quantity)
