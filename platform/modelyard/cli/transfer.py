# SPDX-License-Identifier: Apache-2.0
"""The commands that write registered models into a file, and register those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from modelyard.cli.printing import print_json
from modelyard.cli.session import AsJson, DryRun, Message, app, open_platform
from modelyard.config import read_models


@app.command()
def export(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of models; all registered ones without.")
    ] = None,
    all_owners: Annotated[
        bool, typer.Option("--all", help="All others too, for example of the configuration file.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print models as YAML for `import` or a configuration file, secrets in their environment included."""
    if names and all_owners:
        raise typer.BadParameter("expected names or --all, got both")
    with open_platform(context) as platform:
        document = {"models": list(platform.export(names or (), all_owners=all_owners))}
    if as_json:
        print_json(document)
        return
    typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` has printed.")],
    dry_run: DryRun = False,
    message: Message = "",
    as_json: AsJson = False,
) -> None:
    """Register each model of a file, or none where one of them is wrong."""
    specs = read_models(file)
    with open_platform(context) as platform:
        plans = platform.import_(specs, message=message, dry_run=dry_run)
    if as_json:
        print_json({"models": [plan.to_dict() for plan in plans]})
        return
    for plan in plans:
        typer.echo(f"{plan.name}: {plan.action.value}, revision {plan.revision}")
