# SPDX-License-Identifier: Apache-2.0
"""A model's status on the wire."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from modelyard.admin import ModelState, ModelStatus
from modelyard.signature import TensorSpec

STATUS = ModelStatus(
    name="iris",
    framework="sklearn",
    uri="models/iris",
    owner="declared",
    state=ModelState.FAILED,
    reason="no such file",
    version="2",
    replicas_wanted=1,
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
)


def test_a_status_survives_json() -> None:
    document = json.loads(json.dumps(STATUS.to_dict()))
    assert ModelStatus.from_dict(document) == STATUS
    assert document.keys() == {field.name for field in fields(ModelStatus)}


def test_a_newer_servers_keys_are_ignored() -> None:
    assert ModelStatus.from_dict({**STATUS.to_dict(), "shadow": "3"}) == STATUS


def test_an_incomplete_status_is_refused() -> None:
    with pytest.raises(KeyError):
        ModelStatus.from_dict({"name": "iris", "state": "ready"})
    with pytest.raises(ValueError, match="flying"):
        ModelStatus.from_dict({**STATUS.to_dict(), "state": "flying"})
