# SPDX-License-Identifier: Apache-2.0
"""How the commands print: tables for people, JSON for machines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelyard.admin import Action, Event, ModelState, ModelStatus, Plan, Pool, Revision
from modelyard.inference import InferenceResponse
from modelyard.rollout import Rollout, Shadow

_COLORS: Final[dict[ModelState, str]] = {
    ModelState.READY: "green",
    ModelState.FAILED: "red",
    ModelState.UNLOADING: "yellow",
    ModelState.UNLOADED: "yellow",
    ModelState.REMOVING: "yellow",
}
_PIPE_COLUMNS: Final = 400
_MAX_VALUE_CHARS: Final = 60


def console() -> Console:
    """What prints."""
    # No markup: reasons and shapes have brackets of their own. A pipe has no width to fit into.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def print_json(document: object) -> None:
    """For machines."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))


def colored(state: ModelState) -> Text:
    """A state, red where it is bad."""
    return Text(state.value, _COLORS.get(state, ""))


def print_change(status: ModelStatus, as_json: bool, *, is_dry_run: bool) -> None:
    """One model after a change, or as it would be."""
    print_status(status, as_json)
    if is_dry_run:
        typer.echo("dry run: nothing was changed", err=True)


def print_status(status: ModelStatus, as_json: bool) -> None:
    """One model."""
    if as_json:
        print_json(status.to_dict())
        return
    table = Table(box=None, show_header=False)
    shadow, scaling = status.shadow, status.scaling
    rows: dict[str, str | Text] = {
        "name": status.name,
        "state": colored(status.state),
        "reason": status.reason,
        "version": status.version,
        "traffic": percents(status.traffic),
        "labels": ", ".join(f"{label} → {number}" for label, number in status.labels.items()),
        "rollout": describe_rollout(status.rollout) if status.rollout is not None else "",
        "scaling": f"{scaling.replicas} replicas: {scaling.reason}" if scaling is not None else "",
        "shadow": describe_shadow(shadow) if shadow is not None else "",
        "replicas": f"{status.replicas_ready}/{status.replicas_wanted}",
        "framework": status.framework,
        "uri": status.uri,
        "owner": status.owner,
        "inputs": ", ".join(f"{spec.name} {spec}" for spec in status.inputs),
        "outputs": ", ".join(f"{spec.name} {spec}" for spec in status.outputs),
        "path": status.url_path,
        "created": status.created_at,
        "updated": status.updated_at,
        "message": status.message,
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    console().print(table)


def percents(weights: Mapping[str, float]) -> str:
    """Weights by revision."""
    return ", ".join(f"{number}: {weight:g} %" for number, weight in weights.items())


def describe_rollout(rollout: Rollout) -> str:
    """Where a rollout is, in a line."""
    parts = [f"revision {rollout.to}: {rollout.state.value.replace('_', ' ')}"]
    if rollout.is_active and rollout.step >= 0:
        parts.append(f"step {rollout.step + 1} of {len(rollout.steps)}, {rollout.percent:g} %")
    if rollout.reason:
        parts.append(rollout.reason)
    if rollout.measured:
        parts.append(_describe_numbers(rollout.measured))
    return "; ".join(parts)


def _describe_numbers(measured: Mapping[str, float]) -> str:
    """What ``rollout.measure`` has found."""
    requests, copies = measured.get("requests", 0), measured.get("shadow_compared", 0)
    text = f"{requests:g} requests"
    if requests:
        failed = measured.get("error_rate", 0) * 100
        text += f", {failed:.2f} % failed, 99 % within {measured.get('p99_ms', 0):g} ms"
    if copies:
        text += f", {copies:g} shadow copies, {measured.get('shadow_mismatch', 0) * 100:.2f} % different"
    return text


def describe_shadow(shadow: Shadow) -> str:
    """Who gets copies, and what has become of them, in a line."""
    text = f"revision {shadow.revision}, {shadow.percent:g} % of the requests"
    if not shadow.measured:
        return text
    numbers = (f"{shadow.measured.get(name, 0):g} {name}" for name in ("compared", "different", "dropped"))
    return f"{text}; {', '.join(numbers)}"


def progress_printer(as_json: bool) -> Callable[[ModelStatus], None] | None:
    """Prints a line on standard error for each change of a model that is waited for; None, for machines, does not."""
    if as_json:
        return None
    last, has_rollout = "", False

    def show(status: ModelStatus) -> None:
        nonlocal last, has_rollout
        has_rollout |= status.rollout is not None and status.rollout.is_active
        line = _describe_progress(status, has_rollout)
        if line != last:
            typer.echo(line, err=True)
            last = line

    return show


def _describe_progress(status: ModelStatus, has_rollout: bool) -> str:
    """Where the rollout is that is waited for, or, without one and before it begins, the revision."""
    rollout = status.rollout
    if has_rollout and rollout is not None and (status.state is ModelState.READY or str(rollout.to) != status.version):
        return describe_rollout(rollout)
    return f"revision {status.version}: {status.state}" + (f"; {status.reason}" if status.reason else "")


def print_plan(plan: Plan, as_json: bool) -> None:
    """What registering a model would do."""
    if as_json:
        print_json(plan.to_dict())
        return
    table = Table(box=None, show_header=False)
    table.add_row("name", plan.name)
    table.add_row("action", plan.action.value)
    table.add_row("revision", str(plan.revision))
    for key, values in plan.changed.items():
        for path, before, after in _differences(key, *values) if values else [(key, "", "changed")]:
            table.add_row(path, f"{before} → {after}" if values else after)
    if plan.action is Action.REVISE and not plan.changed:
        table.add_row("files", "changed")
    if plan.action in (Action.CREATE, Action.REVISE):
        table.add_row("traffic", _describe_way(plan.rollout))
    console().print(table)


def _differences(path: str, before: Any, after: Any) -> Iterator[tuple[str, str, str]]:
    """What differs between two values, by path, as JSON."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        yield path, orjson.dumps(before).decode(), orjson.dumps(after).decode()
        return
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield from _differences(f"{path}.{key}", before.get(key), after.get(key))


def _describe_changes(changed: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Before and after of each, shortened; only the key of what may hold secrets."""
    for key, values in changed.items():
        if not values:
            yield key
        for path, before, after in _differences(key, *values) if values else ():
            yield f"{path}: {_shorten(before)} → {_shorten(after)}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 1]}…"


def _describe_way(rollout: Rollout | None) -> str:
    """How a new revision gets its traffic."""
    if rollout is None:
        return "all at once"
    if rollout.is_plain:
        return "all as soon as it is ready"
    if not rollout.steps:
        return "none until it is promoted"
    steps = ", ".join(f"{step:g} %" for step in rollout.steps)
    gates = [f"{name} {limit:g}" for name, limit in asdict(rollout.gates).items() if limit is not None]
    return f"{steps}, {rollout.interval_s:g} s each" + (f", while {' and '.join(gates)} hold" if gates else "")


def print_pools(pools: Iterable[Pool], as_json: bool) -> None:
    """Where shared models live: a row for each process."""
    if as_json:
        print_json({"pools": [pool.to_dict() for pool in pools]})
        return
    table = Table("pool", "revisions", "loaded", "memory", "hits", "loads", "evictions", "load p50", "p99", box=None)
    for pool in pools:
        for one in pool.replicas:
            asked = one.hits + one.misses
            table.add_row(
                pool.name,
                str(pool.revisions),
                str(one.loaded),
                f"{one.memory_mb} of {one.memory_limit_mb} MiB",
                f"{one.hits / asked:.1%} of {asked}" if asked else "",
                str(one.loads),
                str(one.evictions),
                f"{one.load_p50_ms:.0f} ms" if one.loads else "",
                f"{one.load_p99_ms:.0f} ms" if one.loads else "",
            )
    console().print(table)


def print_revisions(revisions: Iterable[Revision], as_json: bool) -> None:
    """The history of a model."""
    if as_json:
        print_json({"revisions": [revision.to_dict() for revision in revisions]})
        return
    table = Table("number", "state", "traffic", "labels", "created", "by", "message", "changed", box=None)
    for one in revisions:
        table.add_row(
            str(one.number),
            Text(one.state, _COLORS.get(ModelState(one.state), "")) if one.state else "",
            f"{one.traffic:g} %" if one.traffic is not None else "",
            ", ".join(one.labels),
            one.created_at,
            one.actor,
            one.message,
            ", ".join(_describe_changes(one.changed)),
        )
    console().print(table)


def print_events(events: Iterable[Event], as_json: bool) -> None:
    """What happened, a line each; as JSON each on a line of its own."""
    for event in events:
        if as_json:
            typer.echo(orjson.dumps(event.to_dict()))
            continue
        known = {key: value for key, value in event.detail.items() if value not in (None, "", [], {})}
        detail = " ".join(f"{key}={orjson.dumps(value).decode()}" for key, value in known.items())
        parts = (event.at, event.model, event.kind, event.actor, event.message, detail)
        typer.echo("  ".join(part for part in parts if part))


def print_response(response: InferenceResponse, as_json: bool) -> None:
    """A model's answer, a row for each of its own."""
    outputs = {name: _to_json(array.tolist()) for name, array in response.outputs.items()}
    if as_json:
        print_json({"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs})
        return
    table = Table(*outputs, box=None)
    columns = [values if isinstance(values, list) else [values] for values in outputs.values()]
    for index in range(max(map(len, columns), default=0)):
        table.add_row(*(_cell(column[index]) if index < len(column) else "" for column in columns))
    console().print(table)


def _to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _cell(value: Any) -> str:
    return " ".join(map(_cell, value)) if isinstance(value, list) else str(value)
