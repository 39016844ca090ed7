# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Triton behind the platform: ``framework: triton``.

*Managed*: the artifact is a Triton model repository, and each replica starts and supervises a ``tritonserver`` on it.
*Remote*: ``uri: grpc://host:8001`` (``grpcs://`` with TLS) is a Triton that somebody else runs. Both ways each of its
models is a model of the platform.

``python -m modelyard_deployments.triton install [DIR]`` installs a Triton where there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._gpu import has_gpu

if TYPE_CHECKING:
    from modelyard_deployments._triton_calls import Connection, Endpoint
    from modelyard_deployments._triton_models import Contents, TritonModel
    from modelyard_deployments._triton_supervisor import Supervisor

logger = logging.getLogger(__name__)

_OURS: Final = (
    *("--model-repository", "--model-store", "--model-control-mode", "--load-model", "--exit-on-error"),
    *("--allow-grpc", "--grpc-address", "--grpc-port", "--exit-timeout-secs"),
)
_MANAGED_ONLY: Final = ("server", "args", "backend_directory", "start_timeout_s", "model_file")
_REMOTE_ONLY: Final = ("headers", "root_certificates", "private_key", "certificate_chain")
_VARIABLE: Final = re.compile(r"\$\{(\w*)\}")


class TritonOptions(Options):
    """Options of ``framework: triton``."""

    models: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Only these models of the repository are loaded (managed) or published (remote). Left out, all.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which a call that Triton has not answered is cancelled there. Left out, a call has "
        "no limit of its own; whoever waits for it is answered in time all the same.",
    )
    server: str | None = Field(
        default=None,
        min_length=1,
        description="Managed: the `tritonserver` executable, or a folder filled by `python -m "
        "modelyard_deployments.triton install DIR`. Left out, the one on PATH, else the one installed without DIR.",
    )
    args: tuple[str, ...] = Field(
        default=(), description="Managed: more arguments of `tritonserver`, after the replica's own."
    )
    backend_directory: str | None = Field(
        default=None, min_length=1, description="Managed: where Triton finds its backends, if not where it looks."
    )
    start_timeout_s: float = Field(
        default=600.0, gt=0, description="Managed: seconds until all models of the repository must have been loaded."
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="Remote: headers of each call, lower case. `${TRITON_…}` in a value is the environment variable of "
        "that name in the replica (`runtime.env_vars`).",
    )
    root_certificates: str | None = Field(
        default=None, description="Remote, `grpcs://`: file of the authorities to trust. Left out, the well-known ones."
    )
    private_key: str | None = Field(default=None, description="Remote, `grpcs://`: file of the client's own key.")
    certificate_chain: str | None = Field(
        default=None, description="Remote, `grpcs://`: file of the client's own certificate."
    )

    @field_validator("args")
    @classmethod
    def _check_args(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if (name := text.partition("=")[0]) in _OURS:
                raise ValueError(f"expected arguments that the replica does not set itself, got {name}")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[a-z0-9_.-]+", name) or name.startswith("grpc-"):
                raise ValueError(f'expected names of gRPC metadata in lower case, got "{name}"')
            if wrong := [found for found in _VARIABLE.findall(text) if not found.startswith("TRITON_")]:
                raise ValueError(f'"{name}": expected variables whose name begins with TRITON_, got "{wrong[0]}"')
        return value


class TritonRepository(Model):
    """All models of one Triton. By its own name it is the only one, where there is only one.

    Args:
        contents: What the Triton has.
        connection: To it.
        supervisor: What keeps it running; None for one that somebody else runs.
    """

    publishes_members = True

    def __init__(self, contents: Contents, connection: Connection, supervisor: Supervisor | None) -> None:
        self._contents = contents
        self._connection = connection
        self._supervisor = supervisor
        alone = len(contents.models) + len(contents.failed) == 1
        self._only: TritonModel | None = next(iter(contents.models.values())) if alone else None
        self.concurrency = self._only.concurrency if self._only is not None else 1

    @property
    def signature(self) -> Signature:
        """That of the only model; without tensors where there are several."""
        return self._only.signature if self._only is not None else Signature((), (), batch_axis=False)

    @property
    def members(self) -> Mapping[str, Model]:
        """Its models, by name."""
        return self._contents.models

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """As the only model.

        Raises:
            InvalidRequest: There are several.
        """
        return await self._get_only().predict(inputs, outputs, parameters)

    async def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> AsyncGenerator[Mapping[str, Array]]:
        """As the only model.

        Raises:
            InvalidRequest: There are several.
        """
        async with contextlib.aclosing(self._get_only().stream(inputs, outputs, parameters)) as answers:
            async for answer in answers:
                yield answer

    def _get_only(self) -> TritonModel:
        if self._only is None:
            names = ", ".join(f'"{name}"' for name in sorted(self._contents.models))
            reasons = "".join(f'; "{name}" failed: {why}' for name, why in sorted(self._contents.failed.items()))
            raise InvalidRequest(f"this is a repository of several models, ask one of them: {names}{reasons}")
        return self._only

    def check_health(self) -> None:
        """Asked for periodically.

        Raises:
            RuntimeError: Its Triton dies again and again.
        """
        if self._supervisor is not None:
            self._supervisor.check_health()

    def close(self) -> None:
        """Ends the Triton, if it is its own, and waits for that."""
        self._connection.close()
        if self._supervisor is not None:
            self._supervisor.close()


class TritonFramework(Framework):
    """Runs a Triton on a model repository, or reaches one elsewhere."""

    options: ClassVar[type[Options]] = TritonOptions
    requires: ClassVar[str] = "triton"
    loads_code: ClassVar[bool] = True  # a python backend's model.py
    schemes: ClassVar[tuple[str, ...]] = ("grpc", "grpcs")

    def load(self, path: Path, options: TritonOptions) -> TritonRepository:
        """Starts a Triton on the repository and waits until it has loaded what it can.

        Raises:
            ModelLoadError: It is no repository, there is no Triton, it does not start, or no model can be loaded.
        """
        from modelyard_deployments._triton_calls import Connection, Endpoint
        from modelyard_deployments._triton_install import find_installation
        from modelyard_deployments._triton_supervisor import Supervisor

        _check_unset(options, _REMOTE_ONLY, "only for a Triton elsewhere, uri: grpc://host:8001")
        _check_repository(path)
        installation = find_installation(options.server)
        if not has_gpu():
            installation = installation.hide_gpus()
        supervisor = Supervisor(installation, _to_arguments(path, options), options.start_timeout_s)
        supervisor.start()
        endpoint = Endpoint(supervisor.target, "its Triton has ended and is being started", timeout_s=options.timeout_s)
        try:
            return _open(endpoint, Connection(endpoint), options, path, supervisor)
        except ModelLoadError:
            supervisor.close()
            raise

    def connect(self, url: str, options: TritonOptions) -> TritonRepository:
        """Asks a Triton elsewhere what it has.

        Raises:
            ModelLoadError: The URL or an option does not fit, it does not answer, or it has none of the models.
        """
        from modelyard_deployments._triton_calls import Connection

        _check_unset(
            options, _MANAGED_ONLY, "only for a Triton that the replica starts itself, uri: a model repository"
        )
        endpoint = _to_endpoint(url, options)
        return _open(endpoint, Connection(endpoint), options, None, None)


def _open(
    endpoint: Endpoint,
    connection: Connection,
    options: TritonOptions,
    path: Path | None,
    supervisor: Supervisor | None,
) -> TritonRepository:
    from modelyard_deployments._triton_models import read_contents

    contents = read_contents(endpoint, connection, options.models, path)
    if supervisor is not None and path is not None and options.models is None:
        contents = _add_unread(contents, path, supervisor.errors)
    for name, reason in contents.failed.items():
        logger.warning('triton: model "%s" cannot be loaded: %s', name, reason)
    if not contents.models:
        reasons = "; ".join(f'"{name}": {reason}' for name, reason in contents.failed.items())
        raise ModelLoadError(f"Triton has no model that is ready: {reasons or 'its repository is empty'}")
    return TritonRepository(contents, connection, supervisor)


def _add_unread(contents: Contents, path: Path, errors: Sequence[str]) -> Contents:
    """Those models as well whose configuration Triton cannot read: its log alone says so."""
    failed = dict(contents.failed)
    for name in sorted(entry.name for entry in path.iterdir() if entry.is_dir()):
        if name not in contents.models and name not in failed:
            told = [error for error in errors if f"'{name}'" in error]
            failed[name] = told[0] if told else "Triton does not find it; the replica's log says more"
    return replace(contents, failed=failed)


def _check_unset(options: TritonOptions, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if name in options.model_fields_set:
            raise ModelLoadError(f"option {name}: {why}")


def _check_repository(path: Path) -> None:
    """Refuses what Triton would find no model in."""
    if not path.is_dir():
        raise ModelLoadError(f"expected a model repository, a folder with one folder for each model, got {path.name}")
    if (path / "config.pbtxt").exists():
        raise ModelLoadError(
            "expected a model repository, a folder with one folder for each model, got the folder of one model "
            "(it holds config.pbtxt): put it into a folder of its own, and name that"
        )
    if not any(entry.is_dir() for entry in path.iterdir()):
        raise ModelLoadError("expected a model repository, a folder with one folder for each model, got no folder")


def _to_arguments(path: Path, options: TritonOptions) -> list[str]:
    arguments = [
        "--model-repository",
        str(path),
        "--exit-on-error=false",
        "--allow-http=false",
        "--allow-metrics=false",
    ]
    if options.models is not None:
        arguments += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in options.models)]
    if options.backend_directory is not None:
        arguments += ["--backend-directory", str(Path(options.backend_directory).absolute())]
    return [*arguments, *options.args]


def _to_endpoint(url: str, options: TritonOptions) -> Endpoint:
    import grpc

    from modelyard_deployments._triton_calls import Endpoint

    parts = urlsplit(url)
    try:
        is_target = parts.hostname and parts.port and not (parts.username or parts.path.strip("/") or parts.query)
    except ValueError:  # a port that is none
        is_target = False
    if not is_target:
        raise ModelLoadError(f'uri: expected {parts.scheme}://HOST:PORT, got "{url}"')
    credentials = None
    if parts.scheme == "grpcs":
        read = _file_reader(options)
        credentials = grpc.ssl_channel_credentials(
            read("root_certificates"), read("private_key"), read("certificate_chain")
        )
    else:
        _check_unset(options, _REMOTE_ONLY[1:], "only with TLS, uri: grpcs://host:8001")
    metadata = tuple((name, _VARIABLE.sub(_get_variable, text)) for name, text in options.headers.items())
    return Endpoint(parts.netloc, "its Triton cannot be reached", metadata, credentials, options.timeout_s)


def _file_reader(options: TritonOptions) -> Callable[[str], bytes | None]:
    def read(option: str) -> bytes | None:
        name: str | None = getattr(options, option)
        try:
            return None if name is None else Path(name).read_bytes()
        except OSError as exc:
            raise ModelLoadError(f'option {option}: "{name}" cannot be read: {exc.strerror}') from exc

    return read


def _get_variable(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    if value is None:
        raise ModelLoadError(f"option headers: the environment variable {found[1]} is not set (runtime.env_vars)")
    return value


if __name__ == "__main__":
    from modelyard_deployments._triton_install import main

    main()
