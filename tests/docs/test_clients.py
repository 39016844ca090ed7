# SPDX-License-Identifier: Apache-2.0
"""The table of client methods: complete, proven, and the same as ``docs/clients.md``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import install_clients
import pytest
from shared_platform.conformance.methods import DOCUMENT, HERE, METHODS, Entry, render

SCRIPTS = {"kserve": "kserve_calls.py", "tensorflow_serving": "tfserving_calls.py"}
"""What asks the clients that run in a process of their own."""
ENTRIES = [(client, name, entry) for client, methods in METHODS.items() for name, entry in methods.items()]


def public_methods(client: str) -> set[str]:
    """What a client offers now; a module's own functions where it is a module."""
    module, _, name = client.partition(":")
    if module == "kserve":
        return kserve_methods(name)
    if module.startswith("tensorflow_serving"):
        return stub_methods(module, name)
    found = importlib.import_module(module)
    if not name:
        functions = inspect.getmembers(found, inspect.isfunction)
        return {key for key, function in functions if key[0] != "_" and function.__module__ == module}
    return {key for key in dir(getattr(found, name)) if not key.startswith("_")}


def kserve_methods(name: str) -> set[str]:
    """Read from its source, for it cannot be imported beside Triton's client."""
    if not install_clients.is_installed():
        pytest.skip("no kserve environment: python tests/e2e/install_clients.py makes it")
    (source,) = install_clients.FOLDER.glob("lib/python3.*/site-packages/kserve/inference_client.py")
    (client,) = [node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == name]
    assert isinstance(client, ast.ClassDef)
    functions = [node for node in client.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if not node.name.startswith("_")}


def stub_methods(module: str, name: str) -> set[str]:
    """Read from their source, for they import TensorFlow; each is an attribute that the constructor sets."""
    if importlib.util.find_spec("tensorflow_serving") is None:
        pytest.skip("no tensorflow-serving-api: pip install -e .[dev]")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    nodes = ast.walk(ast.parse(Path(found.origin).read_text()))
    (client,) = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        node.attr for node in ast.walk(client) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize("client", METHODS)
def test_the_table_has_every_method_of_a_client_and_no_other(client: str) -> None:
    assert public_methods(client) == set(METHODS[client])


@pytest.mark.parametrize(("client", "name", "entry"), ENTRIES)
def test_every_entry_names_a_test_that_uses_the_method(client: str, name: str, entry: Entry) -> None:
    assert (entry.state == "works") == (not entry.reason)
    if entry.state == "not applicable":
        assert not entry.test
        return
    file, _, test = entry.test.partition("::")
    source = (HERE / file).read_text()
    functions = [node.name for node in ast.walk(ast.parse(source)) if hasattr(node, "args") and hasattr(node, "name")]
    assert test in functions
    script = next((path for start, path in SCRIPTS.items() if client.startswith(start)), None)
    calls = source if script is None else (HERE / script).read_text()
    helpers = (HERE / "triton.py").read_text() if client.startswith("tritonclient") else ""
    # InferResult.from_response_body is what parse_response_body returns from
    used = "parse_response_body" if name == "from_response_body" else name
    assert used in calls + helpers


def test_the_document_is_made_from_the_table() -> None:
    assert DOCUMENT.read_text() == render(), "run python tests/e2e/shared_platform/conformance/methods.py"
