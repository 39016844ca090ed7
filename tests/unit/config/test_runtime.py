# SPDX-License-Identifier: Apache-2.0
"""The section `runtime` of a model: what is refused before anything is built, and what makes another revision."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.config import load_model_spec, parse_model_spec
from modelyard.errors import InvalidConfig


def _spec(runtime: Any, framework: str = "xgboost") -> dict[str, Any]:
    return {"name": "m", "framework": framework, "uri": "models/m", "runtime": runtime}


GOOD = [
    {"version": "3.0.5"},
    {"version": "3.0.*"},
    {"pip": ["numpy==1.26.4", "pkg @ https://example.com/pkg-1-py3-none-any.whl", 'tomli; python_version < "3.11"']},
    {"uv": ["scikit-learn==1.4.2"], "version": "2.1.4", "env_vars": {"UV_INDEX_URL": "https://pypi.example.com"}},
    {"conda": "models"},
    {"conda": "/opt/conda/envs/models"},
    {"conda": {"channels": ["conda-forge"], "dependencies": ["python=3.11", {"pip": ["xgboost-cpu"]}]}},
    {"image_uri": "registry.example.com:5000/team/model:1", "env_vars": {"A": "1"}},
    {"py_executable": "/opt/envs/a/bin/python -X utf8"},
]


@pytest.mark.parametrize("runtime", GOOD, ids=str)
def test_each_way_is_accepted_and_makes_another_revision(runtime: dict[str, Any]) -> None:
    spec = load_model_spec(_spec(runtime))
    assert parse_model_spec(spec.to_json()) == spec
    assert spec.revision_digest("sha256:1") != load_model_spec(_spec({})).revision_digest("sha256:1")


REQUIREMENT = 'runtime.pip: expected a requirement such as "numpy==1.26.4" or "name @ URL", got another text'
OPTION = (
    'runtime.pip: expected a requirement, got the option "--index-url https://": the installer\'s options go into '
    "env_vars, as PIP_INDEX_URL or UV_INDEX_URL"
)
CONDA = (
    "runtime.conda: expected the name or folder of an environment, or a mapping with a list of dependencies (not the "
    "name of a file that holds one: its content would not be part of the revision)"
)
WRONG = [
    ({"pip": "numpy"}, 'runtime.pip: expected a list of requirements, such as ["numpy==1.26.4"]'),
    ({"pip": []}, 'runtime.pip: expected a list of requirements, such as ["numpy==1.26.4"]'),
    ({"pip": {"packages": ["numpy"]}}, 'runtime.pip: expected a list of requirements, such as ["numpy==1.26.4"]'),
    ({"uv": [1]}, 'runtime.uv: expected a list of requirements, such as ["numpy==1.26.4"]'),
    ({"pip": ["numpy=1.26"]}, REQUIREMENT),
    ({"pip": ["--index-url https://me:hunter2@pypi.example.com"]}, OPTION),
    ({"version": 3.0}, "runtime.version: expected a text, got the number 3.0: put it in quotes"),
    ({"version": ">=3"}, 'runtime.version: expected a version such as "3.0.5" or "3.0.*", got ">=3"'),
    ({"conda": "environment.yml"}, CONDA),
    ({"conda": {"channels": []}}, CONDA),
    ({"conda": 3}, CONDA),
    (
        {"image_uri": "a b"},
        "runtime.image_uri: expected the name of an image, such as registry.example.com/team/model:1",
    ),
    (
        {"image_uri": "a;reboot"},
        "runtime.image_uri: expected the name of an image, such as registry.example.com/team/model:1",
    ),
    (
        {"py_executable": "'python"},
        "runtime.py_executable: expected the path of a Python; quotes in it have to be closed",
    ),
    ({"py_executable": ""}, "runtime.py_executable: expected the path of a Python; quotes in it have to be closed"),
    (
        {"pip": ["a"], "conda": "b"},
        "runtime: expected one of pip, uv, conda, image_uri, py_executable, got pip and conda",
    ),
    (
        {"version": "3.0.5", "image_uri": "a"},
        "runtime: expected version alone or with pip or uv, got it with image_uri, which decides it itself",
    ),
    ({"pips": []}, 'runtime.pips: unknown key; did you mean "pip"?'),
]


@pytest.mark.parametrize(("runtime", "problem"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_one_is_refused_with_what_was_expected(runtime: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_model_spec(_spec(runtime))
    assert caught.value.problems == (problem,)


def test_a_framework_without_a_library_has_no_version() -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_model_spec(_spec({"version": "1.0"}, framework="custom"))
    assert caught.value.problems == (
        'runtime.version: framework "custom" has no library of its own: name yours in runtime.pip',
    )
