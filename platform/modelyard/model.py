# SPDX-License-Identifier: Apache-2.0
"""What a framework implements, and how frameworks are found.

A framework is one class, announced by an entry point of the group ``modelyard.frameworks``::

    [project.entry-points."modelyard.frameworks"]
    sklearn = "modelyard_deployments.sklearn:SklearnFramework"

Its module imports its library inside ``load`` only: the ingress and the controller import the module to check options,
and must stay free of the library.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.peers import PeerCalls
from modelyard.signature import Description, Signature
from modelyard.tensor import Parameters, Tensors

ENTRY_POINT_GROUP: Final = "modelyard.frameworks"
GPU_SHARE: Final = "MODELYARD_GPU_SHARE"
"""The environment variable of a replica that says which part of a GPU it has, 0.4 for example; unset where it has whole
ones or none."""


class Options(BaseModel):
    """Options every framework takes; a framework's own options subclass this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_file: str | None = Field(
        default=None,
        description="File to load, relative to the model's directory; needed where the directory holds several.",
    )


class Model(PeerCalls, ABC):
    """A loaded model; what it can call others by comes from :class:`~modelyard.peers.PeerCalls`."""

    name: str = ""
    """What it is called on the platform; its replica sets it before ``start``."""

    concurrency: int = 1
    """How many calls of ``predict`` may run at once: in threads, or on the event loop where it is ``async def``."""

    publishes_members: bool = False
    """Its members are models of the platform under their own names, not further signatures of this one."""

    signature_may_change: bool = False
    """Its signature follows other models' and may change while it runs: names, datatypes, shapes, and its adapters."""

    openai_routes: tuple[str, ...] = ()
    """What it answers of the OpenAI protocol, by the path below ``/v1``; see ``openai.OpenAIModel``."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Further names that it answers to in the OpenAI protocol: adapters of a language model."""
        return ()

    @property
    def properties(self) -> Mapping[str, str]:
        """What else there is to know of it, for people: which backend was picked, and why."""
        return {}

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """Inputs and outputs, derived from the artifact."""

    @property
    def members(self) -> Mapping[str, Model]:
        """Further models that its replicas answer for, by name: the signatures of a SavedModel, a whole repository.

        Fixed once it is loaded. Each has its own queue and counts; members have none of their own.
        """
        return {}

    @abstractmethod
    def predict(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Tensors | Awaitable[Tensors]:
        """Runs the model, in a thread, or on the replica's event loop where it is ``async def``.

        Args:
            inputs: Already bound to the signature: its names, datatypes and shapes. Read-only, and at least one row.
            outputs: Names to compute, each of them in the signature; never empty.
            parameters: The request's parameters, as the client sent them.

        Returns:
            At least the outputs asked for, each an array that :func:`~modelyard.tensor.to_protocol_array` turns into
            the signature's datatype (strings may stay strings). Where the signature has a batch axis, each has as
            many rows as the inputs.

        Raises:
            InvalidRequest: The values (not their shape) are the client's mistake, for example an unknown category.
        """

    def load(self, path: Path, settings: Mapping[str, Any]) -> None:  # many need nothing more
        """Reads what the model needs; called once, first, for models of the framework ``custom``.

        Args:
            path: The model's folder.
            settings: The option ``settings``, as the user wrote them.

        Raises:
            Exception: Whatever it raises is the reason that ``status`` shows.
        """

    async def start(self) -> None:  # most models are there once they are loaded
        """Begins what lives on the replica's event loop; called once on it, when the model is loaded.

        Raises:
            Exception: As for ``load``.
        """

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]:
        """Runs a model whose signature is ``decoupled``: none, one or many answers to one request.

        Either a plain generator, each step of which runs in the thread of ``predict``, or an asynchronous one, which
        runs on the replica's event loop and must not block it. When nobody waits any more it is closed.

        Args:
            inputs: As for ``predict``.
            outputs: As for ``predict``.
            parameters: As for ``predict``.

        Returns:
            The answers in order, each with at least the outputs asked for.

        Raises:
            InvalidRequest: As for ``predict``, also after the first answer.
        """
        raise NotImplementedError  # asked only of models whose signature is decoupled, and those have it

    def report_load(self) -> Mapping[str, float]:  # most models have nothing of their own to follow
        """Numbers that scaling may follow, by name (``autoscaling.target_metrics``); they add up over replicas.

        Asked for every two seconds, from any thread; must not block.
        """
        return {}

    def check_health(self) -> None:  # most models can always answer
        """Asked for periodically, from any thread; must not block.

        Raises:
            Exception: It will not answer any more: its replica is replaced by another.
        """

    def close(self) -> None:  # most models hold nothing that needs freeing
        """Frees what the model holds; called once, in a thread, when its replica stops and nothing of it runs."""


class Framework(ABC):
    """One way to load models. Stateless; made once per process."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings it recognises, lower case, with the dot; empty when a model is a whole directory."""

    options: ClassVar[type[Options]] = Options
    """The options it takes, checked before anything is deployed."""

    requires: ClassVar[str] = ""
    """The extra that brings its library, for the message when it is missing."""

    install: ClassVar[str] = ""
    """The command that brings what the extra cannot, for the same message; empty where the extra is all."""

    distribution: ClassVar[str] = ""
    """The package that holds its library, of which ``runtime.version`` chooses the version; empty where none does."""

    loads_code: ClassVar[bool] = False
    """Loading can run code from the artifact (pickle), so it is confined to allowed locations; see ``runs_code``."""

    may_share: ClassVar[bool] = False
    """Its models get on with others of theirs in one process, and leave nothing behind when they are closed."""

    has_artifact: ClassVar[bool] = True
    """Its models are made of an artifact; those of a framework without have no URI, and ``connect`` makes them."""

    schemes: ClassVar[tuple[str, ...]] = ()
    """Schemes of the URLs of models that run elsewhere (``grpc``): these have no artifact and are not loaded, see
    ``connect``."""

    @abstractmethod
    def load(self, path: Path, options: Any) -> Model:
        """Loads one artifact.

        Args:
            path: The model's file, or its directory where ``suffixes`` is empty.
            options: An instance of ``self.options``.

        Raises:
            ModelLoadError: The artifact or the library's version does not fit; the message says both.
        """

    def runs_code(self, options: Mapping[str, Any]) -> bool:  # an option decides for few
        """Whether loading with these options can run code from the artifact.

        Args:
            options: As the user wrote them, perhaps not what they have to be.
        """
        return self.loads_code

    def code_locations(self, uri: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """From where loading with these options can run code: paths and URLs, all of them to be allowed.

        Args:
            uri: Of the artifact.
            options: As for :meth:`runs_code`.
        """
        return (uri,) if self.runs_code(options) else ()

    def workers(self, path: Path, options: Any) -> int:  # few run on several devices
        """Processes of one replica with GPUs, each of which gets an equal part of them, perhaps on another node.

        Args:
            path: The artifact; it may be missing here.
            options: An instance of ``self.options``.

        Returns:
            Their number; 0 where the replica's own process uses the GPUs.
        """
        return 0

    def connect(self, url: str, options: Any) -> Model:
        """Reaches a model that runs elsewhere, or makes one that needs no artifact.

        Args:
            url: With one of ``schemes``; empty where the framework's models have no artifact.
            options: An instance of ``self.options``.

        Raises:
            ModelLoadError: Nothing answers there, or not what was expected.
        """
        raise NotImplementedError  # asked only of frameworks with ``schemes`` or without artifacts, and those have it


def runs_elsewhere(framework: Framework, uri: str) -> bool:
    """Whether there is no artifact: the URI names a model that runs elsewhere, or the framework's models need none."""
    scheme, separator, _ = uri.partition("://")
    return not framework.has_artifact or (bool(separator) and scheme in framework.schemes)


def describe(model: Model) -> Description:
    """What a replica tells of its model."""
    members = {name: member.signature for name, member in model.members.items()}
    concurrency = max(one.concurrency for one in (model, *model.members.values()))
    return Description(
        model.signature,
        members,
        model.publishes_members,
        concurrency,
        model.signature_may_change,
        model.openai_routes,
        model.adapters,
        model.properties,
    )


@cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def refresh_frameworks() -> None:
    """Looks for installed frameworks again at the next question; for when ``sys.path`` has changed."""
    _entry_points.cache_clear()


def list_frameworks() -> tuple[str, ...]:
    """Names of all installed frameworks, sorted; imports none of them."""
    return tuple(sorted(_entry_points()))


def get_framework(name: str) -> Framework:
    """The framework of that name.

    Raises:
        InvalidConfig: There is none, or its module cannot be imported.
    """
    entry = _entry_points().get(name)
    if entry is None:
        raise InvalidConfig((f'framework: expected one of {", ".join(list_frameworks())}, got "{name}"',))
    try:
        framework: Framework = entry.load()()
    except Exception as exc:  # plug-in loading: whatever a third party's module raises is a configuration problem
        raise InvalidConfig((f'framework: "{name}" ({entry.value}) cannot be imported: {exc}',)) from exc
    return framework


def find_model_path(root: Path, framework: Framework, model_file: str | None) -> Path:
    """The file (or directory) in ``root`` that the framework loads.

    Args:
        root: The artifact: a directory, or directly a file.
        framework: Whose ``suffixes`` decide.
        model_file: The ``model_file`` option.

    Raises:
        ModelLoadError: There is no such file, none that the framework recognises, or several.
    """
    if model_file is not None:
        try:
            chosen = (root / model_file).resolve()
            exists = chosen.exists()
        except (OSError, ValueError) as exc:  # too long, or with characters that no file's name has
            raise ModelLoadError(f'model_file "{model_file[:80]}" is no name that a file can have') from exc
        if not chosen.is_relative_to(root.resolve()):
            raise ModelLoadError(f'model_file "{model_file}" lies outside the model\'s directory')
        if not exists:
            raise ModelLoadError(f'model_file "{model_file}" does not exist; the directory holds {_listing(root)}')
        return chosen
    if not root.exists():
        raise ModelLoadError("the model's location does not exist")
    if root.is_file() or not framework.suffixes:
        return root
    found = sorted(
        path
        for path in root.iterdir()
        if path.is_file() and path.name.lower().endswith(framework.suffixes) and not path.name.startswith(".")
    )
    if len(found) == 1:
        return found[0]
    expected = f"one file ending in {' '.join(framework.suffixes)}"
    if not found:
        raise ModelLoadError(f"expected {expected}, got none; the directory holds {_listing(root)}")
    names = ", ".join(p.name for p in found)
    raise ModelLoadError(f"expected {expected}, got {len(found)}: {names}; choose one with the option model_file")


def _listing(root: Path) -> str:
    names = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "") if names else "nothing"


def check_options(framework: Framework, options: Mapping[str, Any]) -> Options:
    """The options, as the framework's own type.

    Raises:
        InvalidConfig: With one problem for each option that is unknown or has a bad value.
    """
    try:
        return framework.options.model_validate(options)
    except ValidationError as exc:
        paths = [".".join(map(str, ("options", *error["loc"]))) for error in exc.errors()]
        problems = [f"{path}: {error['msg']}" for path, error in zip(paths, exc.errors(), strict=True)]
        raise InvalidConfig(tuple(problems)) from exc


def load_model(framework_name: str, root: Path | str, options: Mapping[str, Any]) -> Model:
    """Finds the framework, checks its options, finds the file and loads it.

    Args:
        framework_name: Which framework.
        root: The artifact, or the URL of a model that runs elsewhere.
        options: The framework's options.

    Raises:
        InvalidConfig: Unknown framework or options.
        ModelLoadError: The artifact cannot be loaded, or the framework's library is not installed.
    """
    framework = get_framework(framework_name)
    parsed = check_options(framework, options)
    try:
        if isinstance(root, str):
            return framework.connect(root, parsed)
        return framework.load(find_model_path(root, framework, parsed.model_file), parsed)
    except ModuleNotFoundError as exc:
        advice = (
            f': pip install "modelyard[{framework.requires}]"' if framework.requires else ", which is not installed"
        )
        advice += f", and then {framework.install}" if framework.install else ""
        raise ModelLoadError(f'framework "{framework_name}" needs the module "{exc.name}"{advice}') from exc
