# SPDX-License-Identifier: Apache-2.0
"""The command that starts the platform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.session import app
from modelyard.config import ServeFile
from modelyard.launch import check_file, check_open_files, check_ports, run_serve


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="A Serve file.")] = Path("configs/platform.yaml"),
    check: Annotated[bool, typer.Option("--check", help="Only check the file.")] = False,
) -> None:
    """Start the platform on this machine, until Ctrl-C."""
    found = check_file(config)
    grpc = f", gRPC {found.grpc_address}" if found.grpc_address else ""
    typer.echo(f"{config}: {len(found.platform.models)} models, HTTP {found.http_url}{grpc}")
    if check:
        return
    check_open_files()
    check_ports(found)

    def ready() -> None:
        typer.echo(_ready_text(found))

    raise typer.Exit(run_serve(config, on_ready=ready, ready_url=f"{found.http_url}/v2/health/ready"))


def _ready_text(found: ServeFile) -> str:
    lines = [f"Modelyard is ready: HTTP {found.http_url}, gRPC {found.grpc_address or 'off'}. Ctrl-C stops it."]
    names = [spec.name for spec in found.platform.models]
    if "iris-sklearn" in names:
        body = '{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
        lines.append(f"Try it:  curl {found.http_url}/v1/models/iris-sklearn:predict -d '{body}'")
    else:
        lines.append(f"Try it:  curl {found.http_url}/v1/models")
    return "\n".join(lines)
