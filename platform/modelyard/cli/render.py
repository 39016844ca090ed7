# SPDX-License-Identifier: Apache-2.0
"""The commands that make manifests of a platform file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from modelyard.cli.session import app
from modelyard.cli.validate import check_rayservice, check_serve
from modelyard.config.documents import read_yaml
from modelyard.config.problems import shown
from modelyard.errors import InvalidConfig
from modelyard.kuberay import Choices, Size, render
from modelyard.kuberay.metadata import LABEL, is_key, is_label
from modelyard.kuberay.quantity import to_number

_DIFFERENT: Final = 1
_FAILED: Final = 2
"""With ``--diff``, as `diff` itself has it: a script has to tell a change from a file that cannot be made."""

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
        typer.Option(
            "--diff",
            exists=True,
            dir_okay=False,
            help="Print what differs from this file (exit status 1, or 2: failed).",
        ),
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
    try:
        text = _make(config, choices)
        before = _read(diff) if diff is not None else ""  # first: the output may be the same file
        if output is not None:
            _write(output, text)
    except InvalidConfig as exc:
        if diff is None:
            raise
        for problem in exc.problems:
            typer.echo(f"modelyard: {' '.join(problem.split())}", err=True)
        raise typer.Exit(_FAILED) from exc
    if diff is not None:
        _print_difference(before, text, str(diff))
    elif output is None:
        typer.echo(text, nl=False)


def _make(config: Path, choices: Choices) -> str:
    document = read_yaml(config, "applications")
    _refuse(check_serve(document))
    rendered = render(document, choices)
    _refuse(check_rayservice(rendered.service))
    for warning in rendered.warnings:
        typer.echo(f"modelyard: warning: {warning}", err=True)
    return rendered.to_yaml()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidConfig((f"--diff: {path}: cannot be read: {exc}",)) from exc


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise InvalidConfig((f"--output: {path}: cannot be written: {exc.strerror}",)) from exc


def _refuse(problems: tuple[str, ...]) -> None:
    if problems:
        raise InvalidConfig(problems)


def _print_difference(before: str, after: str, name: str) -> None:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), name, "new", lineterm=""))
    for line in lines:
        typer.echo(line)
    if lines:
        raise typer.Exit(_DIFFERENT)


def _parse_selectors(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        group, colon, pair = text.partition(":")
        label, equals, value = pair.partition("=")
        if not (colon and equals and group and label):
            raise typer.BadParameter(f'expected GROUP:LABEL=VALUE, got "{text}"', param_hint="--node-selector")
        if not (is_key(label) and is_label(value)):
            expected = f"expected a label of nodes as example.com/name, and of both {LABEL}"
            raise typer.BadParameter(f"{expected}, got {shown(text, '')}", param_hint="--node-selector")
        found.setdefault(group, {})[label] = value
    return found
