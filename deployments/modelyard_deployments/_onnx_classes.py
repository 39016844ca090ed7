# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a graph that classifies: ``predict`` and ``predict_proba``, and the names of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from modelyard.classes import Labels, pick_labels, to_label_array
from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import Array, datatype_of
from modelyard_deployments._onnx_graph import Graph, read_classes
from modelyard_deployments._trial import Trial

_PREDICT: Final = "predict"
_PROBABILITIES: Final = "predict_proba"
_VALUE: Final = "variable"
"""What skl2onnx calls the output of a regression."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """What is answered when it is asked for.

    Attributes:
        on_request: The further outputs.
        sources: The output that each of them is made from.
        derive: How, where it is not that output itself.
        labels: Names of the classes, by output.
    """

    on_request: tuple[TensorSpec, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    derive: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_classifier(
    path: Path, outputs: Sequence[TensorSpec], graph: Graph, trial: Trial, classes: Labels | None
) -> Classifier:
    """The classifier that the outputs are known to be by their names, or that the option makes of a matrix of scores.

    Raises:
        ModelLoadError: There are classes, but no matrix with a column for each.
    """
    taken = {spec.name for spec in outputs}
    label, scores = _find_label(outputs), _find_scores(outputs)
    if classes is not None:
        return _name_classes(scores or _find_matrix(outputs, len(classes)), outputs, classes)
    if len(outputs) == 1 and outputs[0].name == _VALUE:
        return _to_values(outputs[0])
    if label is None or scores is None or taken & {_PREDICT, _PROBABILITIES}:
        return Classifier()
    found = graph.classes if graph.classes else read_classes(path, scores.name).classes
    names = found.get(scores.name, ())
    named = len(names) == scores.shape[-1]
    labels = {scores.name: names} if named else {}
    if not _are_probabilities(trial.answers.get(scores.name)):
        return Classifier((replace(label, name=_PREDICT),), {_PREDICT: label.name}, labels=labels)
    return Classifier(
        (replace(label, name=_PREDICT), replace(scores, name=_PROBABILITIES)),
        {_PREDICT: label.name, _PROBABILITIES: scores.name},
        labels={scores.name: names, _PROBABILITIES: names} if named else {},
    )


def _find_label(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    return next(
        (
            spec
            for spec in outputs
            if spec.name.endswith("label") and spec.datatype in ("INT64", "BYTES") and spec.shape == (-1,)
        ),
        None,
    )


def _find_scores(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    return next((spec for spec in outputs if "probabilit" in spec.name and _is_matrix(spec)), None)


def _is_matrix(spec: TensorSpec) -> bool:
    return spec.datatype.startswith(("FP", "BF")) and len(spec.shape) == 2


def _find_matrix(outputs: Sequence[TensorSpec], width: int) -> TensorSpec | None:
    fitting = [spec for spec in outputs if _is_matrix(spec) and spec.shape[-1] in (width, -1)]
    return fitting[0] if fitting else next(filter(_is_matrix, outputs), None)


def _name_classes(scores: TensorSpec | None, outputs: Sequence[TensorSpec], classes: Labels) -> Classifier:
    """The class of the largest score, under the name that the option gives it.

    Raises:
        ModelLoadError: There is no matrix of scores, or it is not as wide.
    """
    if scores is None:
        got = ", ".join(f'"{spec.name}" {spec}' for spec in outputs)
        raise ModelLoadError(f"option classes: expected an output of scores [-1,{len(classes)}], got {got}")
    array = to_label_array(classes, len(classes) if scores.shape[-1] == -1 else scores.shape[-1])
    names = tuple(map(str, classes))
    if any(spec.name == _PREDICT for spec in outputs):
        return Classifier(labels={scores.name: names})
    spec = TensorSpec(_PREDICT, datatype_of(array), scores.shape[:1])
    derive = {_PREDICT: partial(pick_labels, labels=array)}
    return Classifier((spec,), {_PREDICT: scores.name}, derive, {scores.name: names})


def _to_values(output: TensorSpec) -> Classifier:
    """The values of a regression, in a row of their own where there is one for each row."""
    if output.shape[1:] != (1,):
        return Classifier((replace(output, name=_PREDICT),), {_PREDICT: output.name})
    spec = replace(output, name=_PREDICT, shape=output.shape[:1])
    return Classifier((spec,), {_PREDICT: output.name}, {_PREDICT: lambda values: values.reshape(-1)})


def _are_probabilities(answer: Array | None) -> bool:
    """Whether scores are no margins, which some classifiers give under the same name."""
    return answer is None or bool(np.all((answer >= 0) & (answer <= 1 + 1e-6)))
