# SPDX-License-Identifier: Apache-2.0
"""The commands that make manifests of a platform file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.cli.session import app
from modelyard.cli.validate import check_rayservice, check_serve
from modelyard.config.documents import read_yaml
from modelyard.errors import InvalidConfig
from modelyard.kuberay import Choices, Size, render
from modelyard.kuberay.quantity import to_number

commands = typer.Typer(help="Make manifests of a platform file.", no_args_is_help=True)
app.add_typer(commands, name="render")


@commands.callback()
def _group() -> None:
    """Make manifests of a platform file."""


def _check_quantity(text: str | None) -> str | None:
    try:
        to_number(text or 0)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return text


def _memory(help_text: str) -> Any:
    return typer.Option(callback=_check_quantity, metavar="QUANTITY", help=help_text)


@commands.command()
def kuberay(
    config: Annotated[Path, typer.Option("--config", help="A Serve file.")] = Path("configs/platform.yaml"),
    overlay: Annotated[str, typer.Option("--overlay", help="Which of kuberay/overlays.")] = "cpu",
    name: Annotated[str, typer.Option("--name", help="Of the RayService.")] = "modelyard",
    image: Annotated[str, typer.Option("--image", help="Of all pods; left out, the overlay's of this version.")] = "",
    worker_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a pod without GPUs.")] = None,
    worker_memory: Annotated[str | None, _memory("Memory of a pod without GPUs, 16Gi.")] = None,
    gpu_worker_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a pod with GPUs.")] = None,
    gpu_worker_memory: Annotated[str | None, _memory("Memory of a pod with GPUs.")] = None,
    gpu_worker_gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of a pod with any.")] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option("--node-selector", metavar="GROUP:LABEL=VALUE", help="Nodes that a group has to be on."),
    ] = None,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", exists=True, dir_okay=False, help="Print what differs from this file; exit status 1."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write there instead of printing.")] = None,
) -> None:
    """Make a RayService: an overlay's, with worker groups for the models of a file."""
    choices = Choices(
        overlay=overlay,
        name=name,
        image=image,
        cpu_worker=Size(worker_cpus, worker_memory),
        gpu_worker=Size(gpu_worker_cpus, gpu_worker_memory, gpu_worker_gpus),
        selectors=_parse_selectors(node_selector or ()),
    )
    document = read_yaml(config, "applications")
    _refuse(check_serve(document))
    rendered = render(document, choices)
    _refuse(check_rayservice(rendered.service))
    for warning in rendered.warnings:
        typer.echo(f"modelyard: warning: {warning}", err=True)
    text = rendered.to_yaml()
    before = diff.read_text(encoding="utf-8") if diff is not None else ""  # first: the output may be the same file
    if output is not None:
        output.write_text(text, encoding="utf-8")
    elif diff is None:
        typer.echo(text, nl=False)
    if diff is not None:
        _print_difference(before, text, str(diff))


def _refuse(problems: tuple[str, ...]) -> None:
    if problems:
        raise InvalidConfig(problems)


def _print_difference(before: str, after: str, name: str) -> None:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), name, "new", lineterm=""))
    for line in lines:
        typer.echo(line)
    if lines:
        raise typer.Exit(1)


def _parse_selectors(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        group, colon, pair = text.partition(":")
        label, equals, value = pair.partition("=")
        if not (colon and equals and group and label):
            raise typer.BadParameter(f'expected GROUP:LABEL=VALUE, got "{text}"', param_hint="--node-selector")
        found.setdefault(group, {})[label] = value
    return found
