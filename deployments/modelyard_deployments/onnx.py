# SPDX-License-Identifier: Apache-2.0
"""ONNX: graphs in ``.onnx`` files, with their files of weights, on onnxruntime.

Inputs and outputs have the graph's names, datatypes and shapes; -1 is a dimension that has a name there, or none.

* A classifier's ``ZipMap`` (a dictionary for each row, which converters add) is served as the matrix it was made from,
  ``[n, classes]``, and its keys are the labels. Outputs that are sequences or maps otherwise are left out.
* ``predict`` and ``predict_proba`` (when asked for) are the label and the probabilities of a classifier that was
  converted from scikit-learn, XGBoost or LightGBM. With the option ``classes`` any matrix of scores has ``predict``.
* Initializers that are inputs too are optional inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, PositiveInt

from modelyard.classes import CLASSES_DESCRIPTION, Labels
from modelyard.errors import ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._gpu import has_gpu
from modelyard_deployments._onnx_classes import Classifier, find_classifier
from modelyard_deployments._onnx_graph import Graph, read_dimensions, without_maps
from modelyard_deployments._onnx_session import OnnxSession, SessionSettings, open_session, to_reason
from modelyard_deployments._trial import find_batch_axis, refine, show_example, try_out

_LOG: Final = logging.getLogger(__name__)


class OnnxOptions(Options):
    """Options of an ONNX model."""

    threads: int = Field(default=1, ge=1, description="Threads of one node; more help only large models and batches.")
    inter_op_threads: int = Field(default=1, ge=1, description="Nodes computed at once, where the graph has branches.")
    concurrency: int = Field(default=1, ge=1, description="Batches computed at once, each in a thread of its own.")
    optimization: Literal["disabled", "basic", "extended", "all"] = Field(
        default="all", description="How far onnxruntime rewrites the graph when it loads it."
    )
    providers: tuple[str, ...] = Field(
        default=(),
        description="Execution providers by preference, `cuda` or `CUDAExecutionProvider`; by default CUDA where the "
        "replica has a GPU and onnxruntime supports it, else the CPU.",
    )
    provider_options: dict[str, dict[str, str | int | bool]] = Field(
        default_factory=dict, description="Options of execution providers, by the provider's name."
    )
    free_dimensions: dict[str, PositiveInt] = Field(
        default_factory=dict, description="Sizes for variable dimensions, by the dimension's name in the graph."
    )
    batch_axis: bool | None = Field(
        default=None, description="Whether requests may share a batch; found out when the model is loaded unless given."
    )
    optional_inputs: bool = Field(
        default=True, description="Offer the inputs that have defaults; a graph with such inputs has no batches."
    )
    classes: Labels | None = Field(default=None, description=CLASSES_DESCRIPTION)


class OnnxModel(Model):
    """A loaded graph.

    Args:
        session: What computes.
        graph: What was changed in it.
        classifier: Its classes, if it has some.
        signature: What it takes and gives.
        concurrency: Batches computed at once.
    """

    def __init__(
        self, session: OnnxSession, graph: Graph, classifier: Classifier, signature: Signature, concurrency: int
    ) -> None:
        self._session = session
        self._tensors = {spec.name: graph.tensors.get(spec.name, spec.name) for spec in signature.outputs}
        self._tensors |= {name: self._tensors[source] for name, source in classifier.sources.items()}
        self._derive: Mapping[str, Callable[[Array], Array]] = classifier.derive
        self._signature = signature
        self.concurrency = concurrency

    @property
    def signature(self) -> Signature:
        """The graph's, and what can be asked of a classifier; whether rows may be batched as a trial says."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Computes those outputs only, so nodes that only others need are not run.

        Raises:
            InvalidRequest: A text is not UTF-8, an index is out of range, or variable dimensions do not fit each other.
        """
        tensors = list(dict.fromkeys([self._tensors[name] for name in outputs]))
        answers = dict(zip(tensors, self._session.run(tensors, inputs), strict=True))
        return {name: self._derive.get(name, _as_it_is)(answers[self._tensors[name]]) for name in outputs}


def _as_it_is(array: Array) -> Array:
    return array


class OnnxFramework(Framework):
    """Loads a graph into a session; one thread is the default."""

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    options: ClassVar[type[Options]] = OnnxOptions
    requires: ClassVar[str] = "onnx"
    may_share: ClassVar[bool] = True
    distribution: ClassVar[str] = "onnxruntime"

    def load(self, path: Path, options: OnnxOptions) -> OnnxModel:
        """Loads the graph, tries it on made-up rows and makes the signature.

        Raises:
            ModelLoadError: The file is no graph, a file of weights is missing or damaged, this onnxruntime cannot
                run it, or an option does not fit it.
        """
        import onnxruntime

        _check_file(path)
        _check_dimensions(path, options.free_dimensions)
        settings = SessionSettings(**options.model_dump(include=set(SessionSettings.__dataclass_fields__)))
        try:
            return _load(path, settings, options)
        except (ModelLoadError, ModuleNotFoundError):
            raise
        except Exception as exc:  # its errors have no common class
            version = onnxruntime.__version__
            raise ModelLoadError(
                f"{path.name}: onnxruntime {version} cannot load this model: {to_reason(exc, path)}"
            ) from exc


def _load(path: Path, settings: SessionSettings, options: OnnxOptions) -> OnnxModel:
    graph, session = Graph(), open_session(path, path.parent, settings, has_gpu())
    if any("map(" in kind for kind in session.types.values()):
        graph = without_maps(path)
        session = open_session(graph.content or path, path.parent, settings, has_gpu())
    outputs = _find_outputs(session, graph)
    trial = try_out(lambda rows: _answer(session, graph, outputs, rows), session.inputs)
    if trial.reason:
        _LOG.warning("the model refuses made-up rows, so its signature is as declared: %s", trial.reason)
    outputs = tuple(refine(spec, trial) for spec in outputs)
    classifier = find_classifier(path, outputs, graph, trial, options.classes)
    inputs = (*session.inputs, *session.defaults) if options.optional_inputs else session.inputs
    batch_axis = find_batch_axis((*inputs, *outputs), trial, options.batch_axis)
    signature = Signature(
        inputs=inputs,
        outputs=outputs,
        on_request=classifier.on_request,
        batch_axis=batch_axis,
        labels=classifier.labels,
        example=show_example(inputs, trial, batch_axis),
    )
    return OnnxModel(session, graph, classifier, signature, options.concurrency)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ModelLoadError(f"{path.name}: expected an .onnx file, got a folder")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelLoadError(f"{path.name}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadError(f"{path.name}: the file is a pointer of Git LFS; fetch the model itself with git lfs pull")


def _check_dimensions(path: Path, sizes: Mapping[str, int]) -> None:
    """Refuses names that the graph does not have, which onnxruntime ignores."""
    known = read_dimensions(path) if sizes else set()
    for name in sizes:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ModelLoadError(f'option free_dimensions: the graph has {names}, got "{name}"')


def _find_outputs(session: OnnxSession, graph: Graph) -> tuple[TensorSpec, ...]:
    """The outputs that are tensors, under the names that they have in the file.

    Raises:
        ModelLoadError: There is none.
    """
    by_tensor = {spec.name: spec for spec in session.outputs}
    added = set(graph.tensors.values())
    specs = [spec for spec in session.outputs if spec.name not in added]
    specs += [replace(by_tensor[tensor], name=name) for name, tensor in graph.tensors.items()]
    others = [f'"{name}" {kind}' for name, kind in session.types.items() if name not in by_tensor]
    if not specs:
        raise ModelLoadError(f"expected an output that is a tensor, got only {', '.join(others)}")
    if others:
        _LOG.warning("outputs that are no tensors are left out: %s", ", ".join(others))
    return tuple(specs)


def _answer(session: OnnxSession, graph: Graph, outputs: Sequence[TensorSpec], rows: Tensors) -> dict[str, Any]:
    tensors = [graph.tensors.get(spec.name, spec.name) for spec in outputs]
    return dict(zip([spec.name for spec in outputs], session.run(tensors, rows), strict=True))
