# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: estimators and pipelines saved with joblib, pickle or skops.

Inputs, as the estimator was trained:

* on a matrix, or on a table of numbers: one FP64 matrix ``input-0`` ``[-1, n]``; a table's columns are accepted too.
* on a table with text columns: one input per column, BYTES or FP64. Which columns are text is read from the fitted
  encoders; the option ``inputs`` says it where they cannot tell.
* on documents (a vectorizer comes first): one BYTES input ``[-1]``.

Outputs: ``output-0`` is the answer of ``predict``. When asked for: ``predict`` (the same), ``predict_proba``,
``decision_function`` and ``transform``, where the estimator has them. A transformer without ``predict`` answers
``transform``.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, Parameters, Tensors, datatype_of, to_protocol_array

_LOG: Final = logging.getLogger(__name__)
_INPUT: Final = "input-0"
_OUTPUT: Final = "output-0"
_METHODS: Final = ("predict", "predict_proba", "decision_function", "transform")

_Adapter: TypeAlias = Callable[[Tensors], Any]
"""Makes what the estimator takes out of the named arrays."""


class InputOption(BaseModel):
    """One input, where the estimator cannot tell it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name of the input; for a table the name of its column.")
    datatype: str = Field(description="FP64, INT64, BYTES … as the Open Inference Protocol names them.")
    shape: tuple[int, ...] = Field(default=(-1,), description="Dimensions; -1 varies, and the first is the rows.")


class SklearnOptions(Options):
    """Options of a scikit-learn model."""

    n_jobs: int = Field(
        default=1, ge=1, description="Threads of one prediction, whatever the estimator was saved with."
    )
    trusted_types: tuple[str, ...] = Field(
        default=(), description="Types a .skops file may hold besides scikit-learn's own; any other is refused."
    )
    inputs: tuple[InputOption, ...] = Field(
        default=(), description="The inputs, where they cannot be derived from the estimator; empty derives them."
    )


class SklearnModel(Model):
    """A loaded estimator."""

    def __init__(self, estimator: Any, options: SklearnOptions) -> None:
        methods = tuple(name for name in _METHODS if hasattr(estimator, name))
        if not {"predict", "transform"} & set(methods):
            raise ModelLoadError(
                f"expected an estimator with predict or transform, got {type(estimator).__name__}"
                + ("; it can only label the data it was fitted on" if hasattr(estimator, "fit_predict") else "")
            )
        _set_n_jobs(estimator, options.n_jobs)
        self._estimator = estimator
        self._threads = _ThreadLimit(options.n_jobs)
        inputs = _Inputs(estimator, methods, options)
        self._adapt = inputs.adapt
        self._signature = _to_signature(estimator, methods, inputs)

    @property
    def signature(self) -> Signature:
        """One matrix, one list of documents, or one input per column: as the estimator was trained."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Calls one method of the estimator for each output.

        Raises:
            InvalidRequest: A value the estimator refuses: NaN, an unknown category, text that is not UTF-8.
        """
        self._threads.apply()
        data = self._adapt(inputs)
        answers: dict[str, Array] = {}
        try:
            for name in outputs:
                method = "predict" if name == _OUTPUT else name
                answers[name] = (
                    answers[_OUTPUT] if method == "predict" and _OUTPUT in answers else self._call(method, data)
                )
        except ValueError as exc:
            reason = _find_client_fault(exc, inputs)
            if reason is None:
                raise
            raise InvalidRequest(reason) from exc
        return answers

    def _call(self, method: str, data: Any) -> Array:
        return _to_array(getattr(self._estimator, method)(data))


class SklearnFramework(Framework):
    """Loads pickled estimators, which can run code, and .skops files, which hold trusted types only."""

    suffixes: ClassVar[tuple[str, ...]] = (".joblib", ".pkl", ".pickle", ".skops")
    options: ClassVar[type[Options]] = SklearnOptions
    requires: ClassVar[str] = "sklearn"
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: SklearnOptions) -> SklearnModel:
        """Loads the estimator and derives its signature.

        Raises:
            ModelLoadError: The file is damaged, needs a module that is missing, holds untrusted types, or was written
                by a version of scikit-learn that this one cannot read.
        """
        if path.name.lower().endswith(".skops"):
            return SklearnModel(_load_skops(path, options.trusted_types), options)
        return SklearnModel(_load_pickle(path), options)


# --- loading -------------------------------------------------------------------------------------------------------


def _load_pickle(path: Path) -> Any:
    import joblib
    import sklearn
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InconsistentVersionWarning)
        try:
            estimator = joblib.load(path)
        except Exception as exc:  # unpickling runs the file's own code, so it can raise anything
            raise ModelLoadError(_explain_pickle(path, exc, sklearn.__version__)) from exc
    _log_warnings(path.name, caught, InconsistentVersionWarning, sklearn.__version__)
    return estimator


def _log_warnings(name: str, caught: list[warnings.WarningMessage], kind: type[Warning], installed: str) -> None:
    messages: list[Any] = [item.message for item in caught if isinstance(item.message, kind)]
    versions = {str(message.original_sklearn_version) for message in messages}
    if versions:
        _LOG.warning(
            "%s was saved by scikit-learn %s and is loaded by %s: check its answers, or save it again",
            name,
            ", ".join(sorted(versions)),
            installed,
        )


def _explain_pickle(path: Path, exc: Exception, installed: str) -> str:
    written = _find_pickled_version(path)
    versions = f"saved by scikit-learn {written or 'of unknown version'}, installed is {installed}"
    missing = exc.name if isinstance(exc, ModuleNotFoundError) and exc.name else ""
    if missing and missing.split(".")[0] != "sklearn":
        return (
            f'{path.name} refers to the module "{missing}", which is not installed here: '
            "add the package that holds it to the model's environment"
        )
    if isinstance(exc, AttributeError) and "__main__" in str(exc):
        return f"{path.name} refers to a class or function of the script that saved it ({exc}): move it into a module"
    if missing or isinstance(exc, (AttributeError, ImportError)) or (written and written != installed):
        return f"{path.name} cannot be loaded by this version of scikit-learn ({versions}): {exc}"
    return f"{path.name} is no complete joblib or pickle file ({versions}): {type(exc).__name__}: {exc}"


def _find_pickled_version(path: Path) -> str | None:
    """The scikit-learn version in a pickle's bytes, found without unpickling.

    Source: scikit-learn ``base.py``, ``BaseEstimator.__getstate__`` adds ``_sklearn_version``.
    """
    import zlib

    data = path.read_bytes()
    if data[:1] == b"\x78":  # joblib's default compression
        try:
            data = zlib.decompressobj().decompress(data)
        except zlib.error:
            return None
    found = re.search(rb"_sklearn_version.{0,12}?(\d+\.\d+[\w.]*)", data, re.DOTALL)
    return found[1].decode() if found else None


def _load_skops(path: Path, trusted_types: Sequence[str]) -> Any:
    import sklearn
    import skops.io

    try:
        untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted_types))
        if not untrusted:
            return skops.io.load(path, trusted=list(trusted_types))
    except Exception as exc:  # the file's content decides what is raised: bad zip, bad JSON, missing attributes
        raise ModelLoadError(
            f"{path.name} cannot be loaded by skops {skops.__version__} with scikit-learn {sklearn.__version__}: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    raise ModelLoadError(
        f"{path.name} holds untrusted types: {', '.join(untrusted)}; "
        "if you trust them, name them in the option trusted_types"
    )


# --- threads -------------------------------------------------------------------------------------------------------


class _ThreadLimit:
    """Limits the thread pools of numpy and scikit-learn, once in each thread that predicts (OpenMP's is per thread)."""

    def __init__(self, threads: int) -> None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no type information

        self._controller = ThreadpoolController()
        self._threads = threads
        self._local = threading.local()

    def apply(self) -> None:
        """Costs one attribute look-up after a thread's first call."""
        if not hasattr(self._local, "limit"):
            self._local.limit = self._controller.limit(limits=self._threads)


def _set_n_jobs(estimator: Any, n_jobs: int) -> None:
    for part in _parts(estimator):
        if vars(part).get("n_jobs") is not None or (n_jobs > 1 and "n_jobs" in vars(part)):
            part.n_jobs = n_jobs


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and every estimator inside it, each once."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, np.ndarray) and item.dtype.kind == "O":
            waiting.extend(item.reshape(-1).tolist())
        elif hasattr(item, "get_params") and hasattr(item, "__dict__") and not isinstance(item, type):
            yield item
            waiting.extend(vars(item).values())


# --- inputs --------------------------------------------------------------------------------------------------------


class _Inputs:
    """What the estimator takes: its input specs, and how to make its argument out of the named arrays.

    Attributes:
        specs: The inputs.
        columns: Names of the matrix's columns; empty where it has none or the input is no matrix.
        adapt: Named arrays to the estimator's argument.
        example: A row it most likely takes, for each input.
    """

    def __init__(self, estimator: Any, methods: Sequence[str], options: SklearnOptions) -> None:
        names = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
        width = int(getattr(estimator, "n_features_in_", -1))
        self.columns: tuple[str, ...] = ()
        self.example: dict[str, Any] = {}
        if options.inputs:
            self._take_option(options.inputs, names)
        elif _takes_text(estimator):
            self._take_text()
        else:
            texts = _find_text_columns(estimator, range(max(width, 0)), names)
            if texts and (names or len(texts) < width):
                self._take_columns(names or tuple(f"x{index}" for index in range(width)), texts, bool(names))
            else:
                self._take_matrix(width, names, texts)
                if names:
                    self._drop_names(estimator, methods, names)

    def _take_option(self, options: Sequence[InputOption], names: tuple[str, ...]) -> None:
        self.specs = tuple(TensorSpec(option.name, option.datatype, option.shape) for option in options)
        for spec in self.specs:
            if spec.datatype not in DATATYPES:
                raise ModelLoadError(f'option inputs: "{spec.datatype}" of "{spec.name}" is not a datatype')
            self.example[spec.name] = b"" if spec.datatype == "BYTES" else 0
        if len(self.specs) == 1 and len(self.specs[0].shape) == 2:
            self.adapt = _matrix_adapter(self.specs[0].name, self.specs[0].datatype)
            return
        given = {spec.name for spec in self.specs}
        if names and given != set(names):
            raise ModelLoadError(
                f"option inputs: expected the columns the model was trained with, {', '.join(names)}, "
                f"got {', '.join(sorted(given))}"
            )
        self.adapt = _frame_adapter(names or tuple(spec.name for spec in self.specs))

    def _take_text(self) -> None:
        self.specs = (TensorSpec(_INPUT, "BYTES", (-1,)),)
        self.example[_INPUT] = b"text"
        self.adapt = lambda inputs: _to_strings(_INPUT, inputs[_INPUT]).tolist()

    def _take_columns(self, names: tuple[str, ...], texts: Mapping[int, str], has_names: bool) -> None:
        self.specs = tuple(
            TensorSpec(name, "BYTES" if index in texts else "FP64", (-1,)) for index, name in enumerate(names)
        )
        self.example = {name: texts[index].encode() if index in texts else 0 for index, name in enumerate(names)}
        self.adapt = _frame_adapter(names) if has_names else _object_matrix_adapter(names)

    def _take_matrix(self, width: int, names: tuple[str, ...], texts: Mapping[int, str]) -> None:
        datatype = "BYTES" if texts else "FP64"
        self.specs = (TensorSpec(_INPUT, datatype, (-1, width)),)
        self.columns = names
        self.example[_INPUT] = [texts[index].encode() for index in range(width)] if texts else 0
        self.adapt = _matrix_adapter(_INPUT, datatype)

    def _drop_names(self, estimator: Any, methods: Sequence[str], names: tuple[str, ...]) -> None:
        """Lets an estimator trained on a table of numbers take a plain matrix, if its answers stay the same.

        Building a DataFrame for each request, and checking its names in each step, costs more than most predictions:
        480 of 740 µs for a scaler and a logistic regression on 30 columns.
        """
        import pandas as pd

        rows = np.array([[0.0], [1.0], [0.5], [-2.0]]) * np.arange(1, len(names) + 1)
        parts = [part for part in _parts(estimator) if "feature_names_in_" in vars(part)]
        kept = [(part, part.feature_names_in_) for part in parts]
        with_names = _answers(estimator, methods, pd.DataFrame(rows, columns=list(names)))
        for part in parts:
            del part.feature_names_in_
        without = _answers(estimator, methods, rows)
        if with_names and without and all(np.array_equal(a, b) for a, b in zip(with_names, without, strict=True)):
            return
        for part, value in kept:
            part.feature_names_in_ = value
        self.adapt = lambda inputs: pd.DataFrame(inputs[_INPUT], columns=list(names))


def _answers(estimator: Any, methods: Sequence[str], data: Any) -> list[Array]:
    """What each method answers; empty where one fails or complains about feature names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*feature names.*")
        try:
            return [_to_array(getattr(estimator, method)(data)) for method in methods]
        except Exception:  # noqa: BLE001  # a trial on made-up values: whatever it raises means "do not rely on it"
            return []


def _matrix_adapter(name: str, datatype: str) -> _Adapter:
    if datatype == "BYTES":
        return lambda inputs: _to_strings(name, inputs[name])
    return lambda inputs: inputs[name]


def _frame_adapter(names: tuple[str, ...]) -> _Adapter:
    import pandas as pd

    def adapt(inputs: Tensors) -> Any:
        columns = {
            name: _to_strings(name, inputs[name]) if inputs[name].dtype == object else inputs[name] for name in names
        }
        return pd.DataFrame(columns, copy=False)

    return adapt


def _object_matrix_adapter(names: tuple[str, ...]) -> _Adapter:
    def adapt(inputs: Tensors) -> Array:
        columns = [_to_strings(name, inputs[name]) if inputs[name].dtype == object else inputs[name] for name in names]
        return np.stack([column.astype(object) for column in columns], axis=1)

    return adapt


def _to_strings(name: str, array: Array) -> Array:
    """An object array of ``str`` out of one of ``bytes``; a copy.

    Raises:
        InvalidRequest: An element is not UTF-8.
    """
    out = np.empty(array.size, dtype=object)
    try:
        out[:] = [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc
    return out.reshape(array.shape)


def _takes_text(estimator: Any) -> bool:
    """A vectorizer comes first, so the estimator takes documents."""
    if hasattr(estimator, "build_analyzer"):
        return True
    if hasattr(estimator, "best_estimator_"):
        return _takes_text(estimator.best_estimator_)
    steps = getattr(estimator, "steps", None) or getattr(estimator, "transformer_list", None)
    return _takes_text(steps[0][1]) if steps else False


def _find_text_columns(part: Any, indices: Sequence[int], names: Sequence[str]) -> dict[int, str]:
    """Columns that hold text, each with a value the estimator knows, as its fitted encoders say.

    Args:
        part: An estimator, or what stands in its place ("drop", "passthrough").
        indices: Which of the table's columns it gets.
        names: Names of the table's columns; empty where it has none.
    """
    if isinstance(part, str) or part is None:
        return {}
    if hasattr(part, "build_analyzer"):
        return dict.fromkeys(indices, "text")
    known = getattr(part, "categories_", None)
    if known is None:
        known = [[value] for value in getattr(part, "statistics_", ())]  # what an imputer puts in a gap
    found: dict[int, str] = {}
    for index, values in zip(indices, known, strict=False):
        example = next((value for value in values if isinstance(value, str)), None)
        if example is not None:
            found[index] = str(example)
    for child, columns in _children(part):
        found |= _find_text_columns(child, indices if columns is None else _resolve(columns, indices, names), names)
    return found


def _children(part: Any) -> Iterator[tuple[Any, Any]]:
    """The estimators that see the part's own columns, each with the selection it gets; None is all of them."""
    for _name, child, columns in getattr(part, "transformers_", ()):
        yield child, columns
    for _name, child, *_rest in getattr(part, "transformer_list", ()):
        yield child, None
    for _name, step in getattr(part, "steps", ()):
        yield step, None
        if not (isinstance(step, str) or step is None or hasattr(step, "func")):
            break  # the steps behind it see other columns
    for name in ("best_estimator_", "estimator_", "regressor_", "_preprocessor"):
        yield getattr(part, name, None), None
    inner = getattr(part, "estimators_", ())
    for child in inner[:1] if isinstance(inner, list) else ():
        yield child, None


def _resolve(columns: Any, indices: Sequence[int], names: Sequence[str]) -> list[int]:
    """The table's columns behind a ColumnTransformer's selection: names, numbers, a mask or a slice."""
    if isinstance(columns, slice) and not isinstance(columns.start or columns.stop, str):
        return list(indices[columns])
    chosen = np.atleast_1d(np.asarray(columns, dtype=object)).tolist()
    if chosen and all(isinstance(item, (bool, np.bool_)) for item in chosen):
        return [index for index, is_chosen in zip(indices, chosen, strict=False) if is_chosen]
    by_name = {name: index for index, name in enumerate(names)}
    return [by_name.get(item, -1) if isinstance(item, str) else indices[int(item)] for item in chosen]


# --- outputs -------------------------------------------------------------------------------------------------------


def _to_signature(estimator: Any, methods: Sequence[str], inputs: _Inputs) -> Signature:
    specs = {method: _to_spec(estimator, method, inputs) for method in methods}
    if "predict" in specs:
        answer = specs["predict"]
        outputs = (TensorSpec(_OUTPUT, answer.datatype, answer.shape),)
    else:
        outputs = (specs.pop("transform"),)
    return Signature(
        inputs=inputs.specs,
        outputs=outputs,
        on_request=tuple(specs.values()),
        columns=inputs.columns,
        any_input_name=len(inputs.specs) == 1 and inputs.specs[0].name == _INPUT,
    )


def _to_spec(estimator: Any, method: str, inputs: _Inputs) -> TensorSpec:
    """Datatype and shape of a method's answer, tried on one row; where that fails, what its classes say."""
    for number in (0.0, 1.0, 0.5):
        row = {spec.name: _to_example(spec, inputs.example[spec.name] or number) for spec in inputs.specs}
        answers = _answers(estimator, [method], inputs.adapt(row))
        if answers:
            return TensorSpec(method, datatype_of(answers[0]), (-1, *answers[0].shape[1:]))
    classes = getattr(estimator, "classes_", None)
    if method == "predict":
        datatype = "FP64" if classes is None else datatype_of(np.asarray(classes))
        return TensorSpec(method, datatype, (-1,))
    return TensorSpec(method, "FP64", (-1, -1 if classes is None else len(classes)))


def _to_example(spec: TensorSpec, value: Any) -> Array:
    shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
    if spec.datatype == "BYTES" and isinstance(value, float):
        value = b""
    return np.full(shape, value, dtype=DATATYPES[spec.datatype].dtype)


def _to_array(answer: Any) -> Array:
    """A method's answer as a protocol array ``[rows, …]``.

    Multi-output classifiers answer a list of ``[rows, classes]``, which becomes ``[rows, outputs, classes]``.
    """
    if hasattr(answer, "toarray"):
        answer = answer.toarray()
    if isinstance(answer, list):
        answer = np.stack(answer, axis=1)
    return to_protocol_array(np.asarray(answer))


_VALUE_FAULTS: Final = (
    "contains infinity",
    "Found unknown categories",
    "Negative values in data",
    "could not convert string to float",
)


def _find_client_fault(exc: ValueError, inputs: Tensors) -> str | None:
    """A sentence for the client where its values are at fault; None where the model itself failed.

    Source: the messages of scikit-learn's ``utils/validation.py`` and ``preprocessing/_encoders.py``.
    """
    reason = str(exc).split("\n", 1)[0].strip()
    if "contains NaN" in reason:
        for name, array in inputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                return f'input "{name}" contains NaN: the model takes finite numbers only'
        return None  # the values are fine, the model's own steps make the NaN
    if any(fault in reason for fault in _VALUE_FAULTS):
        return f"a value does not fit the model: {reason}"
    return None
