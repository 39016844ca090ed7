# SPDX-License-Identifier: Apache-2.0
"""Reading the file that `serve run` gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.config import load_serve_file
from modelyard.errors import InvalidConfig

PLATFORM = """
applications:
  - name: platform
    route_prefix: {prefix}
    import_path: modelyard.serve.app:build
    args: {{ingress: {{num_replicas: 2}}}}
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "platform.yaml"
    path.write_text(text)
    return path


def test_addresses_and_configuration_are_found(tmp_path: Path) -> None:
    options = 'http_options: {host: "::", port: 8123}\ngrpc_options: {port: 9123, grpc_servicer_functions: [a.b]}\n'
    found = load_serve_file(_write(tmp_path, options + PLATFORM.format(prefix="/ml")))
    assert found.platform.ingress.num_replicas == 2
    assert (found.application, found.http_url, found.grpc_address) == (
        "platform",
        "http://127.0.0.1:8123/ml",
        "127.0.0.1:9123",
    )


def test_without_options_serve_listens_on_its_defaults(tmp_path: Path) -> None:
    found = load_serve_file(_write(tmp_path, PLATFORM.format(prefix="/")))
    assert (found.http_url, found.grpc_address) == ("http://127.0.0.1:8000", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "is not YAML in line 1, column 5"),
        ("[]", "expected a mapping with the key applications"),
        ("applications: {}", "applications: expected a list of applications"),
        ("applications: [{import_path: other:app}]", "expected one with import_path: modelyard.serve.app:build, got 0"),
        ("http_options: {port: eighty}" + PLATFORM.format(prefix="/"), "http_options.port: expected a port from 1"),
        ("http_options: 3" + PLATFORM.format(prefix="/"), "http_options: expected a mapping"),
        (PLATFORM.format(prefix="/").replace("ingress", "ingres"), 'ingres: unknown key; did you mean "ingress"?'),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_serve_file(_write(tmp_path, text))
    assert problem in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read: No such file"):
        load_serve_file(tmp_path / "none.yaml")
