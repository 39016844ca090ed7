# SPDX-License-Identifier: Apache-2.0
"""PMML: each function writes one document into a folder, from scikit-learn or by hand, and says what is answered."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.tensor import to_bytes_array
from modelyard.testing import Case

_FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
_NAMES = np.array(["setosa", "versicolor", "virginica"])


def _iris() -> tuple[Any, Any]:
    import pandas as pd
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    return pd.DataFrame(features, columns=_FEATURES), target


def _export(folder: Path, target: Any, *steps: Any, name: str = "species") -> Any:
    """A fitted pipeline, written as PMML."""
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(*steps).fit(_iris()[0], target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nyoka's imports, and the file that it does not close
        from nyoka import skl_to_pmml

        skl_to_pmml(pipeline, _FEATURES, name, str(folder / "model.pmml"))
    return pipeline


def _rows() -> dict[str, Any]:
    return {name: column.to_numpy() for name, column in _iris()[0][::12].items()}


def _classes(pipeline: Any) -> dict[str, Any]:
    rows = _iris()[0][::12]
    chances = dict(zip(pipeline.classes_, pipeline.predict_proba(rows).T, strict=True))
    return {"predicted_species": pipeline.predict(rows)} | {f"probability_{key}": one for key, one in chances.items()}


def tree(folder: Path) -> Case:
    from sklearn.tree import DecisionTreeClassifier

    pipeline = _export(folder, _NAMES[_iris()[1]], DecisionTreeClassifier(max_depth=3, random_state=7))
    return Case(_rows(), _classes(pipeline))


def integer_classes(folder: Path) -> Case:
    from sklearn.tree import DecisionTreeClassifier

    return Case(_rows(), _classes(_export(folder, _iris()[1], DecisionTreeClassifier(max_depth=3, random_state=7))))


def forest_of_integer_classes(folder: Path) -> Case:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.preprocessing import StandardScaler

    forest = RandomForestClassifier(10, max_depth=4, random_state=7)
    return Case(_rows(), _classes(_export(folder, _iris()[1], StandardScaler(), forest)))


def boosting(folder: Path) -> Case:
    from sklearn.ensemble import GradientBoostingClassifier

    booster = GradientBoostingClassifier(n_estimators=5, random_state=7)
    return Case(_rows(), _classes(_export(folder, _NAMES[_iris()[1]], booster)))


def logistic_of_two_classes(folder: Path) -> Case:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    target = np.where(_iris()[1] == 1, "yes", "no")
    return Case(_rows(), _classes(_export(folder, target, StandardScaler(), LogisticRegression())))


def linear_regression(folder: Path) -> Case:
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import MinMaxScaler

    target = _iris()[0].to_numpy() @ [1.0, 2.0, -3.0, 0.5] ** np.array(2)
    pipeline = _export(folder, target, MinMaxScaler(), LinearRegression(), name="area")
    return Case(_rows(), {"predicted_area": pipeline.predict(_iris()[0][::12])})


def clusters(folder: Path) -> Case:
    from sklearn.cluster import KMeans

    pipeline = _export(folder, None, KMeans(3, n_init=3, random_state=7))
    rows = _iris()[0][::12]
    distances = pipeline.transform(rows).T
    expected = {f"affinity({index})": one for index, one in enumerate(distances)}
    return Case(_rows(), expected | {"cluster": pipeline.predict(rows).astype(str)})


def _texts(*values: str) -> Any:
    return to_bytes_array(np.array(values, dtype=object))


def _write(folder: Path, dictionary: str, model: str, encoding: str = "UTF-8") -> None:
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n'
        '<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4"><Header/>'
        f"<DataDictionary>{dictionary}</DataDictionary>{model}</PMML>\n"
    )
    (folder / "model.pmml").write_bytes(text.encode(encoding))


_PRICE = """
<DataField name="district" optype="categorical" dataType="string">
  <Value value="centre"/><Value value="harbour"/><Value value="n/a" property="missing"/>
</DataField>
<DataField name="rooms" optype="continuous" dataType="integer">
  <Interval closure="closedOpen" leftMargin="1" rightMargin="20"/>
</DataField>
<DataField name="area" optype="continuous" dataType="double"/>
<DataField name="lift" optype="categorical" dataType="boolean"/>
<DataField name="height" optype="continuous" dataType="float"/>
<DataField name="price" optype="continuous" dataType="double"/>
"""
_PRICE_MODEL = """
<RegressionModel functionName="regression" targetFieldName="price">
  <MiningSchema>
    <MiningField name="district"/>
    <MiningField name="rooms" missingValueReplacement="3"/>
    <MiningField name="area" missingValueTreatment="returnInvalid"/>
    <MiningField name="lift" missingValueReplacement="false"/>
    <MiningField name="height" invalidValueTreatment="asMissing" missingValueReplacement="2.5"/>
    <MiningField name="price" usageType="target"/>
  </MiningSchema>
  <Output>
    <OutputField name="price" feature="predictedValue" dataType="double" optype="continuous"/>
    <OutputField name="thousands" feature="transformedValue" dataType="integer" optype="continuous">
      <Apply function="floor">
        <Apply function="/"><FieldRef field="price"/><Constant dataType="double">1000</Constant></Apply>
      </Apply>
    </OutputField>
    <OutputField name="dear" feature="transformedValue" dataType="boolean" optype="categorical">
      <Apply function="greaterThan"><FieldRef field="price"/><Constant dataType="double">100000</Constant></Apply>
    </OutputField>
  </Output>
  <RegressionTable intercept="1000">
    <NumericPredictor name="rooms" coefficient="6000"/>
    <NumericPredictor name="area" coefficient="1500"/>
    <NumericPredictor name="height" coefficient="100"/>
    <CategoricalPredictor name="district" value="centre" coefficient="90000"/>
    <CategoricalPredictor name="district" value="harbour" coefficient="60000"/>
    <CategoricalPredictor name="lift" value="true" coefficient="5000"/>
  </RegressionTable>
</RegressionModel>
"""


def every_data_type(folder: Path) -> Case:
    _write(folder, _PRICE, _PRICE_MODEL)
    inputs = {
        "district": _texts("centre", "harbour", "", "n/a"),
        "rooms": np.array([3, 1, 19, 4]),
        "area": np.array([55.5, 20.0, 10.0, 1.0]),
        "lift": np.array([True, False, False, True]),
        "height": np.array([2.5, math.nan, 3.0, 2.25], dtype=np.float32),
    }
    added = np.array([90_000, 60_000, 0, 0]) + [5000, 0, 0, 5000] + 100 * np.array([2.5, 2.5, 3.0, 2.25])
    price = 1000 + 6000 * inputs["rooms"] + 1500 * inputs["area"] + added
    expected = {"price": price, "thousands": (price // 1000).astype(int), "dear": price > 100_000}
    return Case(inputs, expected)


_RISK = """
<DataField name="age" optype="continuous" dataType="integer"/>
<DataField name="job" optype="categorical" dataType="string"/>
<DataField name="risk" optype="continuous" dataType="double"/>
"""
_SCORECARD = """
<Scorecard functionName="regression" initialScore="10" useReasonCodes="true" reasonCodeAlgorithm="pointsBelow"
           baselineMethod="max">
  <MiningSchema>
    <MiningField name="age"/><MiningField name="job"/><MiningField name="risk" usageType="target"/>
  </MiningSchema>
  <Output>
    <OutputField name="risk" feature="predictedValue" dataType="double" optype="continuous"/>
    <OutputField name="reason" feature="reasonCode" rank="1" dataType="string" optype="categorical"/>
  </Output>
  <Characteristics>
    <Characteristic name="age_score" reasonCode="AGE" baselineScore="30">
      <Attribute partialScore="5"><SimplePredicate field="age" operator="isMissing"/></Attribute>
      <Attribute partialScore="10"><SimplePredicate field="age" operator="lessThan" value="30"/></Attribute>
      <Attribute partialScore="30"><SimplePredicate field="age" operator="greaterOrEqual" value="30"/></Attribute>
    </Characteristic>
    <Characteristic name="job_score" reasonCode="JOB" baselineScore="50">
      <Attribute partialScore="50">
        <SimpleSetPredicate field="job" booleanOperator="isIn">
          <Array n="2" type="string">"sea captain" cook</Array>
        </SimpleSetPredicate>
      </Attribute>
      <Attribute partialScore="1"><True/></Attribute>
    </Characteristic>
  </Characteristics>
</Scorecard>
"""


def scorecard(folder: Path) -> Case:
    _write(folder, _RISK, _SCORECARD)
    inputs = {"age": np.array([20, 40, 29]), "job": _texts("cook", "sea captain", "élève")}
    return Case(inputs, {"risk": np.array([70.0, 90.0, 21.0]), "reason": np.array(["AGE", "", "JOB"])})


_LATIN = """
<DataField name="größe" optype="continuous" dataType="double"/>
<DataField name="farbe" optype="categorical" dataType="string"><Value value="grün"/><Value value="blau"/></DataField>
<DataField name="klasse" optype="categorical" dataType="string"><Value value="süß"/><Value value="sauer"/></DataField>
"""
_LATIN_MODEL = """
<TreeModel functionName="classification" missingValueStrategy="defaultChild" splitCharacteristic="binarySplit">
  <MiningSchema>
    <MiningField name="größe"/><MiningField name="farbe"/><MiningField name="klasse" usageType="target"/>
  </MiningSchema>
  <Node id="1" defaultChild="3"><True/>
    <Node id="2" score="süß"><SimplePredicate field="farbe" operator="equal" value="grün"/></Node>
    <Node id="3" defaultChild="5"><SimplePredicate field="farbe" operator="notEqual" value="grün"/>
      <Node id="4" score="süß"><SimplePredicate field="größe" operator="greaterThan" value="2"/></Node>
      <Node id="5" score="sauer"><SimplePredicate field="größe" operator="lessOrEqual" value="2"/></Node>
    </Node>
  </Node>
</TreeModel>
"""


def _latin_tree(folder: Path) -> None:
    """In another encoding than UTF-8, all fields optional, without an Output."""
    _write(folder, _LATIN, _LATIN_MODEL, "ISO-8859-1")
