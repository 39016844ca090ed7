# SPDX-License-Identifier: Apache-2.0
"""The commands that move a model's traffic, and those that show what was."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from modelyard.cli.printing import print_change, print_events, print_pools, print_revisions, progress_printer
from modelyard.cli.session import AsJson, DryRun, ExpectedGeneration, Message, Name, TimeoutS, Wait, app, open_platform
from modelyard.cli.values import parse_shadow, parse_steps, parse_weights

Revision = Annotated[str | None, typer.Argument(metavar="[REVISION]", help="Its number or a label.")]


@app.command()
def traffic(
    context: typer.Context,
    name: Name,
    weights: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REVISION=PERCENT]...", help="Who gets how much, for example 1=90 2=10."),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="REVISION[:PERCENT]", help="Send copies of the requests to this one, and compare."),
    ] = None,
    no_shadow: Annotated[bool, typer.Option("--no-shadow", help="Send no more copies.")] = False,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Send a model's traffic elsewhere."""
    if shadow is not None and no_shadow:
        raise typer.BadParameter("expected one of --shadow and --no-shadow, got both")
    changes: dict[str, Any] = {"shadow": None} if no_shadow else {}
    if shadow is not None:
        changes["shadow"] = parse_shadow(shadow)
    with open_platform(context) as platform:
        changed = platform.set_traffic(
            name,
            parse_weights(weights) if weights else None,
            **changes,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
        )
    print_change(changed, as_json, is_dry_run=dry_run)


@app.command()
def label(
    context: typer.Context,
    name: Name,
    text: Annotated[str, typer.Argument(metavar="LABEL", help="The label.")],
    revision: Revision = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take it away.")] = False,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Point a label at a revision, or take it away."""
    if remove == (revision is not None):
        raise typer.BadParameter("expected either a revision or --remove")
    with open_platform(context) as platform:
        if revision is None:
            changed = platform.remove_label(
                name, text, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
        else:
            changed = platform.set_label(
                name, text, revision, message=message, expected_generation=expected_generation, dry_run=dry_run
            )
    print_change(changed, as_json, is_dry_run=dry_run)


@app.command()
def rollout(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Argument(metavar="TO", help="The revision: its number or a label.")],
    steps: Annotated[
        str | None, typer.Option(metavar="PERCENT,…", help="Percent of the traffic, one after the other.")
    ] = None,
    interval_s: Annotated[
        float | None, typer.Option("--interval", metavar="SECONDS", help="How long each step takes at least.")
    ] = None,
    min_requests: Annotated[
        int | None, typer.Option(metavar="COUNT", help="Requests each step has to see before its gates hold.")
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(metavar="0…1", help="Gate: faults of the server among its requests at most.")
    ] = None,
    p99_ms: Annotated[
        float | None, typer.Option("--p99-ms", metavar="MS", help="Gate: 99 of 100 requests are answered within.")
    ] = None,
    shadow_mismatch: Annotated[
        float | None, typer.Option(metavar="0…1", help="Gate: different answers among copies of requests at most.")
    ] = None,
    no_gates: Annotated[bool, typer.Option("--no-gates", help="None of the model's gates, only those given.")] = False,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Bring a revision on its way to all traffic; what is left out is as the model has it."""
    wanted = {"error_rate": error_rate, "p99_ms": p99_ms, "shadow_mismatch": shadow_mismatch}
    gates = {gate: limit for gate, limit in wanted.items() if limit is not None or no_gates}
    with open_platform(context) as platform:
        reached = platform.rollout(
            name,
            to,
            steps=None if steps is None else parse_steps(steps),
            interval_s=interval_s,
            min_requests=min_requests,
            gates=gates or None,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    print_change(reached, as_json, is_dry_run=dry_run)


@app.command()
def promote(
    context: typer.Context,
    name: Name,
    revision: Revision = None,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Give a revision all traffic: that of the rollout, or this one."""
    with open_platform(context) as platform:
        changed = platform.promote(
            name,
            revision,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    print_change(changed, as_json, is_dry_run=dry_run)


@app.command()
def rollback(
    context: typer.Context,
    name: Name,
    revision: Revision = None,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Take the rollout back, or return to the revision before, or to this one."""
    with open_platform(context) as platform:
        changed = platform.rollback(
            name,
            revision,
            message=message,
            expected_generation=expected_generation,
            dry_run=dry_run,
            wait=wait,
            timeout_s=timeout_s,
            on_progress=progress_printer(as_json),
        )
    print_change(changed, as_json, is_dry_run=dry_run)


@app.command()
def abort(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take the rollout on its way back; refused where there is none."""
    with open_platform(context) as platform:
        print_change(
            platform.abort(name, message=message, expected_generation=expected_generation, dry_run=dry_run),
            as_json,
            is_dry_run=dry_run,
        )


@app.command()
def pause(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Keep a rollout at its step, where its gates go on holding, or from beginning."""
    with open_platform(context) as platform:
        print_change(
            platform.pause(name, message=message, expected_generation=expected_generation, dry_run=dry_run),
            as_json,
            is_dry_run=dry_run,
        )


@app.command()
def resume(
    context: typer.Context,
    name: Name,
    message: Message = "",
    expected_generation: ExpectedGeneration = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let a paused rollout go on."""
    with open_platform(context) as platform:
        print_change(
            platform.resume(name, message=message, expected_generation=expected_generation, dry_run=dry_run),
            as_json,
            is_dry_run=dry_run,
        )


@app.command()
def revisions(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show the history of a model, newest first."""
    with open_platform(context) as platform:
        print_revisions(platform.revisions(name), as_json)


@app.command()
def pools(context: typer.Context, as_json: AsJson = False) -> None:
    """Show where shared models live."""
    with open_platform(context) as platform:
        print_pools(platform.pools(), as_json)


@app.command()
def events(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the model; of all without.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the latest.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that come, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened, oldest first."""
    with open_platform(context) as platform:
        latest = platform.events(name, limit=limit)
        print_events(reversed(latest), as_json)
        if not follow:
            return
        with contextlib.suppress(KeyboardInterrupt):
            print_events(platform.watch(name, after=latest[0].id if latest else 0), as_json)
