# SPDX-License-Identifier: Apache-2.0
"""The commands that manage models and ask them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from modelyard.admin import ModelState
from modelyard.cli.printing import (
    colored,
    console,
    print_change,
    print_json,
    print_plan,
    print_response,
    print_status,
    progress_printer,
)
from modelyard.cli.session import AsJson, DryRun, ExpectedGeneration, Message, Name, TimeoutS, Wait, app, open_platform
from modelyard.cli.values import find_inputs, pair, parse_settings, read_data
from modelyard.config import parse_model_spec
from modelyard.inference import InferenceRequest


@app.command()
def register(
    context: typer.Context,
    name: Name,
    framework: Annotated[str, typer.Option(help="What loads it, for example sklearn.")],
    uri: Annotated[str, typer.Option(help="Where its artifact is, as the platform sees it.")] = "",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Option of the framework.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Setting, for example autoscaling.max_replicas=4."),
    ] = None,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Create a model, or change a registered one."""
    options = dict(pair(text, "--option") for text in option or [])
    sections = parse_settings(setting or [])
    spec = parse_model_spec({"name": name, "framework": framework, "uri": uri, "options": options, **sections})
    with open_platform(context) as platform:
        if dry_run:
            print_plan(platform.register_spec(spec, expected_generation=expected_generation, dry_run=True), as_json)
            return
        registered = platform.register_spec(
            spec,
            message=message,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
            expected_generation=expected_generation,
        )
    print_status(registered, as_json)


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """Show all models."""
    with open_platform(context) as platform:
        models = platform.list()
    if as_json:
        print_json({"models": [model.to_dict() for model in models]})
        return
    table = Table("name", "framework", "version", "state", "replicas", "owner", "reason", box=None)
    for model in models:
        table.add_row(
            model.name,
            model.framework,
            model.version,
            colored(model.state),
            f"{model.replicas_ready}/{model.replicas_wanted}",
            model.owner,
            model.reason,
        )
    console().print(table)


@app.command()
def status(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show one model."""
    with open_platform(context) as platform:
        print_status(platform.status(name), as_json)


@app.command("wait")
def wait_(context: typer.Context, name: Name, timeout_s: TimeoutS = 60.0, as_json: AsJson = False) -> None:
    """Wait until a model answers requests; status 1 as soon as it has failed, is unloaded, or the time is over."""
    with open_platform(context) as platform:
        print_status(platform.wait_ready(name, timeout_s), as_json)


@app.command()
def load(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run a model again that was unloaded or has failed, with its artifact as it now is."""
    with open_platform(context) as platform:
        loaded = platform.load(
            name,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    print_change(loaded, as_json, is_dry_run=dry_run)


@app.command()
def unload(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Stop a model, keeping it for `load`; it answers what it has accepted first."""
    with open_platform(context) as platform:
        unloaded = platform.unload(
            name,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    print_change(unloaded, as_json, is_dry_run=dry_run)


@app.command()
def unregister(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Take a registered model away; it answers what it has accepted first."""
    with open_platform(context) as platform:
        removed = platform.unregister(
            name,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    if wait and not dry_run and removed.state is ModelState.REMOVING and not as_json:
        typer.echo(f"{name} is gone")
    else:
        print_change(removed, as_json, is_dry_run=dry_run)


@app.command()
def predict(
    context: typer.Context,
    name: Name,
    data: Annotated[
        str,
        typer.Option(
            "--data", "-d", metavar="FILE|-|JSON", help="Rows, records, columns, or a v1 or v2 request, as JSON."
        ),
    ],
    output: Annotated[list[str] | None, typer.Option("--output", help="Output to ask for, e.g. predict_proba.")] = None,
    version: Annotated[str | None, typer.Option(help="Revision number or label.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Deadline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model."""
    body = read_data(data)
    outputs = output or []
    with open_platform(context) as platform:
        inputs = find_inputs(body)
        if isinstance(inputs, InferenceRequest) and not outputs:
            response = platform.infer(name, inputs, version=version, timeout_s=timeout_s)
        else:
            arrays = inputs.inputs if isinstance(inputs, InferenceRequest) else inputs
            response = platform.predict(name, arrays, outputs=outputs, version=version, timeout_s=timeout_s)
    print_response(response, as_json)
