# SPDX-License-Identifier: Apache-2.0
"""The rules of KubeRay's operator, and that ``modelyard validate`` and the definition are of one mind."""

from __future__ import annotations

import crd
import pytest
from renaming import renamed
from rendering import SERVICES, find

from modelyard.kuberay.rules import check_rules
from modelyard.kuberay.schema import check_shape


@pytest.mark.parametrize("folder", SERVICES)
def test_the_operator_accepts_the_service(folder: str) -> None:
    service = find(folder, "RayService")
    assert (check_shape(service), check_rules(service)) == ((), ())


@pytest.mark.parametrize("folder", SERVICES)
def test_our_own_validation_refuses_what_the_definition_does(folder: str) -> None:
    changes = list(renamed(find(folder, "RayService")))
    assert [path for path, changed in changes if not check_shape(changed) or not crd.check(changed)] == []
