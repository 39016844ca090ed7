# SPDX-License-Identifier: Apache-2.0
"""One behaviour for every framework and every kind of model: every check on every case."""

from collections.abc import Callable
from typing import Any

import pytest

from modelyard.model import Model
from modelyard.testing import CHECKS, Case


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_model_conforms(check: Callable[[Model, Case], None], model: Model, trained: Any) -> None:
    check(model, trained.case)
