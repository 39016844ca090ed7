# SPDX-License-Identifier: Apache-2.0
"""Damaged, foreign and outdated files fail to load with a sentence that says why; none of them ends the process."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import load_model

EXAMPLES = {
    "sklearn": ("sklearn", "svc_integer_labels", "model.joblib"),
    "skops": ("sklearn", "skops_file", "model.skops"),
    "xgboost-json": ("xgboost", "binary_logistic", "model.json"),
    "xgboost-ubj": ("xgboost", "multi_softmax", "model.ubj"),
    "lightgbm": ("lightgbm", "binary", "model.txt"),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, trainers: Any) -> dict[str, Path]:
    found = {}
    for key, (framework, case, file) in EXAMPLES.items():
        folder = tmp_path_factory.mktemp("artifact")
        trainers(framework)[case](folder)
        found[key] = folder / file
    return found


@pytest.mark.parametrize("key", EXAMPLES)
def test_truncated_file_is_refused(key: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    data = artifacts[key].read_bytes()
    marker = data.find(b"\nend of trees")
    end = marker if marker > 0 else len(data) - 1
    for length in (0, 1, 10, *np.linspace(20, end, 25, dtype=int).tolist()):
        (tmp_path / artifacts[key].name).write_bytes(data[:length])
        with pytest.raises(ModelLoadError):
            load_model(EXAMPLES[key][0], tmp_path, {})


@pytest.mark.parametrize("key", EXAMPLES)
@pytest.mark.parametrize("content", [b"hello", b"\x00" * 100, b"{}", b"[]", b"version https://git-lfs.github.com/spec"])
def test_other_content_is_refused(key: str, content: bytes, artifacts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / artifacts[key].name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=artifacts[key].name):
        load_model(EXAMPLES[key][0], tmp_path, {})


def _patched(artifacts: dict[str, Path], folder: Path, key: str, old: bytes, new: bytes) -> Path:
    data = artifacts[key].read_bytes()
    assert old in data
    (folder / artifacts[key].name).write_bytes(data.replace(old, new))
    return folder


def test_pickle_of_another_version_loads_with_one_log_line(
    artifacts: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sklearn

    other = b"0" + sklearn.__version__.encode()[1:]
    folder = _patched(artifacts, tmp_path, "sklearn", sklearn.__version__.encode(), other)
    with caplog.at_level(logging.WARNING):
        load_model("sklearn", folder, {})
    (record,) = caplog.records
    assert other.decode() in record.getMessage()
    assert sklearn.__version__ in record.getMessage()


def test_pickle_that_this_version_cannot_read_names_both_versions(artifacts: dict[str, Path], tmp_path: Path) -> None:
    import sklearn

    other = b"0" + sklearn.__version__.encode()[1:]
    folder = _patched(artifacts, tmp_path, "sklearn", sklearn.__version__.encode(), other)
    artifact = folder / "model.joblib"
    artifact.write_bytes(artifact.read_bytes().replace(b"sklearn.svm._classes", b"sklearn.svm.oclasses"))
    with pytest.raises(ModelLoadError) as caught:
        load_model("sklearn", folder, {})
    assert f"saved by scikit-learn {other.decode()}, installed is {sklearn.__version__}" in str(caught.value)
    assert "sklearn.svm.oclasses" in str(caught.value)
    assert str(caught.value).endswith(f'with `runtime: {{version: "{other.decode()}"}}` it runs in that')


def test_what_another_version_has_saved_and_does_not_work_names_both_versions(tmp_path: Path) -> None:
    import joblib
    import sklearn
    from sklearn.svm import SVC

    joblib.dump(SVC(), tmp_path / "model.joblib")
    version = sklearn.__version__.encode()
    data = (tmp_path / "model.joblib").read_bytes()
    (tmp_path / "model.joblib").write_bytes(data.replace(version, b"0" + version[1:]))
    with pytest.raises(
        ModelLoadError, match=rf"is not fitted.*saved by scikit-learn 0.*{sklearn.__version__}.*runtime"
    ):
        load_model("sklearn", tmp_path, {})


def test_pickle_that_needs_a_missing_module_names_it(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cmypkg.transforms\nScale\n.")
    with pytest.raises(ModelLoadError, match=r'model\.pkl refers to the module "mypkg", which is not installed'):
        load_model("sklearn", tmp_path, {})


def test_pickle_that_needs_the_script_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"c__main__\nMyTransformer\n.")
    with pytest.raises(ModelLoadError, match=r"class or function of the script that saved it.*MyTransformer"):
        load_model("sklearn", tmp_path, {})


def test_pickle_that_holds_no_estimator_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(ModelLoadError, match="expected an estimator with predict or transform, got dict"):
        load_model("sklearn", tmp_path, {})


def test_estimator_that_was_never_fitted_is_refused(tmp_path: Path) -> None:
    from sklearn.svm import SVC

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(SVC()))
    with pytest.raises(ModelLoadError, match="SVC is not fitted"):
        load_model("sklearn", tmp_path, {})


def test_skops_refuses_untrusted_types_until_they_are_named(tmp_path: Path) -> None:
    import skops.io
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = make_pipeline(FunctionTransformer(np.polynomial.polynomial.polyroots)).fit(np.ones((2, 2)))
    skops.io.dump(model, tmp_path / "model.skops")
    name = "numpy.polynomial.polynomial.polyroots"
    with pytest.raises(ModelLoadError, match=f"untrusted types: {name}; .*trusted_types"):
        load_model("sklearn", tmp_path, {})
    load_model("sklearn", tmp_path, {"trusted_types": [name]})


def test_old_binary_xgboost_model_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.bst").write_bytes(b"binf" + bytes(200))
    with pytest.raises(ModelLoadError, match=r"old binary format.*xgboost 3\.1.*save_model"):
        load_model("xgboost", tmp_path, {})


@pytest.mark.parametrize("key", ["xgboost-json", "xgboost-ubj"])
def test_xgboost_names_both_versions(key: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    import xgboost

    folder = _patched(artifacts, tmp_path, key, b"tree_param", b"tree_qaram")
    version = xgboost.__version__
    with pytest.raises(ModelLoadError, match=f"xgboost {version} cannot load .* written by xgboost {version}: "):
        load_model("xgboost", folder, {})


def test_lightgbm_names_its_version_and_the_format(artifacts: dict[str, Path], tmp_path: Path) -> None:
    import lightgbm

    folder = _patched(artifacts, tmp_path, "lightgbm", b"max_feature_idx", b"max_feature_oops")
    with pytest.raises(ModelLoadError, match=rf"lightgbm {lightgbm.__version__} cannot read .*\(format v\d\)"):
        load_model("lightgbm", folder, {})


def test_lightgbm_writes_nothing_to_stdout(
    artifacts: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = _patched(artifacts, tmp_path, "lightgbm", b"max_feature_idx", b"max_feature_oops")
    with pytest.raises(ModelLoadError):
        load_model("lightgbm", folder, {})
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("framework", "case"), [("xgboost", "multi_softprob"), ("lightgbm", "multiclass_with_names")])
def test_wrong_number_of_classes_is_refused(framework: str, case: str, tmp_path: Path, trainers: Any) -> None:
    trainers(framework)[case](tmp_path)
    with pytest.raises(ModelLoadError, match="option classes: expected 3 labels, one for each class, got 2"):
        load_model(framework, tmp_path, {"classes": ["a", "b"]})


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_classes_of_a_regression_are_refused(framework: str, tmp_path: Path, trainers: Any) -> None:
    trainers(framework)["regression"](tmp_path)
    with pytest.raises(ModelLoadError, match=r"option classes: the model .*objective reg"):
        load_model(framework, tmp_path, {"classes": ["a", "b"]})
