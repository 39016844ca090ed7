# SPDX-License-Identifier: Apache-2.0
"""What docs/tfserving.md lists, held against the services and the routes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import yaml

from modelyard.protocol.openapi import OPERATIONS
from modelyard.protos import tensorflow_serving_pb2

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tfserving.md").read_text()


def test_every_method_of_the_services_is_listed() -> None:
    listed = dict(re.findall(r"^\| `(tensorflow\.serving\.\w+)` \| (.*) \|$", DOCUMENT, re.MULTILINE))
    services = tensorflow_serving_pb2.DESCRIPTOR.services_by_name.values()
    assert {name: set(re.findall(r"`(\w+)`", cells)) for name, cells in listed.items()} == {
        service.full_name: {method.name for method in service.methods} for service in services
    }


def test_the_serve_file_names_services_that_there_are() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    functions = yaml.safe_load(block)["grpc_options"]["grpc_servicer_functions"]
    assert len(functions) == 4
    for path in functions:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_routes_that_are_listed_are_served() -> None:
    served = {f"{operation.method} {operation.path.replace('*', '')}" for operation in OPERATIONS}
    listed = re.findall(r"^\| `((?:GET|POST) /v1\S+)`", DOCUMENT, re.MULTILINE)
    assert len(listed) == 5
    assert set(listed) <= served
