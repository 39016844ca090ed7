# SPDX-License-Identifier: Apache-2.0
"""XGBoost: boosters saved as JSON or UBJSON.

Outputs:

* ``output-0``: what ``Booster.predict`` answers, FP32. The objective decides: probabilities for ``binary:logistic``
  (``[n]``) and ``multi:softprob`` (``[n, k]``), the class number for ``multi:softmax``, margins for
  ``binary:logitraw``, else the value.
* ``predict`` (when asked for): the class of each row, or the value where the model is no classifier.
* ``predict_proba`` (when asked for, classifiers only): ``[n, classes]``, two columns for two classes.
* ``contributions`` (when asked for, and what ``:explain`` answers): what each feature adds to the margin, and last the
  bias: ``[n, features + 1]``, for several classes or targets ``[n, k, features + 1]``. Exact SHAP values. Trees with
  vector leaves have none.

A model file does not hold the labels a classifier was trained on; the option ``classes`` gives them. NaN is a missing
value. A categorical column takes the number of the category. After early stopping, a file saved by the scikit-learn
interface answers with its best iteration, one saved by ``Booster.save_model`` with all: as the saved object does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from modelyard.classes import CLASSES_DESCRIPTION, Labels, pick_labels, to_label_array, to_probabilities
from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors, datatype_of

_INPUT: Final = "input-0"
_OUTPUT: Final = "output-0"
_CONTRIBUTIONS: Final = "contributions"


class XGBoostOptions(Options):
    """Options of an XGBoost model."""

    nthread: int = Field(default=1, ge=1, description="Threads of one prediction; more help only large batches.")
    classes: Labels | None = Field(default=None, description=CLASSES_DESCRIPTION)


@dataclass(frozen=True, slots=True)
class _Objective:
    """What a classifier's objective makes of the margins, and how to get from there to probabilities.

    Attributes:
        threshold: Side of a two-class answer.
        from_margins: Probabilities out of margins, for the objectives whose answer is no probability.
        probabilities: It has probabilities at all.
        numbers: The answer is already the class number.
    """

    threshold: float = 0.5
    from_margins: Callable[[Array], Array] | None = None
    probabilities: bool = True
    numbers: bool = False


def _softmax(margins: Array) -> Array:
    powers: Array = np.exp(margins - margins.max(axis=1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _sigmoid(margins: Array) -> Array:
    with np.errstate(over="ignore"):
        return to_probabilities(1 / (1 + np.exp(-margins)))


_CLASSIFIERS: Final = {
    "binary:logistic": _Objective(),
    "binary:logitraw": _Objective(threshold=0, from_margins=_sigmoid),
    "binary:hinge": _Objective(probabilities=False),
    "multi:softprob": _Objective(),
    "multi:softmax": _Objective(from_margins=_softmax, numbers=True),
}


class XGBoostModel(Model):
    """A loaded booster."""

    def __init__(self, booster: Any, options: XGBoostOptions) -> None:
        learner = json.loads(booster.save_config())["learner"]
        objective = learner["objective"]["name"]
        shape = {key: int(value) for key, value in learner["learner_model_param"].items() if key.startswith("num_")}
        self._booster = booster
        self._nthread = options.nthread
        self._in_place = learner["gradient_booster"]["name"] != "gblinear"  # which has no in-place prediction
        self._trees = _saved_iterations(booster)
        targets = shape.get("num_target", 1)
        self._objective = _CLASSIFIERS.get(objective) if targets == 1 else None
        if self._objective is None and options.classes is not None:
            raise ModelLoadError(f"option classes: the model has no single class per row (objective {objective})")
        self._labels: Array | None = None
        if self._objective is not None:
            self._labels = to_label_array(options.classes, max(2, shape["num_class"]))
        columns = tuple(booster.feature_names or ())
        explanations = self._to_explanations(shape["num_feature"])
        self._signature = Signature(
            inputs=(TensorSpec(_INPUT, "FP32", (-1, shape["num_feature"])),),
            outputs=(self._to_spec(shape["num_feature"]),),
            on_request=(*self._to_on_request(targets), *explanations),
            columns=columns,
            any_input_name=True,
            explanations=tuple(spec.name for spec in explanations),
        )

    @property
    def signature(self) -> Signature:
        """One FP32 matrix; its columns are the feature names the model was trained with, if any."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Scores once, then derives what was asked for.

        Raises:
            InvalidRequest: A value is infinite, where the library takes none.
        """
        data = inputs[_INPUT]
        answers = {_CONTRIBUTIONS: self._contribute(data)} if _CONTRIBUTIONS in outputs else {}
        derived = [name for name in outputs if name != _CONTRIBUTIONS]
        if derived:
            scores = self._score(data)
            answers |= {name: self._derive(name, scores, data) for name in derived}
        return answers

    def _score(self, data: Array, kind: str = "value") -> Array:
        if not self._in_place:
            return self._predict_matrix(data, output_margin=kind == "margin")
        scores: Array = self._booster.inplace_predict(
            data, iteration_range=self._trees, predict_type=kind, validate_features=False
        )
        return scores

    def _contribute(self, data: Array) -> Array:
        return self._predict_matrix(data, pred_contribs=True)

    def _predict_matrix(self, data: Array, **kind: bool) -> Array:
        """The way of what has no in-place prediction."""
        import xgboost

        if np.isinf(data).any():
            raise InvalidRequest(f'input "{_INPUT}" contains infinity: the model takes finite numbers and NaN here')
        matrix = xgboost.DMatrix(data, nthread=self._nthread)
        answer: Array = self._booster.predict(matrix, iteration_range=self._trees, validate_features=False, **kind)
        return answer

    def _derive(self, name: str, scores: Array, data: Array) -> Array:
        if name == _OUTPUT or self._objective is None or self._labels is None:
            return scores
        if name == "predict":
            if self._objective.numbers:
                return self._labels[scores.astype(np.intp)]
            return pick_labels(scores, self._labels, self._objective.threshold)
        if self._objective.from_margins is not None:
            return self._objective.from_margins(self._score(data, "margin"))
        return to_probabilities(scores)

    def _to_spec(self, width: int) -> TensorSpec:
        """The answer's shape, from the answer itself: the objective, the targets and the classes all change it."""
        scores = self._score(np.zeros((1, width), dtype=np.float32))
        return TensorSpec(_OUTPUT, "FP32", (-1, *scores.shape[1:]))

    def _to_explanations(self, width: int) -> tuple[TensorSpec, ...]:
        """The contributions' shape, from one answer; none where the library cannot compute them."""
        import xgboost

        try:
            answer = self._contribute(np.zeros((1, width), dtype=np.float32))
        except xgboost.core.XGBoostError:
            return ()
        return (TensorSpec(_CONTRIBUTIONS, "FP32", (-1, *answer.shape[1:])),)

    def _to_on_request(self, targets: int) -> list[TensorSpec]:
        if self._objective is None or self._labels is None:
            return [TensorSpec("predict", "FP32", (-1,) if targets == 1 else (-1, targets))]
        specs = [TensorSpec("predict", datatype_of(self._labels), (-1,))]
        if self._objective.probabilities:
            specs.append(TensorSpec("predict_proba", "FP32", (-1, len(self._labels))))
        return specs


class XGBoostFramework(Framework):
    """Loads JSON and UBJSON models; one thread is the default."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".ubj", ".bst")
    options: ClassVar[type[Options]] = XGBoostOptions
    requires: ClassVar[str] = "xgboost"
    may_share: ClassVar[bool] = True
    distribution: ClassVar[str] = "xgboost-cpu"

    def load(self, path: Path, options: XGBoostOptions) -> XGBoostModel:
        """Checks the file, then loads it.

        Raises:
            ModelLoadError: The file is no complete model, or this version of xgboost cannot read it.
        """
        import xgboost

        data = path.read_bytes()
        check_file(data, path.name, xgboost.__version__)
        try:
            booster = xgboost.Booster(params={"nthread": options.nthread, "verbosity": 0}, model_file=bytearray(data))
            return XGBoostModel(booster, options)
        except (xgboost.core.XGBoostError, ValueError) as exc:
            written = _find_version(data) or "of unknown version"
            reason = str(exc).split("Stack trace:")[0].strip().splitlines()
            raise ModelLoadError(
                f"{path.name}: xgboost {xgboost.__version__} cannot load this model, written by xgboost {written}: "
                + (reason[0] if reason else "no reason given")
            ) from exc


def check_file(data: bytes, name: str, installed: str) -> None:
    """Refuses what the library's parser does not survive.

    An empty file aborts the process, a truncated UBJSON file takes all memory (xgboost 3.2.0).

    Raises:
        ModelLoadError: The file is empty, truncated, or in the old binary format, which this version does not read.
    """
    if not data:
        raise ModelLoadError(f"{name}: the file is empty")
    if not data.startswith(b"{"):
        if _reads_old_format(installed):
            return
        raise ModelLoadError(
            f"{name}: expected JSON or UBJSON, got something else. The old binary format (.model, .bst) is no longer "
            f'read by xgboost 3.1 and later (installed: {installed}): set `runtime: {{version: "3.0.5"}}`, or load it '
            'with that and write it again with booster.save_model("model.ubj")'
        )
    if data[1:2] in b"iUIlL" and (not data.endswith(b"}") or b"version" not in data[-64:]):
        raise ModelLoadError(f"{name}: the UBJSON model is truncated or damaged; save or copy it again")


def _reads_old_format(installed: str) -> bool:
    major, minor = installed.split(".")[:2]
    return (int(major), int(minor)) < (3, 1)


def _find_version(data: bytes) -> str | None:
    """The version that wrote the file: in UBJSON three tagged integers, in JSON a list, after the key ``version``."""
    text = re.search(rb'"version"\s*:\s*\[(\d+),\s*(\d+),\s*(\d+)\]', data)
    if text:
        return ".".join(part.decode() for part in text.groups())
    tail = re.search(rb"version\[#L.{8}[iU](.)[iU](.)[iU](.)", data[-64:], re.DOTALL)
    return ".".join(str(part[0]) for part in tail.groups()) if tail else None


def _saved_iterations(booster: Any) -> tuple[int, int]:
    """The iterations the saved object predicts with; ``(0, 0)`` is all of them.

    Source: xgboost ``sklearn.py``, ``XGBModel.save_model`` and ``_get_iteration_range``.
    """
    attributes = booster.attributes()
    if "scikit_learn" in attributes and "best_iteration" in attributes:
        return (0, int(attributes["best_iteration"]) + 1)
    return (0, 0)
