# SPDX-License-Identifier: Apache-2.0
"""Models side by side in Pythons of their own: other versions of a library, of numpy, and what cannot be made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from answers import Answers
from platform_process import PlatformProcess, wait_until

from modelyard.admin import ModelState, ModelStatus
from modelyard.client import Platform
from modelyard.environments.overlay import Overlay
from modelyard.environments.start import reason_of, start_build

SKLEARN = "1.4.1.post1"
"""Needs numpy 1, while the platform has numpy 2."""
XGBOOST = "3.0.5"

SAVE_BINARY = """
import sys, xgboost
xgboost.Booster(model_file=sys.argv[1]).save_model(sys.argv[2])
"""
TRAIN = """
import sys, joblib, sklearn
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
rows, labels = load_iris(return_X_y=True)
model = RandomForestClassifier(10, random_state=0).fit(rows, labels)
joblib.dump(model, sys.argv[1] + "/model.joblib")
print(sklearn.__version__, *model.predict(rows))
"""


@pytest.fixture(scope="module")
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url) as opened:
        yield opened


def make_python(platform: PlatformProcess, requirement: str, extra: str) -> Path:
    """The Python that models of that framework run in, made beforehand: it trains them too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_ENVIRONMENTS", str(platform.folder / "environments"))
        overlay = Overlay("pip", (requirement,), extra)
        assert reason_of(start_build(overlay)) == ""
        return overlay.python


@pytest.fixture(scope="module")
def old_sklearn(platform: PlatformProcess) -> Path:
    return make_python(platform, f"scikit-learn=={SKLEARN}", "sklearn")


@pytest.fixture(scope="module")
def trained(platform: PlatformProcess, old_sklearn: Path) -> Iterator[tuple[Path, list[int]]]:
    """A model that the old scikit-learn has trained, and what it says of each iris."""
    folder = platform.folder / "models" / "old"
    folder.mkdir()
    command = [str(old_sklearn), "-c", TRAIN, str(folder)]
    version, *answers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert version == SKLEARN
    yield folder, [int(answer) for answer in answers]
    shutil.rmtree(folder)


@pytest.fixture
def register(client: Platform) -> Iterator[Any]:
    """Registers and waits until it is ready or has failed; afterwards it is gone."""
    made: set[str] = set()

    def register(name: str, framework: str, uri: str, runtime: dict[str, Any], **more: Any) -> ModelStatus:
        made.add(name)
        client.register(name, framework=framework, uri=uri, runtime=runtime, resources={"num_cpus": 0.05}, **more)

        def settled() -> ModelStatus | None:
            status = client.status(name)
            return status if status.state in (ModelState.READY, ModelState.FAILED) else None

        status: ModelStatus = wait_until(settled, 90, f"{name} to be ready or to fail")
        return status

    yield register
    for name in made:
        client.unregister(name, wait=True)


def libraries(platform: PlatformProcess, application: str, name: str) -> set[str]:
    """The files of a library that the application's replica has mapped into memory."""
    (pid,) = platform.replicas(application)
    return {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if name in line}


def test_two_versions_of_xgboost_side_by_side(
    platform: PlatformProcess, client: Platform, register: Any, answers: dict[str, Answers]
) -> None:
    status = register("old", "xgboost", "models/iris-xgboost", {"version": XGBOOST})
    assert status.state is ModelState.READY, status.reason
    known = answers["iris-xgboost"]
    for name in ("old", "iris-xgboost"):
        np.testing.assert_allclose(client.predict(name, known.inputs).outputs["output-0"], known.default, rtol=1e-6)
    (old,) = libraries(platform, "old@1", "libxgboost")
    (new,) = libraries(platform, "iris-xgboost@1", "libxgboost")
    assert Path(old).is_relative_to(platform.folder / "environments")
    assert Path(new).is_relative_to(sys.prefix)


def test_the_old_binary_format_runs_in_the_version_that_reads_it(
    platform: PlatformProcess, client: Platform, register: Any, answers: dict[str, Answers], tmp_path: Path
) -> None:
    python = make_python(platform, f"xgboost-cpu=={XGBOOST}", "xgboost")
    folder = platform.folder / "models" / "binary"
    folder.mkdir()
    (made,) = (platform.folder / "models" / "iris-xgboost").iterdir()
    subprocess.run([python, "-c", SAVE_BINARY, made, tmp_path / "model.deprecated"], check=True, capture_output=True)
    shutil.copy(tmp_path / "model.deprecated", folder / "model.bst")
    refused = register("binary", "xgboost", "models/binary", {})
    assert f'set `runtime: {{version: "{XGBOOST}"}}`' in refused.reason
    assert register("binary", "xgboost", "models/binary", {"version": XGBOOST}).state is ModelState.READY
    known = answers["iris-xgboost"]
    np.testing.assert_allclose(client.predict("binary", known.inputs).outputs["output-0"], known.default, rtol=1e-6)


def test_two_versions_of_scikit_learn_each_with_what_it_has_saved(
    platform: PlatformProcess, client: Platform, register: Any, trained: tuple[Path, list[int]], answers: Any
) -> None:
    folder, expected = trained
    assert register("old", "sklearn", str(folder), {"version": SKLEARN}).state is ModelState.READY
    from sklearn.datasets import load_iris

    rows = load_iris().data
    assert client.predict("old", rows).outputs["output-0"].tolist() == expected
    known = answers["iris-sklearn"]
    np.testing.assert_allclose(client.predict("iris-sklearn", known.inputs).outputs["output-0"], known.default)
    refused = register("too-old", "sklearn", "models/iris-sklearn", {"version": SKLEARN})
    assert refused.state is ModelState.FAILED
    assert f"installed is {SKLEARN}" in refused.reason
    assert 'runtime: {version: "1.' in refused.reason


@pytest.mark.usefixtures("old_sklearn")
def test_arrays_cross_to_another_numpy_and_back(client: Platform, register: Any, platform: PlatformProcess) -> None:
    options = {"entrypoint": "model:Versions", "settings": {"modules": ["numpy", "sklearn"]}}
    runtime = {"pip": [f"scikit-learn=={SKLEARN}"], "env_vars": {"OMP_NUM_THREADS": "1"}}
    status = register("old", "custom", "models/versions", runtime, options=options)
    assert status.state is ModelState.READY, status.reason
    words = np.array(["ä", ""], dtype=object)
    for shape in ((2, 3), (2, 0), (300, 200)):  # the last travels beside the pickle
        rows = np.random.default_rng(0).random(shape, dtype=np.float32)
        found = client.predict("old", {"rows": rows, "words": words}).outputs
        np.testing.assert_array_equal(found["rows"], rows)
        assert found["words"].tolist() == [b"\xc3\xa4", b""]
        numpy, sklearn, prefix = (text.decode() for text in found["versions"])
        assert (numpy.split(".")[0], sklearn) == ("1", SKLEARN)
        assert Path(prefix).parent == platform.folder / "environments"
    assert np.__version__.split(".")[0] == "2"


MLMODEL = """
flavors:
  python_function: {loader_module: told, code: code}
signature:
  inputs: '[{"name": "a", "type": "double"}]'
  outputs: '[{"type": "string"}]'
"""
LOADER = """
import tiny

class Told:
    def predict(self, table, params=None):
        return [tiny.__version__] * len(table)

def _load_pyfunc(path):
    return Told()
"""


@pytest.fixture
def told(platform: PlatformProcess) -> Iterator[str]:
    """An MLflow model that says which version of its one requirement it has."""
    folder = platform.folder / "models" / "told"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "told.py").write_text(LOADER)
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "requirements.txt").write_text("tiny==1.0\n")
    yield "models/told"
    shutil.rmtree(folder)


def test_an_mlflow_model_gets_its_requirements_by_the_setting_that_its_failure_names(
    client: Platform, register: Any, told: str, offline: dict[str, str]
) -> None:
    refused = register("told", "mlflow", told, {})
    assert refused.state is ModelState.FAILED
    advice = re.search(r"with `runtime: (.*)` it gets", refused.reason)
    assert advice is not None, refused.reason
    runtime = yaml.safe_load(advice[1])
    assert runtime == {"pip": ["tiny==1.0"]}
    status = register("told", "mlflow", told, {**runtime, "env_vars": offline})
    assert status.state is ModelState.READY, status.reason
    assert client.predict("told", {"a": np.zeros(2)}).outputs["output-0"].tolist() == [b"1.0", b"1.0"]


IMPOSSIBLE = [
    (
        {"version": "99"},
        (
            "pip: Could not find a version that satisfies the requirement xgboost-cpu==99",
            "No matching distribution found for xgboost-cpu==99",
        ),
    ),
    ({"pip": ["pydantic<2"]}, ("The user requested pydantic<2; The user requested (constraint) pydantic<3",)),
    ({"py_executable": f"{sys.executable} -S"}, ("does not fit the platform: ray missing (the platform has 2.60",)),
    ({"py_executable": "/nowhere/python"}, ('its Python "/nowhere/python" cannot be run',)),
    ({"conda": "models"}, ("its environment cannot be made: Could not find Conda executable",)),
    ({"image_uri": "team/model:1"}, ("its environment cannot be made:", "podman")),
]


@pytest.mark.parametrize(("runtime", "reasons"), IMPOSSIBLE, ids=lambda value: str(value)[:30])
def test_a_runtime_that_cannot_be_made_fails_its_model_alone(
    client: Platform, register: Any, runtime: dict[str, Any], reasons: tuple[str, ...]
) -> None:
    for program in ("conda", "podman"):
        if program in " ".join(reasons).lower() and shutil.which(program):
            pytest.skip(f"{program} is here")
    status = register("impossible", "xgboost", "models/iris-xgboost", runtime)
    assert status.state is ModelState.FAILED
    assert all(reason in status.reason for reason in reasons), status.reason
    assert sys.prefix not in status.reason.replace(sys.executable, "")
    assert client.status("iris-xgboost").state is ModelState.READY
