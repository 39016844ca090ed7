# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: SavedModels of TensorFlow 1 and 2, and Keras models (``.keras``, ``.h5``).

A SavedModel has signatures: the model's own is ``serving_default``, or its only one, or the one that the option names.
The others are its members. Each has the inputs and outputs, datatypes and shapes that the SavedModel says.

* Inputs whose rank the SavedModel leaves open take tensors of any rank.
* Inputs with defaults are optional.
* The requests in ``assets.extra/tf_serving_warmup_requests`` are answered before the model counts as loaded.

A graph can read and write files: TensorFlow's own advice on security is to treat models as code.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field, PositiveInt

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._gpu import has_gpu
from modelyard_deployments._tensorflow_files import find_model
from modelyard_deployments._tensorflow_graph import Graph, GraphSettings, open_graph, to_reason
from modelyard_deployments._tensorflow_keras import export_keras
from modelyard_deployments._tensorflow_signatures import Definition, read_definitions
from modelyard_deployments._tensorflow_start import import_tensorflow
from modelyard_deployments._tensorflow_trial import to_signature
from modelyard_deployments._tensorflow_warmup import warm_up

_LOG: Final = logging.getLogger(__name__)

_MOST_CALLS: Final = 32
"""Sets of outputs with a call of their own: clients choose them, and each takes memory."""


class TensorFlowOptions(Options):
    """Options of a TensorFlow model."""

    signature: str | None = Field(
        default=None,
        description="The signature that is the model's own; by default `serving_default`, or the only one there is.",
    )
    tags: tuple[str, ...] = Field(
        default=("serve",), min_length=1, description="Tags of the graph, where the SavedModel holds several."
    )
    threads: int = Field(default=1, ge=1, description="Threads of one operation; more help only large models.")
    inter_op_threads: int = Field(
        default=1, ge=1, description="Operations computed at once, where the graph has branches."
    )
    concurrency: int = Field(default=1, ge=1, description="Batches computed at once, each in a thread of its own.")
    batch_axis: bool | None = Field(
        default=None, description="Whether requests may share a batch; found out when the model is loaded unless given."
    )
    gpu_memory_mb: PositiveInt | None = Field(
        default=None, description="Memory to use of the replica's GPU; what the model needs unless given."
    )


class TensorFlowError(Exception):
    """A graph failed, and not for what it was given."""


class TensorFlowModel(Model):
    """One signature of a loaded SavedModel.

    Args:
        graph: What computes.
        definition: The signature as the SavedModel has it.
        options: The framework's.
        others: The other signatures by name; None where it is one of those itself.
    """

    def __init__(
        self,
        graph: Graph,
        definition: Definition,
        options: TensorFlowOptions,
        others: Mapping[str, TensorFlowModel] | None = None,
    ) -> None:
        errors = import_tensorflow().errors
        self._faults = (errors.InvalidArgumentError, errors.OutOfRangeError)
        self._failures = errors.OpError
        self._graph = graph
        self._others = others
        self._names = tuple(spec.name for spec in definition.inputs)
        self._defaults = definition.defaults
        saved = definition.saved
        self._feeds = [saved.inputs[name] for name in self._names]
        self._tensors = saved.outputs
        by_tensor = {tensor: name for name, tensor in saved.inputs.items()}
        # TensorFlow does not compute what it is given.
        self._given = {name: by_tensor[tensor] for name, tensor in saved.outputs.items() if tensor in by_tensor}
        self._all = tuple(spec.name for spec in definition.outputs)
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, ...], tuple[list[str], Callable[..., list[Any]]]] = {}
        self._add_call(self._all)
        self._signature = to_signature(self._run, definition, options.batch_axis)
        self.concurrency = options.concurrency

    @property
    def signature(self) -> Signature:
        """The SavedModel's; unknown ranks, and whether rows may be batched, as a trial says."""
        return self._signature

    @property
    def members(self) -> Mapping[str, Model]:
        """The other signatures."""
        return self._others or {}

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Computes those outputs only; they may be views on TensorFlow's memory.

        Raises:
            InvalidRequest: Values or variable dimensions do not fit, a text is no example, or an assertion in the graph
                does not hold.
            TensorFlowError: The graph fails otherwise.
        """
        try:
            return self._run(inputs, outputs)
        except self._failures as exc:
            raise TensorFlowError(f"{type(exc).__name__}: {to_reason(exc)}") from exc

    def close(self) -> None:
        """Frees the weights, which all signatures share."""
        if self._others is not None:
            self._graph.close()

    def _run(self, inputs: Tensors, outputs: tuple[str, ...]) -> dict[str, Array]:
        names, call = self._calls.get(outputs) or self._add_call(outputs)
        values = [inputs[name] if name in inputs else self._defaults[name] for name in self._names]
        try:
            answers = dict(zip(names, call(*values), strict=True))
        except self._faults as exc:
            raise InvalidRequest(f"the inputs do not fit the model: {to_reason(exc)}") from exc
        return {name: _to_array(answers[name]) if name in answers else inputs[self._given[name]] for name in outputs}

    def _add_call(self, outputs: tuple[str, ...]) -> tuple[list[str], Callable[..., list[Any]]]:
        """The call for outputs that were not asked for before, or for all where there are many such calls."""
        with self._lock:
            if len(self._calls) >= _MOST_CALLS:
                return self._calls[self._all]
            names = [name for name in outputs if name not in self._given]
            tensors = [self._tensors[name] for name in names]
            call = self._graph.make_call(self._feeds, tensors) if tensors else _answer_nothing
            return self._calls.setdefault(outputs, (names, call))


def _answer_nothing(*values: Array) -> list[Any]:
    return []


def _to_array(answer: Any) -> Array:
    """Single values come as themselves."""
    return answer if isinstance(answer, np.ndarray) else np.asarray(answer, object if type(answer) is bytes else None)


class TensorFlowFramework(Framework):
    """Loads a SavedModel into a session; a Keras model is made a SavedModel first."""

    options: ClassVar[type[Options]] = TensorFlowOptions
    requires: ClassVar[str] = "tensorflow"
    distribution: ClassVar[str] = "tensorflow"
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: TensorFlowOptions) -> TensorFlowModel:
        """Loads the graph, tries its signatures on made-up rows, and answers its requests for warming up.

        Raises:
            ModelLoadError: The artifact is no model, it is damaged, this TensorFlow cannot run it, an option does not
                fit it, or it does not answer its own requests.
        """
        version = import_tensorflow().__version__
        found = find_model(path)
        with tempfile.TemporaryDirectory(prefix="modelyard-keras-") as scratch:
            folder = found
            if found.is_file():
                folder = Path(scratch)
                export_keras(found, folder, options.threads)
            try:
                return _load(folder, options)
            except ModelLoadError:
                raise
            except Exception as exc:  # TensorFlow's errors, and what protobuf and numpy raise
                reason = to_reason(exc, folder)
                raise ModelLoadError(f"TensorFlow {version} cannot load this SavedModel: {reason}") from exc


def _load(folder: Path, options: TensorFlowOptions) -> TensorFlowModel:
    settings = GraphSettings(**options.model_dump(include=set(GraphSettings.__dataclass_fields__)))
    graph, described = open_graph(folder, settings, has_gpu())
    try:
        own, others = read_definitions(graph, described, options.signature)
        del described  # the whole graph once more
        members = _load_members(graph, others, options)
        model = TensorFlowModel(graph, own, options, members)
        signatures = {"": model, own.saved.name: model, **members}
        warm_up(folder, signatures.get)
    except BaseException:
        graph.close()
        raise
    return model


def _load_members(
    graph: Graph, definitions: Mapping[str, Definition], options: TensorFlowOptions
) -> dict[str, TensorFlowModel]:
    """Those of the signatures that can run."""
    errors = import_tensorflow().errors
    members = {}
    for name, definition in definitions.items():
        try:
            members[name] = TensorFlowModel(graph, definition, options.model_copy(update={"batch_axis": None}))
        except errors.OpError as exc:
            _LOG.warning('signature "%s" cannot run and is left out: %s', name, to_reason(exc))
    return members
