# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: each function trains one model into a folder and says what the library answers."""

from pathlib import Path
from typing import Any

import numpy as np

from modelyard.testing import Case


def _save(model: Any, folder: Path) -> None:
    import joblib

    joblib.dump(model, folder / "model.joblib")


def _iris() -> Any:
    from sklearn.datasets import load_iris

    return load_iris()


def _matrix_case(model: Any, folder: Path, rows: Any, *methods: str) -> Case:
    """Saves the model; expects of each method what the library answers."""
    _save(model, folder)
    expected = {method: getattr(model, method)(rows) for method in methods}
    if "predict" in expected:
        expected["output-0"] = expected["predict"]
    return Case(inputs={"x": np.asarray(rows)}, expected=expected)


def svc_integer_labels(folder: Path) -> Case:
    from sklearn.svm import SVC

    iris = _iris()
    model = SVC(gamma="scale").fit(iris.data, iris.target)
    return _matrix_case(model, folder, iris.data[::30], "predict", "decision_function")


def svc_string_labels(folder: Path) -> Case:
    from sklearn.svm import SVC

    iris = _iris()
    model = SVC().fit(iris.data, iris.target_names[iris.target])
    return _matrix_case(model, folder, iris.data[::30], "predict")


def grid_search_boolean_labels(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    iris = _iris()
    model = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(iris.data[:100], iris.target[:100] == 1)
    return _matrix_case(model, folder, iris.data[:100:20], "predict", "predict_proba", "decision_function")


def pipeline_from_table(folder: Path) -> Case:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer(as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    rows = data.data.iloc[::100]
    _save(model, folder)
    return Case(
        inputs={str(name): rows[name].to_numpy() for name in rows.columns},
        expected={"output-0": model.predict(rows), "predict_proba": model.predict_proba(rows)},
    )


def pipeline_that_needs_its_table(folder: Path) -> Case:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    table = _iris_table()
    columns = ColumnTransformer(
        [("a", StandardScaler(), ["petal length (cm)"]), ("b", MinMaxScaler(), ["sepal length (cm)"])]
    )
    model = make_pipeline(columns, Ridge()).fit(table, range(150))
    _save(model, folder)
    return Case(inputs={"x": table.to_numpy()[::30]}, expected={"output-0": model.predict(table[::30])})


def pipeline_with_pandas_inside(folder: Path) -> Case:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = _iris_table()
    model = make_pipeline(StandardScaler(), Ridge()).set_output(transform="pandas").fit(table, range(150))
    _save(model, folder)
    return Case(inputs={"x": table.to_numpy()[::30]}, expected={"output-0": model.predict(table[::30])})


def _iris_table() -> Any:
    from sklearn.datasets import load_iris

    return load_iris(as_frame=True).data


def _mixed_table() -> Any:
    import pandas as pd

    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "town": rng.choice(["Köln", "Bonn", "Ulm"], 60),
            "area": rng.uniform(20, 200, 60),
            "rooms": rng.integers(1, 6, 60),
            "heating": rng.choice(["gas", "oil"], 60),
        }
    )


def _table_inputs(table: Any) -> dict[str, Any]:
    """Columns as a client sends them: text as BYTES."""
    text = {"O", "U", "T"}
    return {
        str(name): np.array([str(item).encode() for item in table[name]], dtype=object)
        if getattr(table[name].dtype, "kind", "O") in text
        else table[name].to_numpy()
        for name in table.columns
    }


def mixed_table_regression(folder: Path) -> Case:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = _mixed_table()
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    columns = ColumnTransformer(
        [("texts", texts, ["town", "heating"]), ("numbers", StandardScaler(), ["area"])], remainder="passthrough"
    )
    model = make_pipeline(columns, Ridge()).fit(table, table["area"] * 2)
    _save(model, folder)
    return Case(inputs=_table_inputs(table[:5]), expected={"output-0": model.predict(table[:5])})


def mixed_table_by_position(folder: Path) -> Case:
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder
    from sklearn.tree import DecisionTreeClassifier

    table = _mixed_table()
    columns = make_column_transformer(
        (OrdinalEncoder(), [True, False, False, False]), (OrdinalEncoder(), slice(3, 4)), remainder="passthrough"
    )
    model = make_pipeline(columns, DecisionTreeClassifier(random_state=0)).fit(table, table["heating"])
    _save(model, folder)
    return Case(
        inputs=_table_inputs(table[:5]),
        expected={"output-0": model.predict(table[:5]), "predict_proba": model.predict_proba(table[:5])},
    )


def boosting_with_categories(folder: Path) -> Case:
    from sklearn.ensemble import HistGradientBoostingClassifier

    table = _mixed_table().astype({"town": "category", "heating": "category"})
    model = HistGradientBoostingClassifier(max_iter=5).fit(table, table["area"] > 100)
    _save(model, folder)
    plain = _mixed_table()
    return Case(inputs=_table_inputs(plain[:5]), expected={"output-0": model.predict(table[:5])})


def text_columns_without_names(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = np.array([["a", "x"], ["b", "y"], ["c", "x"], ["a", "y"]], dtype=object)
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, [1, 2, 3, 4])
    _save(model, folder)
    inputs = {"x": np.array([[item.encode() for item in row] for row in rows.tolist()], dtype=object)}
    return Case(inputs=inputs, expected={"output-0": model.predict(rows)})


def numbers_as_categories(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = np.array([[7.0, 10.0], [8.0, 20.0], [9.0, 10.0], [7.0, 30.0]])
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, [1, 2, 3, 4])
    return _matrix_case(model, folder, rows, "predict", "predict_proba")


def table_with_numbers_as_categories(folder: Path) -> Case:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    table = _mixed_table().drop(columns="heating").assign(rooms=lambda table: table["rooms"] + 10)
    columns = make_column_transformer(
        (OneHotEncoder(), ["rooms"]), (OrdinalEncoder(), ["town"]), remainder="drop", verbose_feature_names_out=False
    )
    model = make_pipeline(columns, Ridge()).fit(table, table["area"])
    _save(model, folder)
    return Case(inputs=_table_inputs(table[:5]), expected={"output-0": model.predict(table[:5])})


def documents(folder: Path) -> Case:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good film", "great film", "bad film", "dull and bad"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["pos", "pos", "neg", "neg"])
    _save(model, folder)
    return Case(
        inputs={"x": np.array([text.encode() for text in texts], dtype=object)},
        expected={"output-0": model.predict(texts), "predict_proba": model.predict_proba(texts)},
    )


def forest_saved_with_all_threads(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestRegressor

    iris = _iris()
    model = RandomForestRegressor(n_estimators=10, n_jobs=-1, random_state=0).fit(iris.data, iris.target)
    return _matrix_case(model, folder, iris.data[::30], "predict")


def boosting_saved_with_all_threads(folder: Path) -> Case:
    from sklearn.ensemble import HistGradientBoostingRegressor

    iris = _iris()
    model = HistGradientBoostingRegressor(max_iter=20).fit(iris.data, iris.target)
    return _matrix_case(model, folder, iris.data[::30], "predict")


def multi_output_regression(folder: Path) -> Case:
    from sklearn.linear_model import LinearRegression

    iris = _iris()
    model = LinearRegression().fit(iris.data[:, :2], iris.data[:, 2:])
    return _matrix_case(model, folder, iris.data[::30, :2], "predict")


def multi_output_classifier(folder: Path) -> Case:
    from sklearn.tree import DecisionTreeClassifier

    iris = _iris()
    targets = np.stack([iris.target, (iris.target + 1) % 3], axis=1)
    model = DecisionTreeClassifier(random_state=0).fit(iris.data, targets)
    _save(model, folder)
    rows = iris.data[::30]
    return Case(
        inputs={"x": rows},
        expected={"output-0": model.predict(rows), "predict_proba": np.stack(model.predict_proba(rows), axis=1)},
    )


def clusters(folder: Path) -> Case:
    from sklearn.cluster import KMeans

    iris = _iris()
    model = KMeans(3, n_init=1, random_state=0).fit(iris.data)
    return _matrix_case(model, folder, iris.data[::30], "predict", "transform")


def transformer_only(folder: Path) -> Case:
    from sklearn.decomposition import PCA

    iris = _iris()
    return _matrix_case(PCA(2).fit(iris.data), folder, iris.data[::30], "transform")


def sparse_transformer(folder: Path) -> Case:
    from sklearn.preprocessing import OneHotEncoder

    rows = np.array([[0.0], [1.0], [2.0]])
    model = OneHotEncoder().fit(rows)
    _save(model, folder)
    return Case(inputs={"x": rows}, expected={"transform": model.transform(rows).toarray()})


def skops_file(folder: Path) -> Case:
    import skops.io
    from sklearn.linear_model import LogisticRegression

    iris = _iris()
    model = LogisticRegression(max_iter=500).fit(iris.data, iris.target)
    skops.io.dump(model, folder / "model.skops")
    rows = iris.data[::30]
    return Case(
        inputs={"x": rows}, expected={"output-0": model.predict(rows), "predict_proba": model.predict_proba(rows)}
    )


def plain_pickle(folder: Path) -> Case:
    import pickle

    from sklearn.dummy import DummyClassifier

    iris = _iris()
    model = DummyClassifier().fit(iris.data, iris.target)
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    return Case(inputs={"x": iris.data[::30]}, expected={"output-0": model.predict(iris.data[::30])})


def inputs_by_option(folder: Path) -> Case:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    table = _mixed_table()
    model = make_pipeline(FunctionTransformer(_lengths), Ridge()).fit(table, table["area"])
    _save(model, folder)
    datatypes = {"town": "BYTES", "area": "FP64", "rooms": "INT64", "heating": "BYTES"}
    return Case(
        inputs=_table_inputs(table[:5]),
        expected={"output-0": model.predict(table[:5])},
        options={"inputs": [{"name": name, "datatype": datatype} for name, datatype in datatypes.items()]},
    )


def _lengths(table: Any) -> Any:
    return table.assign(town=table["town"].str.len(), heating=table["heating"].str.len())
