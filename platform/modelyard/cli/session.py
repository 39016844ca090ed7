# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the program, its common options, and the way to the platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

import typer

from modelyard import __version__
from modelyard.client import Platform

Connect: TypeAlias = Callable[[], Platform]

app = typer.Typer(
    name="modelyard",
    help="Serve every kind of trained model on Ray Serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is done.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check all of it, show what would come of it, and change nothing.")
]
ExpectedGeneration = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Only if the model is still at it; one that is new is at 0.")
]
Message = Annotated[str, typer.Option("--message", "-m", help="Why, for the history.")]


class Session:
    """What the commands share: how to reach the platform.

    Args:
        connect: Replaces the way to the platform; None connects to the address of the command line.
    """

    def __init__(self, connect: Connect | None = None) -> None:
        self._connect = connect
        self.url: str | None = None
        self.token: str | None = None

    def open(self) -> Platform:
        """A client."""
        return self._connect() if self._connect else Platform.connect(self.url, token=self.token)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="MODELYARD_URL", help="Address of the platform (http://127.0.0.1:8000).")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="MODELYARD_TOKEN", show_envvar=True, help="Bearer token.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show Modelyard's version.")
    ] = False,
) -> None:
    session = context.ensure_object(Session)
    session.url, session.token = url, token


def open_platform(context: typer.Context) -> Platform:
    """A client, as the command line wants it."""
    session: Session = context.obj
    return session.open()
