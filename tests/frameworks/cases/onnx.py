# SPDX-License-Identifier: Apache-2.0
"""ONNX: each function makes one graph in a folder and says what onnxruntime answers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.tensor import to_bytes_array
from modelyard.testing import Case


def _iris() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    return features.astype(np.float32), target


def _rows() -> Any:
    return _iris()[0][::30]


def _convert(model: Any, folder: Path, sample: Any = None, **options: Any) -> Path:
    from skl2onnx import to_onnx

    features = _iris()[0][:1] if sample is None else sample
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(model, features, options=options or None).SerializeToString())
    return path


def _save(folder: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **weights: Any) -> Path:
    """A graph of these nodes; an input or output is its type (``FLOAT``) and shape, a weight an array."""
    import onnx
    from onnx import helper, numpy_helper

    def value(name: str, kind: str, shape: Any) -> Any:
        return helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)

    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, *one) for name, one in inputs.items()],
        [value(name, *one) for name, one in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def _ask(path: Path, **inputs: Any) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


def _matrix(dictionaries: list[Any]) -> Any:
    return np.array([list(row.values()) for row in dictionaries], dtype=np.float32)


def classifier_with_maps(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression

    features, target = _iris()
    path = _convert(LogisticRegression(max_iter=500).fit(features, np.array([10, 9, -1])[target]), folder)
    answers = _ask(path, X=_rows())
    chances = _matrix(answers["output_probability"])
    expected = {"output_label": answers["output_label"], "output_probability": chances}
    return Case({"X": _rows()}, expected | {"predict": answers["output_label"], "predict_proba": chances})


def classifier_of_texts_with_maps(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestClassifier

    features, target = _iris()
    names = np.array(["setosa", "versicolor", "virginica"])[target]
    path = _convert(RandomForestClassifier(5, random_state=0).fit(features, names), folder)
    answers = _ask(path, X=_rows())
    chances = _matrix(answers["output_probability"])
    return Case({"X": _rows()}, {"predict": answers["output_label"], "predict_proba": chances})


def classifier_without_maps(folder: Path) -> Case:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, target = _iris()
    model = make_pipeline(StandardScaler(), KNeighborsClassifier()).fit(features, target)
    answers = _ask(_convert(model, folder, zipmap=False), X=_rows())
    return Case({"X": _rows()}, answers | {"predict": answers["label"], "predict_proba": answers["probabilities"]})


def margins(folder: Path) -> Case:
    from sklearn.svm import SVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # skl2onnx reads what scikit-learn will drop
        path = _convert(SVC().fit(*_iris()), folder, zipmap=False)
    answers = _ask(path, X=_rows())
    return Case({"X": _rows()}, answers | {"predict": answers["label"]})


def regression(folder: Path) -> Case:
    from sklearn.linear_model import Ridge

    answers = _ask(_convert(Ridge().fit(*_iris()), folder), X=_rows())
    return Case({"X": _rows()}, answers | {"predict": answers["variable"][:, 0]})


def table_of_numbers_and_texts(folder: Path) -> Case:
    import pandas as pd
    from skl2onnx import to_onnx
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"town": ["Ulm", "Bonn", "Ulm", "Köln"], "area": np.float32([1, 2, 3, 4])})
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town"]), remainder="passthrough")
    model = make_pipeline(encoder, Ridge()).fit(table, [1, 2, 3, 4])
    path = folder / "model.onnx"
    path.write_bytes(to_onnx(model, table[:1]).SerializeToString())
    town, area = table[["town"]].to_numpy(), table[["area"]].to_numpy()
    return Case({"town": to_bytes_array(town), "area": area}, _ask(path, town=town, area=area))


def scores_with_named_classes(folder: Path) -> Case:
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=3).astype("f")
    nodes = [_node("Gemm", "x w b", "logits"), _node("Softmax", "logits", "scores", axis=-1)]
    outputs = {"logits": ("FLOAT", ["batch", 3]), "scores": ("FLOAT", ["batch", 3])}
    path = _save(folder, nodes, {"x": ("FLOAT", ["batch", 4])}, outputs, w=weights, b=bias)
    answers = _ask(path, x=_rows())
    names = np.array(["a", "b", "c"])[answers["logits"].argmax(axis=1)]
    return Case({"x": _rows()}, answers | {"predict": names}, {"classes": ["a", "b", "c"]})


def numbers_of_every_datatype(folder: Path) -> Case:
    kinds = [
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FLOAT16",
        "FLOAT",
        "DOUBLE",
    ]
    dtypes = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
    nodes = [_node("Identity", kind, f"{kind}_out") for kind in kinds]
    inputs = {kind: (kind, ["n", 2]) for kind in kinds}
    _save(folder, nodes, inputs, {f"{kind}_out": (kind, ["n", 2]) for kind in kinds})
    rows = {}
    for kind, dtype in zip(kinds, dtypes, strict=True):
        largest = np.iinfo(dtype).max if dtype[0] in "iu" else 1
        rows[kind] = np.array([[0, 1], [1, largest], [largest, 0]], dtype=dtype)
    return Case(rows, {f"{kind}_out": rows[kind] for kind in kinds})


def bfloat16(folder: Path) -> Case:
    import ml_dtypes

    nodes = [_node("Cast", "x", "wide", to=1), _node("Add", "wide wide", "sum"), _node("Cast", "sum", "y", to=16)]
    _save(folder, nodes, {"x": ("BFLOAT16", ["n", 2])}, {"y": ("BFLOAT16", ["n", 2]), "wide": ("FLOAT", ["n", 2])})
    rows = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    return Case({"x": rows}, {"y": rows + rows, "wide": rows.astype("f")})


def texts(folder: Path) -> Case:
    nodes = [_node("StringConcat", "left right", "both"), _node("Identity", "left", "same")]
    inputs = {"left": ("STRING", ["n"]), "right": ("STRING", ["n"])}
    _save_opset_20(folder, nodes, inputs, {"both": ("STRING", ["n"]), "same": ("STRING", ["n"])})
    left, right = np.array(["a", "ü", "", "x\0y"], object), np.array(["b", "€", "z", ""], object)
    return Case({"left": to_bytes_array(left), "right": to_bytes_array(right)}, {"both": left + right, "same": left})


def _save_opset_20(folder: Path, *parts: Any) -> None:
    import onnx

    path = _save(folder, *parts)
    model = onnx.load(path)
    model.opset_import[0].version = 20
    onnx.save(model, path)


def tokens_of_any_length(folder: Path) -> Case:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 8)).astype("f")
    nodes = [
        _node("Gather", "w ids", "words"),
        _node("Unsqueeze", "mask last", "wide"),
        _node("Mul", "words wide", "shown"),
        _node("ReduceSum", "shown middle", "vector", keepdims=0),
    ]
    inputs = {"ids": ("INT64", ["batch", "length"]), "mask": ("FLOAT", ["batch", "length"])}
    outputs = {"vector": ("FLOAT", ["batch", 8]), "words": ("FLOAT", ["batch", "length", 8])}
    path = _save(folder, nodes, inputs, outputs, w=table, last=np.array([-1]), middle=np.array([1]))
    rows = {"ids": rng.integers(0, 50, (4, 6)), "mask": rng.integers(0, 2, (4, 6)).astype("f")}
    return Case(rows, _ask(path, **rows))


def image(folder: Path) -> Case:
    rng = np.random.default_rng(0)
    nodes = [
        _node("Conv", "x w", "maps", pads=[1, 1, 1, 1]),
        _node("Relu", "maps", "kept"),
        _node("GlobalAveragePool", "kept", "pooled"),
        _node("Flatten", "pooled", "y"),
    ]
    inputs = {"x": ("FLOAT", ["batch", 3, 16, 16])}
    path = _save(folder, nodes, inputs, {"y": ("FLOAT", None)}, w=rng.normal(size=(5, 3, 3, 3)).astype("f"))
    rows = rng.random((3, 3, 16, 16)).astype("f")
    return Case({"x": rows}, _ask(path, x=rows))


def weights_beside_the_graph(folder: Path) -> Case:
    import onnx

    weights = np.random.default_rng(0).normal(size=(4, 64)).astype("f")
    nodes = [_node("MatMul", "x w", "y")]
    path = _save(folder, nodes, {"x": ("FLOAT", ["n", 4])}, {"y": ("FLOAT", ["n", 64])}, w=weights)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return Case({"x": _rows()}, _ask(path, x=_rows()))


def rows_that_see_each_other(folder: Path) -> Case:
    nodes = [_node("Softmax", "x", "y", axis=0)]
    path = _save(folder, nodes, {"x": ("FLOAT", ["n", 4])}, {"y": ("FLOAT", ["n", 4])})
    return Case({"x": _rows()}, _ask(path, x=_rows()))


def fixed_size(folder: Path) -> Case:
    path = _save(folder, [_node("Abs", "x", "y")], {"x": ("FLOAT", [2, 2])}, {"y": ("FLOAT", [2, 2])})
    rows = np.float32([[-1, 2], [3, -4]])
    return Case({"x": rows}, _ask(path, x=rows))


def size_given_by_option(folder: Path) -> Case:
    nodes, options = [_node("Abs", "x", "y")], {"free_dimensions": {"width": 4}}
    path = _save(folder, nodes, {"x": ("FLOAT", ["n", "width"])}, {"y": ("FLOAT", ["n", "width"])})
    return Case({"x": _rows()}, _ask(path, x=_rows()), options)


def input_with_default(folder: Path) -> Case:
    nodes = [_node("Mul", "x factor", "y")]
    inputs = {"x": ("FLOAT", ["n", 4]), "factor": ("FLOAT", [1])}
    path = _save(folder, nodes, inputs, {"y": ("FLOAT", ["n", 4])}, factor=np.float32([2]))
    factor = np.float32([5])
    return Case({"x": _rows(), "factor": factor}, _ask(path, x=_rows(), factor=factor))


def one_number(folder: Path) -> Case:
    path = _save(folder, [_node("Neg", "x", "y")], {"x": ("FLOAT", ["n"])}, {"y": ("FLOAT", ["n"])})
    rows = np.float32([1, 2, 3])
    return Case({"x": rows}, _ask(path, x=rows))
