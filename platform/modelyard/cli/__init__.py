# SPDX-License-Identifier: Apache-2.0
"""The command ``modelyard``: the Python API's verbs in a shell.

Tables for people, ``--json`` for machines. An error is one line on standard error: exit status 1, or 2 where the
command line itself is wrong. Each module adds its commands to the program when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from modelyard.cli import launch, models, render, rollouts, transfer, validate
from modelyard.cli.session import Connect, Session, app
from modelyard.errors import InvalidConfig, ModelyardError

__all__ = ["launch", "main", "models", "render", "rollouts", "transfer", "validate"]


def main(arguments: Sequence[str] | None = None, *, connect: Connect | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: Without the program's name; None for this process's.
        connect: Replaces the way to the platform.

    Raises:
        SystemExit: Always; with the exit status.
    """
    try:
        app(None if arguments is None else list(arguments), obj=Session(connect))
    except InvalidConfig as exc:
        _fail(exc.problems)
    except ModelyardError as exc:
        _fail((str(exc),))


def _fail(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        typer.echo(f"modelyard: {' '.join(sentence.split())}", err=True)
    sys.exit(1)
