# SPDX-License-Identifier: Apache-2.0
"""The command ``modelyard``: the Python API's verbs in a shell.

Tables for people, ``--json`` for machines. An error is one line on standard error: exit status 1, or 2 where the
command line itself is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelyard import __version__
from modelyard.admin import ModelState, ModelStatus
from modelyard.client import Platform
from modelyard.config import ServeFile, parse_model_spec
from modelyard.errors import InvalidConfig, InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.launch import check_file, check_ports, run_serve
from modelyard.protocol import v2

Connect: TypeAlias = Callable[[], Platform]

_COLORS: dict[ModelState, str] = {
    ModelState.READY: "green",
    ModelState.FAILED: "red",
    ModelState.UNLOADING: "yellow",
    ModelState.UNLOADED: "yellow",
    ModelState.REMOVING: "yellow",
}

_PIPE_COLUMNS = 400

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


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="MODELYARD_URL", help="Address of the platform (http://127.0.0.1:8000).")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="MODELYARD_TOKEN", show_envvar=True, help="Bearer token.")] = None,
) -> None:
    session = context.ensure_object(Session)
    session.url, session.token = url, token


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
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Create a model, or change a registered one."""
    options = dict(_pair(text, "--option") for text in option or [])
    sections = _sections(setting or [])
    spec = parse_model_spec({"name": name, "framework": framework, "uri": uri, "options": options, **sections})
    with _session(context).open() as platform:
        registered = platform.register_spec(spec, message=message, wait=wait, timeout_s=timeout_s)
    _print_status(registered, as_json)


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """Show all models."""
    with _session(context).open() as platform:
        models = platform.list()
    if as_json:
        _print_json({"models": [model.to_dict() for model in models]})
        return
    table = Table("name", "framework", "version", "state", "replicas", "owner", "reason", box=None)
    for model in models:
        table.add_row(
            model.name,
            model.framework,
            model.version,
            _colored(model.state),
            f"{model.replicas_ready}/{model.replicas_wanted}",
            model.owner,
            model.reason,
        )
    _console().print(table)


@app.command()
def status(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show one model."""
    with _session(context).open() as platform:
        _print_status(platform.status(name), as_json)


@app.command()
def load(
    context: typer.Context,
    name: Name,
    message: Message = "",
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run a model again that was unloaded or has failed, with its artifact as it now is."""
    with _session(context).open() as platform:
        loaded = platform.load(name, message=message, wait=wait, timeout_s=timeout_s)
    _print_status(loaded, as_json)


@app.command()
def unload(
    context: typer.Context,
    name: Name,
    message: Message = "",
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Stop a model, keeping it for `load`; it answers what it has accepted first."""
    with _session(context).open() as platform:
        unloaded = platform.unload(name, message=message, wait=wait, timeout_s=timeout_s)
    _print_status(unloaded, as_json)


@app.command()
def unregister(
    context: typer.Context,
    name: Name,
    message: Message = "",
    wait: Wait = False,
    timeout_s: TimeoutS = 60.0,
    as_json: AsJson = False,
) -> None:
    """Take a registered model away; it answers what it has accepted first."""
    with _session(context).open() as platform:
        removed = platform.unregister(name, message=message, wait=wait, timeout_s=timeout_s)
    _print_status(removed, as_json)


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
    body = _read_data(data)
    outputs = output or []
    with _session(context).open() as platform:
        inputs = _find_inputs(body)
        if isinstance(inputs, InferenceRequest) and not outputs:
            response = platform.infer(name, inputs, version=version, timeout_s=timeout_s)
        else:
            arrays = inputs.inputs if isinstance(inputs, InferenceRequest) else inputs
            response = platform.predict(name, arrays, outputs=outputs, version=version, timeout_s=timeout_s)
    _print_response(response, as_json)


@app.command()
def version() -> None:
    """Show Modelyard's version."""
    typer.echo(__version__)


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


def _session(context: typer.Context) -> Session:
    session: Session = context.obj
    return session


def _pair(text: str, option: str) -> tuple[str, Any]:
    """``key=value``; the value as JSON where it is JSON, else as text."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise typer.BadParameter(f'expected KEY=VALUE, got "{text}"', param_hint=option)
    try:
        return key, orjson.loads(value)
    except orjson.JSONDecodeError:
        return key, value


_SECTIONS = ("batching", "autoscaling", "resources", "limits", "runtime")


def _sections(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for text in settings:
        key, value = _pair(text, "--set")
        section, _, inner = key.partition(".")
        if section not in _SECTIONS or not inner:
            known = ", ".join(f"{name}.…" for name in _SECTIONS)
            raise typer.BadParameter(f'expected one of {known}, got "{key}"', param_hint="--set")
        sections.setdefault(section, {})[inner] = value
    return sections


def _read_data(data: str) -> bytes:
    """What ``--data`` stands for: standard input, JSON in place, or a file."""
    if data == "-":
        return sys.stdin.buffer.read()
    if data.lstrip()[:1] in ("[", "{"):
        return data.encode()
    try:
        return Path(data).read_bytes()
    except OSError as exc:
        raise InvalidRequest(f'--data: "{data}" cannot be read: {exc.strerror}') from exc


def _find_inputs(body: bytes) -> Any:
    """The inputs inside a v1 or v2 request, or the document itself where it is neither."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"--data: expected JSON: {exc}") from exc
    if not isinstance(document, Mapping):
        return document
    if isinstance(document.get("inputs"), list) and all(isinstance(item, Mapping) for item in document["inputs"]):
        return v2.decode_infer(body, None)
    for key in ("instances", "inputs"):
        if key in document:
            return document[key]
    return document


def _console() -> Console:
    # No markup: reasons and shapes have brackets of their own. A pipe has no width to fit into.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def _print_json(document: object) -> None:
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))


def _colored(state: ModelState) -> Text:
    return Text(state.value, _COLORS.get(state, ""))


def _print_status(status: ModelStatus, as_json: bool) -> None:
    if as_json:
        _print_json(status.to_dict())
        return
    table = Table(box=None, show_header=False)
    rows: dict[str, str | Text] = {
        "name": status.name,
        "state": _colored(status.state),
        "reason": status.reason,
        "version": status.version,
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
    _console().print(table)


def _print_response(response: InferenceResponse, as_json: bool) -> None:
    outputs = {name: _to_json(array.tolist()) for name, array in response.outputs.items()}
    if as_json:
        _print_json({"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs})
        return
    table = Table(*outputs, box=None)
    columns = [values if isinstance(values, list) else [values] for values in outputs.values()]
    for index in range(max(map(len, columns), default=0)):
        table.add_row(*(_cell(column[index]) if index < len(column) else "" for column in columns))
    _console().print(table)


def _to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _cell(value: Any) -> str:
    return " ".join(map(_cell, value)) if isinstance(value, list) else str(value)
