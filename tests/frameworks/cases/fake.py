# SPDX-License-Identifier: Apache-2.0
"""The framework without a library keeps to the same rules."""

from pathlib import Path

import numpy as np

from modelyard.testing import Case


def sums(folder: Path) -> Case:
    (folder / "model.fake").write_text("0.5")
    rows = np.arange(12.0).reshape(3, 4)
    return Case({"x": rows}, {"output-0": rows.sum(axis=1) + 0.5})


def explained(folder: Path) -> Case:
    (folder / "model.fake").write_text("0.5")
    rows = np.arange(12.0).reshape(3, 4)
    return Case({"x": rows}, {"contributions": np.column_stack([rows, [0.5] * 3])}, {"explains": True})
