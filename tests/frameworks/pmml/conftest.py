# SPDX-License-Identifier: Apache-2.0
"""Documents that are no cases."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write_latin_tree(trainers: Any) -> Callable[[Path], None]:
    """Writes a tree in another encoding than UTF-8, all fields optional, without an Output."""
    trainers("pmml")
    write: Callable[[Path], None] = sys.modules["modelyard_cases_pmml"]._latin_tree
    return write
