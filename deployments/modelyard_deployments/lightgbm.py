# SPDX-License-Identifier: Apache-2.0
"""LightGBM: text models written by ``Booster.save_model``.

Outputs:

* ``output-0``: what ``Booster.predict`` answers, FP64: probabilities of a classifier (``[n]`` for two classes,
  ``[n, k]`` for more), the value of a regression or ranking model.
* ``predict`` (when asked for): the class of each row, or the value where the model is no classifier.
* ``predict_proba`` (when asked for, classifiers only): ``[n, classes]``, two columns for two classes.
* ``contributions`` (when asked for, and what ``:explain`` answers): what each feature adds to the raw score, and last
  the bias: ``[n, features + 1]``, for more than two classes ``[n, k, features + 1]``. Exact SHAP values of trees.
  Linear trees have none.

Text models do not hold the labels a classifier was trained on; the option ``classes`` gives them. A categorical
column takes the number of the category, as the model file does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field

from modelyard.classes import CLASSES_DESCRIPTION, Labels, pick_labels, to_label_array, to_probabilities
from modelyard.errors import ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors, datatype_of

_LOG: Final = logging.getLogger(__name__)
_INPUT: Final = "input-0"
_OUTPUT: Final = "output-0"
_CONTRIBUTIONS: Final = "contributions"
_LINEAR: Final = "is_linear"


class LightGBMOptions(Options):
    """Options of a LightGBM model."""

    num_threads: int = Field(default=1, ge=1, description="Threads of one prediction; more help only large batches.")
    classes: Labels | None = Field(default=None, description=CLASSES_DESCRIPTION)


class LightGBMModel(Model):
    """A loaded booster."""

    def __init__(self, booster: Any, header: dict[str, str], options: LightGBMOptions) -> None:
        self._booster = booster
        self._num_threads = options.num_threads
        classes = _class_count(header)
        if not classes and options.classes is not None:
            raise ModelLoadError(f"option classes: the model is no classifier (objective {_objective(header)})")
        self._labels: Array | None = to_label_array(options.classes, classes) if classes else None
        self._width = int(header.get("num_tree_per_iteration", "1"))
        self._signature = _to_signature(booster, self._width, self._labels, explains=not _is_linear(header))

    @property
    def signature(self) -> Signature:
        """One FP64 matrix; its columns are the model's feature names."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Scores once, then derives what was asked for."""
        data = inputs[_INPUT]
        answers = {_CONTRIBUTIONS: self._contribute(data)} if _CONTRIBUTIONS in outputs else {}
        derived = [name for name in outputs if name != _CONTRIBUTIONS]
        if derived:
            scores: Array = self._booster.predict(data, num_threads=self._num_threads)
            answers |= {name: self._derive(name, scores) for name in derived}
        return answers

    def _contribute(self, data: Array) -> Array:
        flat: Array = self._booster.predict(data, pred_contrib=True, num_threads=self._num_threads)
        return flat if self._width == 1 else flat.reshape(len(data), self._width, -1)

    def _derive(self, name: str, scores: Array) -> Array:
        if name == _OUTPUT or self._labels is None:
            return scores
        return pick_labels(scores, self._labels) if name == "predict" else to_probabilities(scores)


class LightGBMFramework(Framework):
    """Loads text models; several trees per row cost microseconds, so one thread is the default."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".bst")
    options: ClassVar[type[Options]] = LightGBMOptions
    requires: ClassVar[str] = "lightgbm"
    may_share: ClassVar[bool] = True
    distribution: ClassVar[str] = "lightgbm"

    def load(self, path: Path, options: LightGBMOptions) -> LightGBMModel:
        """Checks the file, then loads it.

        Raises:
            ModelLoadError: The file is no complete text model, or this version of lightgbm cannot read it.
        """
        import lightgbm

        # its own messages would go to stdout; every error among them is also raised
        lightgbm.register_logger(_LOG, info_method_name="debug", warning_method_name="debug")
        header = check_text(path)
        try:
            booster = lightgbm.Booster(model_file=str(path))
        except (lightgbm.basic.LightGBMError, ValueError) as exc:
            written = header.get("version", "unknown")
            raise ModelLoadError(
                f"{path.name}: lightgbm {lightgbm.__version__} cannot read this model (format {written}): {exc}"
            ) from exc
        return LightGBMModel(booster, header, options)


def check_text(path: Path) -> dict[str, str]:
    """The model's header and whether its trees are linear, after a check that no part of the file is missing.

    LightGBM reads past the end of a truncated model and aborts the process, so its length is checked first:
    ``tree_sizes`` in the header says how many bytes each tree has.

    Raises:
        ModelLoadError: It is no text model, or not a whole one.

    Source: LightGBM ``src/boosting/gbdt_model_text.cpp``, ``SaveModelToString`` and ``LoadModelFromString``.
    """
    data = path.read_bytes()
    if not data.startswith(b"tree"):
        raise ModelLoadError(f"{path.name}: expected a LightGBM text model (Booster.save_model), got something else")
    end = data.find(b"\nend of trees")
    start = data.find(b"\nTree=0")
    start = end if start < 0 else start
    lines = data[:start].decode("utf-8", errors="replace").splitlines()
    header = dict(line.split("=", 1) for line in lines if "=" in line)
    sizes = [int(size) for size in header.get("tree_sizes", "").split() if size.isdigit()]
    if end < 0 or (sizes and sum(sizes) != end - start):
        raise ModelLoadError(f"{path.name}: the LightGBM model is truncated or damaged; save or copy it again")
    return header | {_LINEAR: "1" if b"\nis_linear=1" in data else "0"}


def _is_linear(header: dict[str, str]) -> bool:
    return header.get(_LINEAR) == "1"


def _objective(header: dict[str, str]) -> str:
    return header.get("objective", "custom").split(" ")[0]


def _class_count(header: dict[str, str]) -> int:
    """Number of classes; 0 where the model is no classifier."""
    objective = _objective(header)
    if objective == "binary":
        return 2
    return int(header.get("num_class", "1")) if objective in ("multiclass", "multiclassova") else 0


def _to_signature(booster: Any, width: int, labels: Array | None, explains: bool) -> Signature:
    scores = (-1,) if width == 1 else (-1, width)
    columns = tuple(booster.feature_name())
    explanations = (TensorSpec(_CONTRIBUTIONS, "FP64", (*scores, len(columns) + 1)),) if explains else ()
    if labels is None:
        on_request: tuple[TensorSpec, ...] = (TensorSpec("predict", "FP64", scores),)
    else:
        on_request = (
            TensorSpec("predict", datatype_of(labels), (-1,)),
            TensorSpec("predict_proba", "FP64", (-1, len(labels))),
        )
    return Signature(
        inputs=(TensorSpec(_INPUT, "FP64", (-1, len(columns))),),
        outputs=(TensorSpec(_OUTPUT, "FP64", scores),),
        on_request=(*on_request, *explanations),
        columns=columns,
        any_input_name=True,
        explanations=tuple(spec.name for spec in explanations),
    )
