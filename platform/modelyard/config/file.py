# SPDX-License-Identifier: Apache-2.0
"""The file given to ``serve run``: Ray Serve's own keys around the platform's configuration.

Ray Serve checks its own keys when it starts; here they are read only as far as the platform's addresses need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelyard.config.documents import read_yaml
from modelyard.config.platform import PlatformConfig, load_platform_config
from modelyard.errors import InvalidConfig

IMPORT_PATH: Final = "modelyard.serve.app:build"
_DEFAULT_HTTP: Final = ("127.0.0.1", 8000)
_ANYWHERE: Final = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, never bound to


@dataclass(frozen=True, slots=True)
class ServeFile:
    """What a Serve file says about the platform.

    Attributes:
        platform: The platform application's configuration.
        application: Its name.
        http_url: Where HTTP clients reach it from this machine, without a trailing slash.
        grpc_address: Where gRPC clients reach it from this machine; None when gRPC is off.
    """

    platform: PlatformConfig
    application: str
    http_url: str
    grpc_address: str | None


def load_serve_file(path: Path) -> ServeFile:
    """Reads and checks a Serve file before anything is started.

    Raises:
        InvalidConfig: The file cannot be read, is not YAML, has no platform application, or its configuration is
            wrong.
    """
    document = read_yaml(path, "applications")
    application = _find_application(document)
    args = application.get("args", {})
    if not isinstance(args, Mapping):
        raise InvalidConfig(("args: expected a mapping",))
    host, port = _http_address(document)
    prefix = str(application.get("route_prefix") or "/").rstrip("/")
    return ServeFile(
        platform=load_platform_config(args),
        application=str(application.get("name", "default")),
        http_url=f"http://{_bracketed(host)}:{port}{prefix}",
        grpc_address=_grpc_address(document, host),
    )


def _find_application(document: Mapping[str, Any]) -> Mapping[str, Any]:
    applications = document.get("applications")
    if not isinstance(applications, list):
        raise InvalidConfig(("applications: expected a list of applications",))
    found = [item for item in applications if isinstance(item, Mapping) and item.get("import_path") == IMPORT_PATH]
    if len(found) != 1:
        raise InvalidConfig((f"applications: expected one with import_path: {IMPORT_PATH}, got {len(found)}",))
    return found[0]


def _http_address(document: Mapping[str, Any]) -> tuple[str, int]:
    options = _section(document, "http_options")
    host = str(options.get("host", _DEFAULT_HTTP[0]))
    return ("127.0.0.1" if host in _ANYWHERE else host), _port(options, "http_options", _DEFAULT_HTTP[1])


def _grpc_address(document: Mapping[str, Any], host: str) -> str | None:
    options = _section(document, "grpc_options")
    if not options.get("grpc_servicer_functions"):
        return None  # Serve starts its gRPC proxy only where services are listed
    return f"{_bracketed(host)}:{_port(options, 'grpc_options', 9000)}"


def _section(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    options = document.get(key) or {}
    if not isinstance(options, Mapping):
        raise InvalidConfig((f"{key}: expected a mapping",))
    return options


def _port(options: Mapping[str, Any], key: str, default: int) -> int:
    port = options.get("port", default)
    if type(port) is not int or not 0 < port < 65536:
        raise InvalidConfig((f"{key}.port: expected a port from 1 to 65535, got {port}",))
    return port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
