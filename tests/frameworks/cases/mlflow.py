# SPDX-License-Identifier: Apache-2.0
"""MLflow: each function saves one model into a folder, as users do, and says what its pyfunc answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.tensor import to_protocol_array
from modelyard.testing import Case
from modelyard_deployments._mlflow_files import import_mlflow, quiet

_NAMES = ["a", "b", "c", "d"]


def _iris() -> tuple[Any, Any]:
    import pandas as pd
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    return pd.DataFrame(features, columns=_NAMES), target


def _save(flavor: str, folder: Path, model: Any, taken: Any = None, given: Any = None, **more: Any) -> None:
    """With a signature that mlflow infers from these, unless there is none to give."""
    import importlib

    import_mlflow()
    from mlflow.models import infer_signature

    module = importlib.import_module(f"mlflow.{flavor}")
    if flavor == "sklearn":
        more.setdefault("serialization_format", "cloudpickle")
    with quiet():
        if taken is not None:
            more["signature"] = infer_signature(taken, given)
        key = {"pyfunc": "python_model", "sklearn": "sk_model", "xgboost": "xgb_model", "lightgbm": "lgb_model"}[flavor]
        module.save_model(path=str(folder), **{key: model}, pip_requirements=[], **more)


def _answer(folder: Path, data: Any, params: Any = None) -> Any:
    """What mlflow itself answers."""
    import mlflow.pyfunc

    with quiet():
        return mlflow.pyfunc.load_model(str(folder)).predict(data, params=params)


def _columns(table: Any) -> dict[str, Any]:
    """As a client sends them: texts are bytes."""
    arrays = {name: table[name].to_numpy() for name in table.columns}
    return {
        name: to_protocol_array(array.astype(object)) if array.dtype == object else array
        for name, array in arrays.items()
    }


def _schema(*columns: Any) -> Any:
    import_mlflow()
    from mlflow.types import ColSpec, Schema

    return Schema([ColSpec(*column[:2], required=column[2] if len(column) > 2 else True) for column in columns])


# -- estimators


def sklearn_table(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression

    table, target = _iris()
    model = LogisticRegression(max_iter=500).fit(table, target)
    _save("sklearn", folder, model, table, model.predict(table), serialization_format="skops")
    rows = table[::30]
    answer = _answer(folder, rows)
    expected = {"output-0": answer, "predict": answer, "predict_proba": model.predict_proba(rows)}
    return Case(_columns(rows), expected)


def sklearn_matrix(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestRegressor

    table, target = _iris()
    matrix = table.to_numpy()
    model = RandomForestRegressor(5, n_jobs=-1, random_state=1).fit(matrix, target)
    _save("sklearn", folder, model, matrix, model.predict(matrix))
    return Case({"anything": matrix[::30]}, {"output-0": _answer(folder, matrix[::30])})


def sklearn_texts(folder: Path) -> Case:
    """Columns of text and of whole numbers, so the estimator needs its table."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"town": ["Ulm", "Köln", "Bonn", "Ulm"] * 5, "rooms": np.arange(20)})
    columns = ColumnTransformer([("town", OneHotEncoder(), ["town"]), ("rooms", "passthrough", ["rooms"])])
    model = make_pipeline(columns, Ridge()).fit(table, np.arange(20.0))
    _save("sklearn", folder, model, table, model.predict(table))
    rows = table[:4]
    return Case(_columns(rows), {"output-0": _answer(folder, rows)})


def sklearn_probabilities(folder: Path) -> Case:
    """Saved to answer ``predict_proba``."""
    from sklearn.tree import DecisionTreeClassifier

    table, target = _iris()
    model = DecisionTreeClassifier(max_depth=2).fit(table, target)
    given = model.predict_proba(table)
    _save("sklearn", folder, model, table, given, pyfunc_predict_fn="predict_proba")
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


def sklearn_without_signature(folder: Path) -> Case:
    from sklearn.linear_model import LinearRegression

    table, target = _iris()
    _save("sklearn", folder, LinearRegression().fit(table, target))
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


def sklearn_matrix_without_signature(folder: Path) -> Case:
    from sklearn.linear_model import LinearRegression

    table, target = _iris()
    matrix = table.to_numpy()
    _save("sklearn", folder, LinearRegression().fit(matrix, target))
    return Case({"x": matrix[::30]}, {"output-0": _answer(folder, matrix[::30])})


def sklearn_string_classes(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression

    table, target = _iris()
    labels = np.array(["setosa", "versicolor", "virginica"])[target]
    model = LogisticRegression(max_iter=500).fit(table, labels)
    _save("sklearn", folder, model, table, model.predict(table))
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


def xgboost_booster(folder: Path) -> Case:
    import xgboost

    table, target = _iris()
    settings = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1}
    booster = xgboost.train(settings, xgboost.DMatrix(table, label=target), num_boost_round=4)
    _save("xgboost", folder, booster, table, booster.predict(xgboost.DMatrix(table)))
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


def xgboost_classifier(folder: Path) -> Case:
    import xgboost

    table, target = _iris()
    model = xgboost.XGBClassifier(n_estimators=4, max_depth=2, n_jobs=1).fit(table, target)
    _save("xgboost", folder, model, table, model.predict(table))
    rows = table[::30]
    return Case(_columns(rows), {"output-0": _answer(folder, rows), "predict_proba": model.predict_proba(rows)})


def lightgbm_booster(folder: Path) -> Case:
    import lightgbm

    table, target = _iris()
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(table, target), num_boost_round=4)
    _save("lightgbm", folder, booster, table, booster.predict(table))
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


def lightgbm_classifier(folder: Path) -> Case:
    import lightgbm

    table, target = _iris()
    model = lightgbm.LGBMClassifier(n_estimators=4, verbosity=-1, n_jobs=1).fit(table, target)
    _save("lightgbm", folder, model, table, model.predict(table))
    rows = table[::30]
    return Case(_columns(rows), {"output-0": _answer(folder, rows), "predict_proba": model.predict_proba(rows)})


def lightgbm_without_signature(folder: Path) -> Case:
    import lightgbm

    table, target = _iris()
    settings = {"objective": "regression", "verbosity": -1, "num_threads": 1}
    _save("lightgbm", folder, lightgbm.train(settings, lightgbm.Dataset(table, target), num_boost_round=4))
    return Case(_columns(table[::30]), {"output-0": _answer(folder, table[::30])})


# -- Python classes


def _python_model(function: Any) -> Any:
    import_mlflow()
    import mlflow.pyfunc

    with quiet():  # it recommends type hints

        class Python(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):
                return function(model_input, params)

    return Python()


def _save_python(folder: Path, function: Any, signature: Any = None, **more: Any) -> None:
    _save("pyfunc", folder, _python_model(function), signature=signature, **more)


def python_every_type(folder: Path) -> Case:
    """One column of each type; the answer tells what the model has seen."""
    from mlflow.models import ModelSignature

    names = ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")

    def tell(table: Any, _params: Any) -> Any:
        import pandas as pd

        return pd.DataFrame(
            {
                "sum": table["integer"] + table["long"] + table["double"] + table["float"] + table["boolean"],
                "text": table["string"].map(str.upper) + table["binary"].map(lambda item: item.hex()),
                "day": table["datetime"].dt.day_name(),
                "at": table["datetime"],
                "bytes": table["binary"],
                "kinds": [" ".join(f"{dtype}" for dtype in table.dtypes)] * len(table),
            }
        )

    outputs = _schema(
        *(("double", "sum"), ("string", "text"), ("string", "day")),
        *(("datetime", "at"), ("binary", "bytes"), ("string", "kinds")),
    )
    _save_python(folder, tell, ModelSignature(inputs=_schema(*((name, name) for name in names)), outputs=outputs))
    rows = {
        "boolean": np.array([True, False, True]),
        "integer": np.array([1, 2, 3], dtype=np.int32),
        "long": np.array([1, 2, 2**53]),
        "float": np.array([0.5, 1.5, np.nan], dtype=np.float32),
        "double": np.array([0.5, 1.5, 2.5]),
        "string": np.array(["a", "Größe", ""], dtype=object),
        "binary": np.array([b"\x00\xff", b"", b"x"], dtype=object),
        "datetime": np.array(["2024-02-29", "2024-12-31T23:59:59.5", "1999-01-01 10:00"], dtype=object),
    }
    kinds = "bool int32 int64 float32 float64 str object datetime64[ns]"
    expected = {
        "sum": rows["integer"] + rows["long"] + rows["double"] + rows["float"] + rows["boolean"],
        "text": np.array(["A00ff", "GRÖSSE", "78"], dtype=object),
        "day": np.array(["Thursday", "Tuesday", "Friday"], dtype=object),
        "at": np.array(["2024-02-29T00:00:00", "2024-12-31T23:59:59.500000", "1999-01-01T10:00:00"], dtype=object),
        "bytes": rows["binary"],
        "kinds": np.array([kinds] * 3, dtype=object),
    }
    texts = {"string", "datetime"}
    inputs = {name: np.array([v.encode() for v in a], dtype=object) if name in texts else a for name, a in rows.items()}
    return Case(inputs, expected)


def python_optional_column(folder: Path) -> Case:
    from mlflow.models import ModelSignature

    def tell(table: Any, _params: Any) -> Any:
        return np.full(len(table), float(len(table.columns))) + table["a"].to_numpy()

    _save_python(folder, tell, ModelSignature(inputs=_schema(("double", "a"), ("long", "b", False))))
    return Case({"a": np.arange(3.0)}, {"output-0": np.arange(3.0) + 1})


def python_optional_number(folder: Path) -> Case:
    """A row without it has NaN there, as MLflow's own server gives it."""
    from mlflow.models import ModelSignature

    def add(table: Any, _params: Any) -> Any:
        return table["a"].to_numpy() + (table["b"].fillna(100.0).to_numpy() if "b" in table else 100.0)

    _save_python(folder, add, ModelSignature(inputs=_schema(("double", "a"), ("double", "b", False))))
    return Case({"a": np.arange(3.0), "b": np.array([1.0, np.nan, 2.0])}, {"output-0": np.array([1.0, 101.0, 4.0])})


def python_params(folder: Path) -> Case:
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    def scale(table: Any, params: Any) -> Any:
        return table["a"].to_numpy() * params["factor"] + sum(params["offsets"])

    params = ParamSchema([ParamSpec("factor", "double", 2.0), ParamSpec("offsets", "long", [1], (-1,))])
    _save_python(folder, scale, ModelSignature(inputs=_schema(("double", "a")), params=params))
    return Case({"a": np.arange(3.0)}, {"output-0": np.arange(3.0) * 2 + 1})


def python_list_of_texts(folder: Path) -> Case:
    """A function with type hints takes a list, and gives one."""
    from mlflow.pyfunc import PythonModel

    class Lengths(PythonModel):
        def predict(self, model_input: list[str]) -> list[int]:
            assert type(model_input) is list
            return [len(text) for text in model_input]

    _save("pyfunc", folder, Lengths())
    texts = np.array([b"a", "Größe".encode(), b""], dtype=object)
    return Case({"texts": texts}, {"output-0": np.array([1, 5, 0])})


def python_series(folder: Path) -> Case:
    """Its name is the output's, also where the signature has none."""
    _save_python(folder, lambda table, _params: table["a"] * 2, _signature([("double", "a")], [("double", None)]))
    return Case({"a": np.arange(3.0)}, {"a": np.arange(3.0) * 2})


def python_series_without_name(folder: Path) -> Case:
    _save_python(folder, lambda t, _: (t["a"] * 2).rename(None), _signature([("double", "a")], [("double", None)]))
    return Case({"a": np.arange(3.0)}, {"output-0": np.arange(3.0) * 2})


def sklearn_texts_seen(folder: Path) -> Case:
    """An encoder that takes categories it has not seen."""
    import pandas as pd
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"town": ["Ulm", "Köln", "Bonn", "Ulm"]})
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(table, np.arange(4.0))
    _save("sklearn", folder, model, table, model.predict(table))
    return Case(_columns(table), {"output-0": _answer(folder, table)})


def _signature(inputs: Any, outputs: Any) -> Any:
    import_mlflow()
    from mlflow.models import ModelSignature

    return ModelSignature(inputs=_schema(*inputs), outputs=_schema(*outputs))


def python_lists(folder: Path) -> Case:
    """A column with a list of numbers in each row."""
    import_mlflow()
    from mlflow.types.schema import Array, DataType

    def total(table: Any, _params: Any) -> Any:
        return table["v"].map(sum).to_numpy()

    _save_python(folder, total, _signature([(Array(DataType.double), "v")], [("double", None)]))
    rows = np.arange(6.0).reshape(3, 2)
    return Case({"v": rows}, {"output-0": rows.sum(axis=1)})


def python_objects(folder: Path) -> Case:
    """A column of objects travels as JSON text, both ways."""
    import_mlflow()
    from mlflow.types.schema import DataType, Object, Property

    def pick(table: Any, _params: Any) -> Any:
        import pandas as pd

        return pd.DataFrame({"name": [o["name"].upper() for o in table["o"]], "all": list(table["o"])})

    kind = Object([Property("name", DataType.string), Property("size", DataType.long, required=False)])
    _save_python(folder, pick, _signature([(kind, "o")], [("string", "name"), (kind, "all")]), input_example=_EXAMPLE)
    objects = [{"name": "x"}, {"name": "y", "size": 2}, {"name": "z"}]
    texts = np.array([json.dumps(item).encode() for item in objects], dtype=object)
    return Case({"o": texts}, {"name": np.array([b"X", b"Y", b"Z"], dtype=object), "all": texts})


_EXAMPLE = [{"o": {"name": "x", "size": 1}}]


def python_without_signature(folder: Path) -> Case:
    """Told by the option."""
    _save_python(folder, lambda table, _params: table["b"].str.len() + table["a"])
    options = {"inputs": [{"name": "a", "datatype": "FP64"}, {"name": "b", "datatype": "BYTES"}]}
    inputs = {"a": np.arange(3.0), "b": np.array([b"", b"x", b"yy"], dtype=object)}
    return Case(inputs, {"output-0": np.arange(3.0) * 2}, options)


def python_with_nothing(folder: Path) -> Case:
    """Neither signature nor example: a table of numbers without names."""
    _save_python(folder, lambda table, _params: table.sum(axis=1).to_numpy())
    rows = np.arange(6.0).reshape(3, 2)
    return Case({"x": rows}, {"output-0": rows.sum(axis=1)})


def python_of_all_rows(folder: Path) -> Case:
    """Each answer depends on the other rows."""
    _save_python(folder, lambda table, _params: (table - table.mean()).sum(axis=1).to_numpy())
    rows = np.arange(6.0).reshape(3, 2)
    return Case({"x": rows}, {"output-0": np.array([-4.0, 0.0, 4.0])})


def tensor_of_all_rows(folder: Path) -> Case:
    """The same, with a signature that tells its outputs."""
    x = np.arange(12, dtype=np.float64).reshape(3, 4)
    _save_python(folder, lambda array, _params: array - array.mean(axis=0), _inferred(x, x))
    return Case({"x": x}, {"output-0": x - x.mean(axis=0)})


def python_of_known_texts(folder: Path) -> Case:
    """It refuses what rows are made up of."""
    import_mlflow()
    import pandas as pd

    def look_up(table: Any, _params: Any) -> Any:
        return np.array([{"Ulm": 1.0, "Bonn": 2.0, "Köln": 3.0}[town] for town in table["town"]])

    towns = ["Ulm", "Bonn", "Köln"]
    table = pd.DataFrame({"town": towns})
    _save_python(folder, look_up, _inferred(table, np.arange(3.0)), input_example=table)
    return Case({"town": to_protocol_array(np.array(towns, dtype=object))}, {"output-0": np.array([1.0, 2.0, 3.0])})


def python_input_example(folder: Path) -> Case:
    """The example says what the columns are."""
    import pandas as pd

    table = pd.DataFrame({"town": ["Ulm", "Bonn", "Köln"], "rooms": [1.0, 2.0, 3.0]})
    _save_python(folder, lambda t, _: (t["town"].str.len() + t["rooms"]).to_numpy(), input_example=table)
    texts = np.array([text.encode() for text in table["town"]], dtype=object)
    return Case({"town": texts, "rooms": table["rooms"].to_numpy()}, {"output-0": np.array([4.0, 6.0, 7.0])})


def tensors_by_name(folder: Path) -> Case:
    import_mlflow()

    def join(arrays: Any, _params: Any) -> Any:
        return {"sum": arrays["x"].sum(axis=(1, 2)) + arrays["y"], "x": arrays["x"]}

    x, y = np.arange(12, dtype=np.float32).reshape(3, 2, 2), np.arange(3, dtype=np.float32)
    _save_python(folder, join, _inferred({"x": x, "y": y}, {"sum": y, "x": x}))
    return Case({"x": x, "y": y}, {"sum": x.sum(axis=(1, 2)) + y, "x": x})


def tensor_without_name(folder: Path) -> Case:
    import_mlflow()
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)
    _save_python(folder, lambda array, _params: array[:, ::-1] * 2, _inferred(x, x))
    return Case({"image": x}, {"output-0": x[:, ::-1] * 2})


def tensor_of_texts(folder: Path) -> Case:
    import_mlflow()
    texts = np.array([["a", "bb"], ["c", "dd"], ["e", "Größe"]])
    _save_python(folder, lambda array, _params: np.char.upper(array), _inferred(texts, texts))
    as_bytes = np.array([text.encode() for text in texts.reshape(-1)], dtype=object).reshape(texts.shape)
    return Case({"x": as_bytes}, {"output-0": np.char.upper(texts).astype(object)})


def _inferred(taken: Any, given: Any) -> Any:
    from mlflow.models import infer_signature

    return infer_signature(taken, given)
